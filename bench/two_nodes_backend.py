"""Node b of bench_two_nodes.py: a gate, and servers that its peers reach.

    python -m bench.two_nodes_backend FOLDER IP

FOLDER has chain.pem, key.pem and roots.pem. A CONNECT goes to its authority by TCP, as
Istio's ztunnel has it; the first one of a kind is decided here, the others in C.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.netns.mesh_world import HBONE
from vhost_user.engine import Dial, Engine, EventKind
from vhost_user.hbone import Gate, Tls

if TYPE_CHECKING:
    from vhost_user.engine import Event


async def serve(folder: Path, ip: str) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    pems = {it: (folder / f"{it}.pem").read_bytes() for it in ("chain", "key", "roots")}
    tags = itertools.count(1)

    def on_event(event: Event) -> None:
        if event.kind is EventKind.REQUEST and (said := gate.request(event.conn)):
            host, _, port = said.authority.rpartition(":")
            target = Dial((host, int(port)))
            gate.decide(event.conn, target, tag=next(tags))
            engine.answer(event.conn, target)

    async with Engine() as engine:
        sock = socket.create_server((ip, HBONE), backlog=1024)
        gate = Gate(
            engine,
            sock,
            Tls(engine, **pems),
            "cluster.local",
            on_event=on_event,
            want=frozenset(),
        )
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
