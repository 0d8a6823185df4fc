"""Programs of other Debian suites, unpacked into the cache and run from there.

Each has all the libraries that it depends on beside it, the dynamic loader among
them, so it runs on a host with another libc, or with none of its libraries.
Nothing is installed.

    trees/NAME-CONTENT/     the packages' files, and the script that starts it
    trees/NAME.INPUTS       text: the folder that these inputs gave last

INPUTS is a hash of what is wanted and of this file; CONTENT is one of INPUTS and the
packages' versions.

A program stays at the versions that were found first, until `refresh`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.image import packages
from fastpath.image.images import HASH_LEN, cache_directory, locked
from fastpath.image.tree import INTERPRETER

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
    """Where it is in its package, without a leading slash; None: the package has only
    the libraries for an image's user-mode kernel, which is the first argument."""
    arguments: tuple[str, ...] = ()
    """Those that it always gets; `{root}` is the folder it is unpacked in."""
    wanted: str = ""
    """How its version has to begin; empty: any will do."""


VHOST_DEVICE_VSOCK: Final = Program(
    name="vhost-device-vsock",
    suite="sid",
    package="vhost-device-vsock",
    path="usr/bin/vhost-device-vsock",
    wanted="0.3.0",
)
"""rust-vmm's back-end. The targets of bench/ are ratios to this version: with another
one bench/baseline.json changes, too."""

PASST: Final = Program(
    name="passt", suite="sid", package="passt", path="usr/bin/passt.avx2"
)
"""A VM's network in user space."""

PASST_PLAIN: Final = dataclasses.replace(
    PASST, name="passt-plain", path="usr/bin/passt"
)
"""The same for CPUs without AVX2."""


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
    inputs = _hash(f"{what}", Path(__file__).read_text(encoding="utf-8"))
    pointer = trees / f"{what.name}.{inputs}"
    with locked(cache_directory() / "lock"):
        if not refresh and pointer.exists():
            folder = trees / pointer.read_text().strip()
            if folder.exists():
                return _open(folder)
        archive = packages.Archive(cache_directory(), what.suite)
        archive.update()
        found = archive.resolve([what.package])
        _check_version(what, found)
        debs = archive.fetch(found, lambda _share: None)
        folder = trees / f"{what.name}-{_hash(inputs, *(deb.name for deb in debs))}"
        if not folder.exists():
            version = next(each.version for each in found if each.name == what.package)
            _make(what, version, debs, folder)
        for old in trees.glob(f"{what.name}.{'?' * HASH_LEN}"):
            old.unlink()
        for old in trees.glob(f"{what.name}-{'?' * HASH_LEN}"):
            if old != folder:
                shutil.rmtree(old)
        pointer.write_text(folder.name + "\n")
        return _open(folder)


def _check_version(what: Program, found: Sequence[packages.Package]) -> None:
    version = next(each.version for each in found if each.name == what.package)
    if not version.startswith(what.wanted):
        raise FastpathError(
            f"{what.package} {what.wanted}",
            f"Debian {what.suite} has {version}",
            "measure against that one: change it in fastpath/image/programs.py",
        )


def script(what: Program, root: Path, loader: Path) -> str:
    """The shell script that starts a program.

    Args:
        what: the program.
        root: folder that it is unpacked in.
        loader: the dynamic loader in there, relative to `root`.
    """
    libraries = ":".join(f"{root / each}" for each in LIBRARIES)
    if what.path is None:  # `Tree` made the folder's loader the kernel's
        return (
            f"#!/bin/sh\ncd {shlex.quote(str(root))}\n"
            f'LD_LIBRARY_PATH={shlex.quote(libraries)} exec "$@"\n'
        )
    words = [
        f"{root / loader}",
        *("--library-path", libraries),
        f"{root / what.path}",
        *(each.replace("{root}", str(root)) for each in what.arguments),
    ]
    return f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n'


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:HASH_LEN]


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
        (new / INTERPRETER).symlink_to(loaders[0])
        start = new / START
        start.write_text(script(what, folder, loaders[0]))
        start.chmod(0o755)
        (new / VERSION).write_text(version + "\n")
        new.rename(folder)
