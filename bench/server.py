"""Echo (7), sink (9) and source (19) on unix sockets, for the native benchmarks.

`python bench/server.py PATH` listens on PATH_7, PATH_9 and PATH_19 until SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

from vhost_user.engine import Chargen, Discard, Echo, Engine, Target

PORTS: dict[int, Target] = {7: Echo(), 9: Discard(), 19: Chargen()}


async def serve(path: str) -> None:
    """Listen until SIGTERM."""
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    async with Engine(poll_us=0) as engine:
        for port, target in PORTS.items():
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(f"{path}_{port}")
            sock.listen(4096)
            engine.add_listener(
                sock, target, on_event=lambda _event: None, want=frozenset()
            )
        await done.wait()


asyncio.run(serve(sys.argv[1]))
