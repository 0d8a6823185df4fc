"""5,000 connections through one pool, each of which is used over and over.

    python -m bench.hbone_crowd SOCKET

Of a guest of its own; says `ready` when all are there, and runs until it is killed,
when nobody else wants its core.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from bench.harness import Guest
from bench.hbone_backend import ECHO, HBONE

MANY: Final = 5000
AT_ONCE: Final = 1000


def main(path: Path) -> None:
    """Go on until we are killed."""
    guest = Guest(path)
    first, *_ = (guest.connect(HBONE + ECHO, AT_ONCE) for _ in range(MANY // AT_ONCE))
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        guest.rtt_ns(first, 64, MANY, MANY)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
