"""Programs of Debian's that run here without being installed: peers to measure against.

The host's apt downloads a package and what it depends on into our cache, where they are
unpacked:

    peer/PACKAGE/VERSION    one folder a package, and its closure in it

A program of a suite whose C library is newer than the host's is started by its own
loader (`Program.command`).
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.image.images import BEGUN, cache_directory, locked
from fastpath.image.packages import Archive

if TYPE_CHECKING:
    from pathlib import Path

_PEERS: Final = "peer"
_LOADER: Final = "usr/lib/*/ld-linux-*.so.*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program of a package."""

    package: str
    suite: str = "sid"
    version: str = ""
    """How the package's has to begin; empty: any will do."""
    alone: bool = True
    """It runs with the host's libraries; else with those of its suite."""

    def path(self, name: str = "") -> Path:
        """Return the program, downloaded the first time.

        Args:
            name: of the file in /usr/bin, if it isn't the package's.

        Raises:
            FastpathError: the archive is out of reach, or has another version.
        """
        return self._folder() / "usr" / "bin" / (name or self.package)

    def command(self, name: str = "") -> list[str]:
        """Return how it is started.

        Raises:
            FastpathError: as for `path`.
        """
        program = self.path(name)
        if self.alone:
            return [str(program)]
        loader = next(self._folder().glob(_LOADER))
        return [str(loader), "--library-path", str(loader.parent), str(program)]

    def _folder(self) -> Path:
        parent = cache_directory() / _PEERS / self.package
        with locked(cache_directory() / "lock"):
            there = sorted(parent.glob(f"{self.version}*"))
            return there[-1] if there else self._unpack(parent)

    def _unpack(self, parent: Path) -> Path:
        archive = Archive(cache_directory(), self.suite)
        archive.update()
        found = archive.resolve([self.package])
        own = next(each for each in found if each.name == self.package)
        if not own.version.startswith(self.version):
            raise FastpathError(
                f"{self.package} {self.version}",
                f"Debian {self.suite} has {own.version}",
                "measure against that one: change the version where it is named",
            )
        debs = archive.fetch([own] if self.alone else found, lambda _share: None)
        parent.mkdir(parents=True, exist_ok=True)
        # where `locked` looks for what a killed process has begun
        with tempfile.TemporaryDirectory(dir=parent.parent, prefix=BEGUN) as name:
            begun = parent.parent / name / own.version
            begun.mkdir()
            for deb in debs:
                _extract(deb, begun)
            return begun.rename(parent / own.version)


def _extract(deb: Path, folder: Path) -> None:
    argv = ["dpkg-deb", "-x", str(deb), str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FastpathError(
            f"cannot unpack {deb.name}",
            done.stderr.strip() or f"dpkg-deb exits with {done.returncode}",
            f"remove {deb}, so that it is downloaded again",
        )


VHOST_DEVICE_VSOCK: Final = Program(package="vhost-device-vsock", version="0.3.0")
"""rust-vmm's back-end. The targets of bench/ are ratios to this version: with another
one bench/baseline.json changes, too."""
PASST: Final = Program(package="passt", alone=False)
"""A VM's network in user space."""
