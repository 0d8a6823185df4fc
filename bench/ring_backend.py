"""A back-end whose guest reaches one server by rings, and another by unix sockets.

    python -m bench.ring_backend SOCKET HOST RING

Vsock port `RING` is offered to the process at RING (bench/host/ringserver.c), any other
reaches the unix socket HOST_PORT (bench/host/server.c).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import Final

from vhost_user.backend import Backend
from vhost_user.engine import Engine, Ring, Unix
from vhost_user.vsock.device import VsockDevice

RING: Final = 2007
CID: Final = 3
POLL_US: Final = 200
MAX_QUEUED: Final = 1 << 30
"""So that 1,000 connections have rings of their full size."""


async def serve(path: Path, host: str, ring: Path) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(poll_us=POLL_US))
        peer = engine.add_peer(ring, identity="spiffe://cluster.local/ns/b/sa/b")
        device = VsockDevice(
            engine, guest_cid=CID, on_event=print, max_queued_bytes=MAX_QUEUED
        )
        stack.callback(device.close)
        device.handle.route(None, Unix(host))
        device.handle.route(RING, Ring(peer.id, ("192.0.2.1", 80)))
        backend = Backend(path, device, name="bench")
        stack.push_async_callback(backend.close)
        await backend.start()
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
