"""A bound on the CPU time that one input may take.

What a guest sends is handled on the event loop that serves all sandboxes. So an input
that costs much is a finding, as one that raises. CPU time is the process's own, so
other processes don't count; how fast this machine runs Python is measured first.
"""

from __future__ import annotations

import contextlib
import gc
import struct
import time

LIMIT_S = 0.1
"""On a machine that does the reference work in `REFERENCE_S`."""
REFERENCE_S = 0.01


def _reference():
    """Some work of the kind that is bounded; return its CPU time."""
    data = bytes(range(256)) * 16
    begin = time.process_time()
    found = {}
    for at in range(4000):
        (number,) = struct.unpack_from("!H", data, at)
        found[number] = data[at : at + 8].lower()
        str(number).partition("1")
    return time.process_time() - begin


class Budget:
    """Bounds what it is asked to measure.

    Args:
        limit_s: CPU time an input, on the machine that `REFERENCE_S` is of.
    """

    def __init__(self, limit_s=LIMIT_S):
        slowness = min(_reference() for _ in range(5)) / REFERENCE_S
        self.limit_s = limit_s * max(1.0, slowness)

    @contextlib.contextmanager
    def measured(self):
        """Check that what is done here is done in time."""
        gc.collect(0)
        gc.disable()  # whose garbage it is depends on the inputs before
        begin = time.process_time()
        try:
            yield
        finally:
            used = time.process_time() - begin
            gc.enable()
        assert used <= self.limit_s, f"{used:.3f} s of CPU for one input"
