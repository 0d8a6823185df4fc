"""Which descriptors this process has open, without those that nobody can use.

A test looks at which ones it has opened, not at how many there are: a thread of an
earlier test may close its own between two counts.
"""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

from tests.support.limits import wait_until


def descriptors() -> frozenset[tuple[int, str]]:
    """The open descriptors' numbers, and what they are of: `socket:[4711]`.

    Garbage of earlier tests is collected first: a socket in a reference cycle is closed
    whenever the collector gets there, which can be between two looks.
    """
    gc.collect()
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the directory's own, or closed
            found.add((int(path.name), str(path.readlink())))
    return frozenset(found)


def check_closed(before: frozenset[tuple[int, str]]) -> None:
    """Check that what was opened since `before` is closed, or will be by a thread."""
    wait_until(lambda: not descriptors() - before, what="the end of its descriptors")
