"""Where apt reads a Debian suite from: the host's own sources, for that suite.

No archive is named here. The host's sources are read, and what they say of the
host's release is said of another suite; what they say of anything else is left out.

Spec: sources.list(5), apt_preferences(5).
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES_VARIABLE: Final = "VSOCK_FASTPATH_APT_SOURCES"
"""Names a sources.list(5) file to use in place of the host's, for every suite."""
ROLLING: Final = frozenset({"sid", "unstable"})
"""Suites that are never released: they have no updates and no security fixes."""
BACKPORTS: Final = "-backports"
BESIDE: Final = ("-updates", "-security")
ETC_APT: Final = Path("/etc/apt")
SUITES: Final = re.compile(r"^Suites:(?P<names>.*)$", re.MULTILINE | re.IGNORECASE)
ONE_LINE: Final = re.compile(
    r"^deb\s+(?P<options>\[[^]]*\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<rest>.+)$"
)


def options(directory: Path, suite: str) -> list[str]:
    """Options that make apt read `suite`, whatever the host runs.

    Args:
        directory: where sources files of ours may go.
        suite: Debian codename, or that of a release with "-backports".

    Raises:
        FastpathError: the host's sources are of no use for that.
    """
    if own := os.environ.get(SOURCES_VARIABLE):
        return [
            f"-oDir::Etc::SourceList={own}",
            "-oDir::Etc::SourceParts=/dev/null",
            _preferred(suite),
        ]
    release = _os_release()
    codename = release.get("VERSION_CODENAME", "stable")
    if codename == suite:
        return []
    if release.get("ID") != "debian":
        raise FastpathError(
            f"packages of Debian {suite}",
            f"this host's apt reads {release.get('ID', 'an unknown system')}",
            f"set {SOURCES_VARIABLE} to a sources.list(5) file for Debian {suite}",
        )
    parts = directory / "sources"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    for source in (ETC_APT / "sources.list", *(ETC_APT / "sources.list.d").glob("*")):
        if source.suffix in {".list", ".sources"} and source.is_file():
            text = source.read_text(encoding="utf-8")
            if said := of_suite(text, codename, suite):
                (parts / source.name).write_text(said)
    return [
        "-oDir::Etc::SourceList=/dev/null",
        f"-oDir::Etc::SourceParts={parts}",
        _preferred(suite),
    ]


def is_hosts(suite: str) -> bool:
    """Whether the host has the C library and the compilers of a suite."""
    return _os_release().get("VERSION_CODENAME") == suite.removesuffix(BACKPORTS)


def of_suite(text: str, codename: str, suite: str) -> str:
    """What a sources file says of `codename`, said of `suite`.

    Args:
        text: a file in the one-line or the deb822 format.
        codename: the release that it is about.
        suite: as for `options`.

    Returns:
        A file in the same format; empty if nothing is left.
    """
    if SUITES.search(text) is None:
        lines = (_line(each, codename, suite) for each in text.splitlines())
        return "".join(line for each in lines for line in each)
    stanzas = []
    for stanza in re.split(r"\n\s*\n", text):
        match = SUITES.search(stanza)
        names = match["names"].split() if match else ()
        if wanted := " ".join(_instead(names, codename, suite)):
            stanzas.append(SUITES.sub(f"Suites: {wanted}", stanza).strip("\n") + "\n")
    return "\n".join(stanzas)


def _line(line: str, codename: str, suite: str) -> Iterator[str]:
    if match := ONE_LINE.match(line):
        for name in _instead([match["suite"]], codename, suite):
            parts = (match["options"] or "", match["uri"], name, match["rest"])
            yield "deb {}{} {} {}\n".format(*parts)


def _instead(names: list[str] | tuple[()], codename: str, suite: str) -> Iterator[str]:
    """The names of `suite` that stand for those of `codename` in `names`."""
    base = suite.removesuffix(BACKPORTS)
    for name in names:
        if name == codename:
            yield from dict.fromkeys((base, suite))
        elif base not in ROLLING and name in {f"{codename}{each}" for each in BESIDE}:
            yield name.replace(codename, base)


def _preferred(suite: str) -> str:
    """Prefer a suite: else backports lose, and a rolling suite always wins."""
    return f"-oAPT::Default-Release=/^{suite}(-updates|-security)?$/"


def _os_release() -> dict[str, str]:
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value.strip('"') for key, _, value in pairs}
