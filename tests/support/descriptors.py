"""How many descriptors this process has open, without those that nobody can use."""

from __future__ import annotations

import gc
from pathlib import Path


def descriptors() -> int:
    """The number of open descriptors.

    Garbage of earlier tests is collected first: a socket in a reference cycle is closed
    whenever the collector gets there, which can be between two counts.
    """
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))
