"""The server behind ztunnel: an echo over plain TCP, in a process of its own.

The C engine answers, so that what a connection through ztunnel costs is ztunnel
and the path and not a slow server. Serves until SIGTERM.

    python -m fastpath.commands.compare.server ADDRESS PORT READY_FD

Spec: RFC 862 (echo).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

from vhost_user.engine import Echo, Engine


async def serve(address: str, port: int, ready_fd: int) -> None:
    """Listen, say so with a line on `ready_fd`, and serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    listener = socket.create_server((address, port), backlog=1024)
    async with Engine() as engine:
        engine.add_listener(
            listener, Echo(), on_event=lambda _event: None, want=frozenset()
        )
        os.write(ready_fd, b"\n")
        os.close(ready_fd)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
