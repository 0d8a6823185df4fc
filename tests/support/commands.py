"""Commands of `fastpath` as processes of their own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Final

FASTPATH: Final = (sys.executable, "-m", "fastpath")


@contextlib.contextmanager
def said_ready(*words):
    """A command whose program has said `ready`; it is killed at the end."""
    process = subprocess.Popen(
        [*FASTPATH, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
