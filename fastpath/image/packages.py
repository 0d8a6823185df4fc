"""Debian packages, read without installing them, without root.

apt is told to keep its lists and its state in our cache and to believe that
nothing is installed, so its own resolver gives each package's whole closure.
What it downloads is verified by apt, and only ever unpacked in memory.

Spec: apt-get(8), apt.conf(5).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from fastpath.errors import FastpathError
from fastpath.image import cpio, sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

PRINT_URI = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+)( |$)")
STATUS = re.compile(r"^dlstatus:\d+:(?P<percent>[\d.]+):")


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """One version of one package of the archive."""

    name: str
    version: str
    file: str
    """File name that apt gives it."""


class Archive:
    """A Debian release's package archive, seen through a cache of ours.

    Args:
        cache: directory for lists and packages; made when missing.
        suite: Debian codename, or "CODENAME-backports"; as `sources.options`.
        architecture: as Debian calls it; None: the host's.

    Raises:
        FastpathError: no apt, or no sources for that suite.
    """

    def __init__(
        self, cache: Path, suite: str, architecture: str | None = None
    ) -> None:
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise FastpathError(
                    "package archive",
                    f"{tool} is missing",
                    "build images on Debian or Ubuntu",
                )
        self._suite = suite
        self._debs = cache / "debs"
        self._apt = cache / "apt" / "-".join(filter(None, (suite, architecture)))
        self._lists = self._apt / "lists"
        for directory in (
            self._debs,
            self._lists / "partial",
            self._apt / "archives" / "partial",
        ):
            directory.mkdir(parents=True, exist_ok=True)
        self._options = [
            f"-oDir::State={self._apt}",
            f"-oDir::State::lists={self._lists}",
            f"-oDir::Cache={self._apt}",
            "-oDir::State::status=/dev/null",
            "-oAPT::Sandbox::User=",
            "-oAPT::Install-Recommends=false",
            "-oAcquire::Languages=none",
            "-oAcquire::Retries=2",
            "-oDebug::NoLocking=true",
            *sources.options(self._apt, suite),
        ]
        if architecture:
            self._options += [
                f"-oAPT::Architecture={architecture}",
                f"-oAPT::Architectures={architecture}",
            ]

    def update(self) -> None:
        """Fetch the package lists.

        Raises:
            FastpathError: the archive is out of reach.
        """
        self._run("update", "-oAPT::Update::Error-Mode=any", what="package lists")
        (self._apt / "updated").touch()

    def has_lists(self) -> bool:
        """Whether `update` has succeeded before."""
        return (self._apt / "updated").exists()

    def resolve(self, names: Iterable[str]) -> tuple[Package, ...]:
        """Find the newest version of packages and of all that they depend on.

        Raises:
            FastpathError: a package does not exist or cannot be satisfied.
        """
        lines = self._run(
            "install", "--yes", "--print-uris", "--", *names, what="packages"
        )
        found = (PRINT_URI.match(line) for line in lines)
        packages = []
        for match in filter(None, found):
            name, version, _ = match["file"].split("_")
            packages.append(Package(name, unquote(version), match["file"]))
        return tuple(sorted(packages))

    def fetch(
        self, packages: Sequence[Package], progress: Callable[[float], None]
    ) -> list[Path]:
        """Download packages that the cache does not have.

        Args:
            packages: from `resolve`.
            progress: called with the share that is here, 0 to 1.

        Returns:
            Their files, in the order of `packages`.

        Raises:
            FastpathError: a download failed.
        """
        missing = [each for each in packages if not (self._debs / each.file).exists()]
        if missing:
            with tempfile.TemporaryDirectory(dir=self._debs, prefix=".new-") as name:
                self._run(
                    "download",
                    "-oAPT::Status-Fd=1",
                    *(f"{each.name}={each.version}" for each in missing),
                    what="packages",
                    cwd=Path(name),
                    on_line=lambda line: _report(line, progress),
                )
                for each in missing:
                    (Path(name) / each.file).rename(self._debs / each.file)
        return [self._debs / each.file for each in packages]

    def _run(
        self,
        *arguments: str,
        what: str,
        cwd: Path | None = None,
        on_line: Callable[[str], None] = lambda _: None,
    ) -> list[str]:
        """Run apt-get; its output's lines, or its own words as an error."""
        lines = []
        complaints: deque[str] = deque(maxlen=5)
        with subprocess.Popen(
            ["apt-get", "-q", *self._options, *arguments],  # noqa: S607
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env=os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        ) as apt:
            assert apt.stdout is not None
            try:
                for raw in apt.stdout:
                    line = raw.rstrip()
                    lines.append(line)
                    on_line(line)
                    if line.startswith(("E: ", "Err:")):
                        complaints.append(line.removeprefix("E: "))
            except BaseException:
                apt.kill()  # or leaving would wait for a slow network
                raise
        if apt.returncode != 0:
            why = " / ".join(complaints) or f"apt-get ended with {apt.returncode}"
            raise FastpathError(
                f"{what} of Debian {self._suite}",
                why,
                "correct the recipe"
                if "Unable to locate" in why
                else "check the network and the host's apt sources, then try again",
            )
        return lines


def read(deb: Path) -> Iterator[tuple[str, cpio.Entry]]:
    """Read the files of a package: path without a leading slash, and entry.

    Raises:
        FastpathError: the file is damaged.
    """
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as unpack:
        try:
            with tarfile.open(fileobj=unpack.stdout, mode="r|") as tar:
                yield from _entries(tar)
        except tarfile.TarError as error:
            raise FastpathError(f"package {deb}", str(error), f"rm {deb}") from None
        except BaseException:
            unpack.kill()
            raise


def _entries(tar: tarfile.TarFile) -> Iterator[tuple[str, cpio.Entry]]:
    linked: dict[str, cpio.Entry] = {}
    for member in tar:
        path = member.name.removeprefix(".").strip("/")
        mode = member.mode & 0o7777
        if member.isdir():
            entry = cpio.directory(mode)
        elif member.issym():
            entry = cpio.symlink(member.linkname)
        elif member.islnk():
            entry = linked[member.linkname.removeprefix(".").strip("/")]
        elif member.isfile() and (content := tar.extractfile(member)) is not None:
            entry = linked[path] = cpio.file(content.read(), mode)
        else:
            continue
        if path:
            yield path, entry


def _report(line: str, progress: Callable[[float], None]) -> None:
    if match := STATUS.match(line):
        progress(float(match["percent"]) / 100)
