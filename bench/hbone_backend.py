"""A back-end whose guest reaches another engine by HBONE, and by plain TCP.

    python -m bench.hbone_backend SOCKET POLL_US

Two engines, of two nodes: the guest's, with a pool, and one with a gate and plain
listeners. What the second one does by itself (echo, discard, chargen) is behind both
ways, so what differs is TLS and HTTP/2, on both nodes.

Another guest, at SOCKET and "2", has an echo on its own node. The port that is printed
is a listener's whose clients get a tunnel each, to the same echo.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support import pki
from vhost_user.backend import Backend
from vhost_user.engine import Chargen, Dial, Discard, Echo, Engine, EventKind, Hbone
from vhost_user.hbone import Gate, Headers, Pool, Tls
from vhost_user.vsock.device import VsockDevice

if TYPE_CHECKING:
    from vhost_user.engine import Event, Target

CID: Final = 3
BESIDE: Final = 4
"""The other guest."""
IDLE_S: Final = 0.2
"""How long a tunnel of one client is there behind it."""
TCP, HBONE = 3000, 4000
"""To be added to what the other engine does: a vsock port."""
ECHO, DISCARD, CHARGEN = 7, 9, 19
DOES: Final[dict[int, Target]] = {
    ECHO: Echo(),
    DISCARD: Discard(),
    CHARGEN: Chargen(),
}


def listening() -> socket.socket:
    """Return a socket that listens on a port of its own."""
    return socket.create_server(("127.0.0.1", 0), backlog=4096)


def certificates(engine: Engine, ca: pki.Ca, uri: str) -> Tls:
    """Put a certificate of a CA into an engine."""
    leaf = ca.issue(uri)
    return Tls(engine, chain=leaf.chain, key=leaf.key, roots=ca.roots)


def open_gate(engine: Engine, ca: pki.Ca) -> tuple[str, int]:
    """Take tunnels, and answer each CONNECT by its port: the first to it in Python."""

    def on_event(event: Event) -> None:
        if event.kind is EventKind.REQUEST:
            request = gate.request(event.conn)
            assert request is not None
            port = int(request.authority.rpartition(":")[2])
            gate.decide(event.conn, DOES[port], tag=port)
            engine.answer(event.conn, DOES[port])

    sock = listening()
    address: tuple[str, int] = sock.getsockname()
    gate = Gate(
        engine,
        sock,
        certificates(engine, ca, pki.DB),
        "cluster.local",
        on_event=on_event,
    )
    return address


def ignore(_event: Event) -> None:
    """Nobody wants to know."""


def tunnel_each(engine: Engine, gate: tuple[str, int], tls: Tls, echo: Headers) -> int:
    """Make a tunnel for each client of a listener; return its port."""
    pool = Pool(
        engine,
        tls,
        gate,
        [pki.DB],
        on_event=ignore,
        max_streams=1,
        max_tunnels=4096,
        idle_s=IDLE_S,
    )
    sock = listening()
    port: int = sock.getsockname()[1]
    target = Hbone(pool.id, echo.id)
    engine.add_listener(sock, target, on_event=ignore, want=frozenset())
    return port


async def serve(path: Path, poll_us: int) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ca = pki.Ca()
    async with contextlib.AsyncExitStack() as stack:
        near = await stack.enter_async_context(Engine(poll_us=poll_us))
        far = await stack.enter_async_context(Engine(poll_us=poll_us))
        gate = open_gate(far, ca)
        device = VsockDevice(near, guest_cid=CID, on_event=ignore)
        stack.callback(device.close)
        tls = certificates(near, ca, pki.WEB)
        pool = Pool(near, tls, gate, [pki.DB], on_event=ignore)
        headers: dict[int, Headers] = {}
        for port, target in DOES.items():
            sock = listening()
            device.handle.route(TCP + port, Dial(sock.getsockname()))
            far.add_listener(sock, target, on_event=ignore, want=frozenset())
            headers[port] = Headers(near, authority=f"10.0.0.9:{port}")
            device.handle.route(HBONE + port, Hbone(pool.id, headers[port].id))
        beside = VsockDevice(near, guest_cid=BESIDE, on_event=ignore)
        stack.callback(beside.close)
        beside.handle.route(ECHO, Echo())
        for where, which in ((path, device), (Path(f"{path}2"), beside)):
            backend = Backend(where, which, name="bench")
            stack.push_async_callback(backend.close)
            await backend.start()
        sys.stdout.write(f"{tunnel_each(near, gate, tls, headers[ECHO])}\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))
