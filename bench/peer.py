"""The back-end that ours is measured against: Debian's vhost-device-vsock.

The binary package is in Debian sid and runs on Debian 12. It is downloaded by the
host's own apt into our cache and unpacked there; nothing is installed.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.image.images import cache_directory
from fastpath.image.packages import Archive

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE: Final = "vhost-device-vsock"
SUITE: Final = "sid"
VERSION: Final = "0.3.0"
"""The targets of the benchmarks are ratios to this one."""


def binary() -> Path:
    """Return the peer's program, downloaded the first time.

    Raises:
        FastpathError: the archive is out of reach, or has another version.
    """
    folder = cache_directory() / "peer" / VERSION
    program = folder / "usr" / "bin" / PACKAGE
    if not program.exists():
        archive = Archive(cache_directory(), SUITE)
        archive.update()
        found = [each for each in archive.resolve([PACKAGE]) if each.name == PACKAGE]
        if not found or not found[0].version.startswith(VERSION):
            have = found[0].version if found else "none"
            raise FastpathError(
                f"the benchmarks' peer, {PACKAGE} {VERSION}",
                f"Debian {SUITE} has {have}",
                "measure against that one: change VERSION in bench/peer.py, and "
                "bench/baseline.json with it",
            )
        (deb,) = archive.fetch(found, lambda _share: None)
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg", "-x", deb, folder], check=True)
    return program
