"""Ports for programs that listen themselves.

The kernel gives a port that was free a moment ago to whoever asks next: another test's
connection, say. So these are below those that it gives (ip_local_port_range of ip(7)),
and two processes look for theirs at different places.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from typing import Final

FIRST: Final = 20_000
COUNT: Final = 12_000
_numbers = itertools.count(101 * os.getpid())


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port on which nobody listens, and which nobody else is told of."""
    for number in itertools.islice(_numbers, COUNT):
        port = FIRST + number % COUNT
        with contextlib.suppress(OSError), socket.create_server((host, port)):
            return port
    raise AssertionError(f"no port of {host} is free")
