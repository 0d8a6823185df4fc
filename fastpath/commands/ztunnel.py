"""`fastpath ztunnel`: the ztunnel process, until SIGTERM.

It stays, and there is one on each node: what it imports is memory for as long.
tests/unit/fastpath/test_footprint.py names what is not to be in it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from fastpath.errors import FastpathError
from fastpath.ztunnel import serving

if TYPE_CHECKING:
    from pathlib import Path


def run(config: Path, ready_fd: int | None) -> int:
    """Serve, and return the exit status.

    Args:
        config: our settings, which name Istio's local file.
        ready_fd: gets a line when the process is ready.

    Raises:
        FastpathError: the configuration is not good, or something is missing.
    """
    if ready_fd is not None:
        _check_writable(ready_fd)
    return asyncio.run(serving.serve(config, ready_fd=ready_fd))


def _check_writable(fd: int) -> None:
    """Refuse a descriptor that can't take the ready line."""
    try:
        os.write(fd, b"")
    except OSError as exc:
        raise FastpathError(
            f"--ready-fd {fd}",
            f"{exc.strerror}",
            "name a descriptor that is open for writing, such as 3 with 3>FILE",
        ) from None
