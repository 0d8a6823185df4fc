"""Programs of other Debian suites, unpacked into the cache and run from there.

Each has all the libraries that it depends on beside it, the dynamic loader among
them, so it runs on a host with another libc, or with none of its libraries.
Nothing is installed.

    trees/NAME-VERSIONS/    the packages' files, and the script that starts it
    trees/NAME              text: the folder that was unpacked last

A program stays at the versions that were found first, until `refresh`.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.vm import packages
from fastpath.vm.images import HASH_LEN, cache_directory, locked

if TYPE_CHECKING:
    from collections.abc import Sequence

LIBRARIES: Final = (Path("lib/x86_64-linux-gnu"), Path("usr/lib/x86_64-linux-gnu"))
LOADER: Final = "ld-linux-x86-64.so.2"
START: Final = "start"
VERSION: Final = "version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program of a Debian package."""

    name: str
    """Ours, for the cache."""
    suite: str
    package: str
    path: str | None
    """Where it is in its package, without a leading slash; None: the package has the
    libraries, and what they run is the first argument."""
    arguments: tuple[str, ...] = ()
    """Those that it always gets; `{root}` is the folder it is unpacked in."""
    prefix: tuple[str, ...] = ()
    """Program of the host, and arguments, that starts it."""


QEMU_10: Final = Program(
    name="qemu-10",
    suite="bookworm-backports",
    package="qemu-system-x86",
    path="usr/bin/qemu-system-x86_64",
    arguments=("-L", "{root}/usr/share/qemu", "-L", "{root}/usr/share/seabios"),
)
"""QEMU 10.0."""

UML: Final = Program(
    name="uml",
    suite="sid",
    package="libc6",
    path=None,
    # It would execute /proc/self/exe to get this, and that is the loader.
    prefix=("setarch", "--addr-no-randomize"),
)
"""What a user-mode Linux kernel of an image needs."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A program that is in the cache."""

    start: Path
    """Executable that becomes the program, with the arguments it is given."""
    version: str
    """Of its Debian package."""


def unpack(what: Program, *, refresh: bool = False) -> Unpacked:
    """Download and unpack a program, or return what the cache has.

    Blocks. Concurrent calls, also of other processes, wait for each other.

    Args:
        what: the program.
        refresh: look for a newer version.

    Raises:
        FastpathError: the package archive is out of reach or lacks it.
    """
    trees = cache_directory() / "trees"
    trees.mkdir(parents=True, exist_ok=True)
    pointer = trees / what.name
    with locked(cache_directory() / "lock"):
        if not refresh and pointer.exists():
            folder = trees / pointer.read_text().strip()
            if folder.exists():
                return _open(folder)
        archive = packages.Archive(cache_directory(), what.suite)
        archive.update()
        found = archive.resolve([what.package])
        debs = archive.fetch(found, lambda _share: None)
        text = f"{what}" + "".join(f"{deb.name}\n" for deb in debs)
        digest = hashlib.sha256(text.encode()).hexdigest()[:HASH_LEN]
        folder = trees / f"{what.name}-{digest}"
        if not folder.exists():
            version = next(each.version for each in found if each.name == what.package)
            _make(what, version, debs, folder)
        pointer.write_text(folder.name + "\n")
        for other in trees.glob(f"{what.name}-{'?' * HASH_LEN}"):
            if other != folder:
                shutil.rmtree(other)
        return _open(folder)


def script(what: Program, root: Path, loader: Path) -> str:
    """The shell script that starts a program.

    Args:
        what: the program.
        root: folder that it is unpacked in.
        loader: the dynamic loader in there, relative to `root`.
    """
    words = [
        *what.prefix,
        f"{root / loader}",
        *("--library-path", ":".join(f"{root / each}" for each in LIBRARIES)),
        *([f"{root / what.path}"] if what.path else []),
        *(each.replace("{root}", str(root)) for each in what.arguments),
    ]
    return f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'


def _open(folder: Path) -> Unpacked:
    return Unpacked(folder / START, (folder / VERSION).read_text().strip())


def _make(what: Program, version: str, debs: Sequence[Path], folder: Path) -> None:
    """Write a program's folder; it appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as name:
        new = Path(name) / "tree"
        for deb in debs:
            command = ["dpkg-deb", "-x", str(deb), str(new)]
            if subprocess.run(command, check=False).returncode != 0:
                raise FastpathError(f"package {deb}", "is damaged", f"rm {deb}")
        loaders = [
            each / LOADER for each in LIBRARIES if (new / each / LOADER).exists()
        ]
        if not loaders or not (new / (what.path or loaders[0])).exists():
            raise FastpathError(f"package {what.package}", f"has no {what.path}")
        start = new / START
        start.write_text(script(what, folder, loaders[0]))
        start.chmod(0o755)
        (new / VERSION).write_text(version + "\n")
        new.rename(folder)
