"""An engine that hands its listener's clients to a proxy by hand."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

from tests.support.limits import LIMIT_S, until
from vhost_user.engine import (
    ALL_EVENTS,
    Dial,
    Engine,
    EventKind,
    Socks5Proxy,
    UnixProxy,
)

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
IDENTITY = "spiffe://cluster.local/ns/default/sa/client"
THERE4, THERE6 = ("192.0.2.7", 8080), ("2001:db8::7", 8080)
OWN = (ipaddress.ip_address("10.0.0.5"), ipaddress.ip_address("fd00::5"))
ASKED4 = bytes.fromhex("050100 05010001 c0000207 1f90")
ASKED6 = bytes.fromhex("050100 05010004 20010db8000000000000000000000007 1f90")
METHOD = bytes([5, 0])
GRANTED = bytes([5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
GRANTED6 = bytes([5, 0, 0, 4]) + bytes(18)
GRANTED_NAME = bytes([5, 0, 0, 3, 255]) + bytes(255) + bytes(2)


class World:
    """An engine with a listener whose clients are handed over, and their proxy."""

    def __init__(self, engine, tmp_path):
        self.engine = engine
        self.events = []
        self._path = tmp_path / "proxy"
        self._open = contextlib.ExitStack()

    def proxy(self, family=socket.AF_UNIX, backlog=16):
        """A proxy's listening socket; its address."""
        self.listener = self._open.enter_context(socket.socket(family))
        if family == socket.AF_UNIX:
            self.listener.bind(str(self._path))
        else:
            self.listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        self.listener.listen(backlog)
        self.listener.setblocking(False)
        return self.listener.getsockname()[:2]

    def serve(self, proxy, there=THERE4, host="127.0.0.1"):
        """Have clients handed to `proxy`."""
        self.handoff = self.engine.add_handoff(proxy)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        ours = socket.create_server((host, 0), family=family)
        self.address = ours.getsockname()[:2]
        self.engine.add_listener(
            ours,
            Dial(there, handoff=self.handoff.id),
            on_event=self.events.append,
            want=ALL_EVENTS,
        )

    def unix(self, **more):
        self.proxy()
        self.serve(UnixProxy(str(self._path), OWN, IDENTITY), **more)

    def socks5(self, family=socket.AF_INET, **more):
        self.serve(Socks5Proxy(self.proxy(family)), **more)

    async def client(self):
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        sock = self._open.enter_context(socket.socket(family))
        sock.setblocking(False)
        with contextlib.suppress(ConnectionResetError):  # its end may be first
            await loop.sock_connect(sock, self.address)
        return sock

    async def accept(self):
        conn, _ = await asyncio.get_running_loop().sock_accept(self.listener)
        self._open.enter_context(conn)
        conn.setblocking(False)
        return conn

    async def failed(self, count=1):
        """The errors of connections that never were."""

        def found():
            return [e.error for e in self.events if e.kind is EventKind.FAILED]

        await until(lambda: len(found()) == count)
        return found()

    async def opened(self, count=1):
        await until(
            lambda: sum(e.kind is EventKind.OPENED for e in self.events) == count
        )

    def close(self):
        self._open.close()


def run(tmp_path, work):
    async def main():
        async with asyncio.timeout(LIMIT_S), Engine() as engine:
            world = World(engine, tmp_path)
            try:
                await work(world)
            finally:
                world.close()

    asyncio.run(main())


async def read(sock, size):
    """Exactly `size` bytes, or fewer and the end."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size and (more := await loop.sock_recv(sock, size - len(data))):
        data += more
    return data


async def send(sock, data):
    await asyncio.get_running_loop().sock_sendall(sock, data)
