"""Tunnels that are made one after the other: clients of a listener that gets one each.

    python -m bench.hbone_shaker PORT

Runs until it is killed, when nobody else wants its core, with so many under way as
`AT_ONCE` says.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from typing import Final

AT_ONCE: Final = 32


def make_tunnels(port: int, count: int) -> float:
    """Make tunnels at once, and end them; return the seconds until all were there."""
    with contextlib.ExitStack() as stack:
        begin = time.perf_counter()
        socks = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(count)
        ]
        for sock in socks:
            sock.sendall(b"x")
        for sock in socks:
            if sock.recv(1) != b"x":
                raise ConnectionError("a tunnel failed")
        return time.perf_counter() - begin


def main(port: int) -> None:
    """Go on until we are killed."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        make_tunnels(port, AT_ONCE)
        time.sleep(0.25)  # they end when nobody has used them for 0.2 s


if __name__ == "__main__":
    main(int(sys.argv[1]))
