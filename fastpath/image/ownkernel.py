"""A kernel of our own: Debian's linux-source with guest/kernel/inet built in.

The source is unpacked as it is. Our folder is laid beside its others, and two lines
name it; what is configured is guest/kernel/own.config and fragments after it, over
nothing at all (allnoconfig). In the cache:

    kernels/SOURCE/source/      the kernel's source, and ours in net/tsi
    kernels/SOURCE/CONFIG/      objects, so that a change of ours is built in a minute
    kernels/SOURCE/CONTENT.made/  what a kernel's package would have

Spec: Linux, Documentation/kbuild/kconfig.rst (KCONFIG_ALLCONFIG).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.image import kbuild

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastpath.image.packages import Package

SERIES: Final = re.compile(r"(?P<series>\d+\.\d+)\D.*")
"""How a kernel's release begins, and what its source's package is named by."""
FOLDER: Final = "net/tsi"
NAMED: Final = {
    "net/Kconfig": f'source "{FOLDER}/kernel/Kconfig"\n',
    "net/Makefile": "obj-$(CONFIG_TSI) += tsi/kernel/\n",
}
"""The two lines, each at the end of a file of the kernel's."""
BASE: Final = "kernel/own.config"
LINE: Final = re.compile(
    r"(?P<set>CONFIG_\w+)=(?P<value>.+)|# (?P<unset>CONFIG_\w+) is not set"
)
OFF: Final = "n"
MAKER: Final = ("KBUILD_BUILD_USER=fastpath", "KBUILD_BUILD_HOST=fastpath")
"""What the kernel's version says in place of who we are."""
NEEDS: Final = "apt-get install gcc make flex bison bc libelf-dev xz-utils"
KEPT: Final = 3
"""Configurations whose objects stay, and builds; those that were made last."""


def source_of(kernels: Iterable[Package]) -> Package:
    """The source of a kernel's package, in the same version.

    Args:
        kernels: packages; those that only depend on a kernel are left out.

    Returns:
        The package, but for the name of its file.

    Raises:
        FastpathError: none is one of Debian's kernels.
    """
    for each in kernels:
        match = kbuild.KERNEL.fullmatch(each.name)
        if match and (series := SERIES.fullmatch(match["release"])):
            name = f"linux-source-{series['series']}"
            return type(each)(name, each.version, "")
    raise FastpathError("a kernel of our own", "the image's is none that has a source")


def wanted(fragments: Sequence[tuple[str, str]]) -> dict[str, str]:
    """What fragments of a configuration set, the last one's word being final.

    Args:
        fragments: where each is from, and its text.

    Raises:
        FastpathError: at file and line of what is no line of a configuration.
    """
    found: dict[str, str] = {}
    for name, text in fragments:
        for number, line in enumerate(text.splitlines(), 1):
            stripped = line.strip()
            if match := LINE.fullmatch(stripped):
                found[match["set"] or match["unset"]] = match["value"] or OFF
            elif stripped and not stripped.startswith("#"):
                raise FastpathError(
                    f"{name}:{number}", f"{line!r} is not CONFIG_NAME=VALUE"
                )
    return found


def check(fragments: dict[str, str], config: str) -> None:
    """See that a configuration has what was asked for.

    Args:
        fragments: from `wanted`.
        config: what Kconfig made of it.

    Raises:
        FastpathError: it hasn't: something else is missing, or there is no such thing.
    """
    has = wanted([(".config", config)])
    for name, value in fragments.items():
        got = has.get(name, OFF)
        if got != value:
            raise FastpathError(
                f"kernel configuration: {name}={value}",
                f"it is {got} for this kernel",
                "set what it depends on in a fragment of --kernel-config, too",
            )


def build(guest: Path, deb: Path, fragments: Sequence[Path], cache: Path) -> Path:
    """Build a kernel, or return the one that the cache has; for 5 to 30 minutes.

    Args:
        guest: folder of the guest's sources.
        deb: package with the kernel's source.
        fragments: files with lines of a configuration, besides ours.
        cache: directory to keep it in; the caller has it locked.

    Returns:
        A folder with files as a kernel's package has them.

    Raises:
        FastpathError: the configuration can't be had, or a tool is missing.
    """
    texts = [(str(path), _text(path)) for path in (guest / BASE, *fragments)]
    config = wanted(texts)
    home = cache / deb.stem
    ours = {path.relative_to(guest): path for path in kbuild.sources(guest)}
    digest = hashlib.sha256("".join(text for _, text in texts).encode())
    objects = home / digest.hexdigest()[:16]
    digest.update(Path(__file__).read_bytes())
    for path, source in ours.items():
        digest.update(f"{path}\0".encode() + source.read_bytes())
    made = home / f"{digest.hexdigest()[:16]}.made"
    if not made.exists():
        home.mkdir(parents=True, exist_ok=True)
        tree = home / "source"
        if not tree.exists():
            _unpack(deb, home, tree)
        _lay(ours, tree / FOLDER)
        objects.mkdir(exist_ok=True)
        fragment = objects / "fragment"
        fragment.write_text("".join(f"{text}\n" for _, text in texts))
        _make(tree, objects, "allnoconfig", f"KCONFIG_ALLCONFIG={fragment}")
        check(config, (objects / ".config").read_text())
        _compile(tree, objects, made)
        _forget_old(home)
    os.utime(made)
    return made


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise FastpathError(f"{path}", why or str(error), f"ls -l {path}") from error


def _unpack(deb: Path, home: Path, tree: Path) -> None:
    """Unpack a source, without what another version has left."""
    series = deb.name.partition("_")[0]
    for old in home.parent.glob(f"{series}_*"):
        if old != home:
            shutil.rmtree(old, ignore_errors=True)
    script = (
        f'dpkg-deb --fsys-tarfile "$1" | tar -xO ./usr/src/{series}.tar.xz | '
        'tar -xJ -C "$2" --strip-components=1'
    )
    with tempfile.TemporaryDirectory(dir=home, prefix=".new-") as name:
        new = Path(name) / "source"
        new.mkdir()
        command = ["bash", "-euo", "pipefail", "-c", script, "bash", str(deb), str(new)]
        kbuild.run(command, f"package {deb}", f"rm {deb}")
        for path, line in NAMED.items():
            with (new / path).open("a") as file:
                file.write(line)
        new.rename(tree)


def _lay(ours: dict[Path, Path], folder: Path) -> None:
    """Have our sources in a folder; those that are there stay, with their times."""
    for old in folder.rglob("*"):
        if old.is_file() and old.relative_to(folder) not in ours:
            old.unlink()
    for path, source in ours.items():
        copy, data = folder / path, source.read_bytes()
        if not copy.is_file() or copy.read_bytes() != data:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)


def _make(tree: Path, objects: Path, *arguments: str) -> None:
    command = ["make", "-s", "-C", str(tree), f"O={objects}", "CC=cc", *MAKER]
    kbuild.run([*command, *arguments], "a kernel of our own", NEEDS)


def _compile(tree: Path, objects: Path, made: Path) -> None:
    """Compile a kernel that is configured; its files appear whole or not at all."""
    jobs = len(os.sched_getaffinity(0))
    modules = "CONFIG_MODULES=y\n" in (objects / ".config").read_text()
    goals = ["bzImage", "modules"] if modules else ["bzImage"]
    _make(tree, objects, f"-j{jobs}", *goals)
    release = (objects / "include/config/kernel.release").read_text().strip()
    with tempfile.TemporaryDirectory(dir=made.parent, prefix=".new-") as name:
        new = Path(name) / "made"
        boot, folder = new / "boot", new / "lib/modules" / release
        boot.mkdir(parents=True)
        folder.mkdir(parents=True)
        shutil.copy(objects / "arch/x86/boot/bzImage", boot / f"vmlinuz-{release}")
        shutil.copy(objects / ".config", boot / f"config-{release}")
        shutil.copy(objects / "modules.builtin", folder)
        for module in objects.rglob("*.ko"):
            kbuild.strip(module, folder / module.name)
        new.rename(made)


def _forget_old(home: Path) -> None:
    """Remove what was not made lately: objects, and kernels."""
    made = sorted(home.glob("*.made"), key=_age)
    objects = sorted({*home.iterdir()} - {home / "source", *made}, key=_age)
    for folder in (*made[KEPT:], *objects[KEPT:]):
        shutil.rmtree(folder, ignore_errors=True)


def _age(path: Path) -> float:
    return -path.stat().st_mtime
