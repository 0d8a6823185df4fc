"""A whole ztunnel with one sandbox, and peers in the mesh by python-h2.

The peers have addresses of their own in 127.0.0.0/8, where port 15008 is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import itertools
import os
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Self

import pytest

from fastpath.identity import Identity
from fastpath.mesh.authority import Authority
from fastpath.mesh.contexts import server_context
from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel import config as configuration
from fastpath.ztunnel.model import (
    Certificates,
    Config,
    Fastpath,
    NamespacedHostname,
    NetworkAddress,
    Protocol,
    Sandbox,
    Service,
    Workload,
)
from fastpath.ztunnel.process import Ztunnel
from fastpath.ztunnel.reload import Mesh
from tests.conformance.peers import Peer
from tests.support.limits import LIMIT_S
from tests.unit.fastpath import tsi_guest
from vhost_user.vsock.packet import Op

if TYPE_CHECKING:
    from pathlib import Path

    from fastpath.mesh.material import Material

HBONE_PORT = 15008
CLIENT = Identity("cluster.local", "default", "client")
WEB = Identity("cluster.local", "prod", "web")
OTHER = Identity("cluster.local", "prod", "other")
NAME = NamespacedHostname("default", "web.default")
VIP = ("10.96.0.1", 80)
LIFE = dt.timedelta(hours=1)
_numbers = itertools.count()


def own_address() -> str:
    """An address on loopback that no other test uses now."""
    number = next(_numbers)
    return f"127.{100 + number % 100}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"


class Server:
    """A peer's port 15008."""

    def __init__(
        self,
        ca: Authority,
        identity: Identity = WEB,
        ip: str = "",
        sock: socket.socket | None = None,
    ) -> None:
        self.material: Material = ca.workload(identity, LIFE, dt.datetime.now(dt.UTC))
        self._context = server_context(self.material)
        self._stack = contextlib.ExitStack()
        self._sock = self._stack.enter_context(sock or _listening(ip))
        self._sock.settimeout(LIMIT_S)
        self.ip: str = self._sock.getsockname()[0]

    def accept(self) -> Peer:
        """Take a tunnel."""
        sock, self.client = self._sock.accept()
        sock.settimeout(LIMIT_S)
        self._stack.enter_context(sock)
        tls = self._context.wrap_socket(sock, server_side=True)
        return Peer(self._stack.enter_context(tls), client=False)

    def refuse(self) -> None:
        """Take a tunnel whose client does not want us."""
        with contextlib.suppress(OSError):
            self.accept().gone()

    def stop(self) -> None:
        """Listen no more."""
        self._sock.close()

    def close(self) -> None:
        self._stack.close()


def _listening(ip: str) -> socket.socket:
    while True:
        with contextlib.suppress(OSError):
            return socket.create_server((ip or own_address(), HBONE_PORT), backlog=64)


class World:
    """The configuration; workload `web` is at `server.ip`."""

    def __init__(self, tmp_path: Path, **certificates: Any) -> None:
        self.path = tmp_path
        now = dt.datetime.now(dt.UTC)
        self.ca = Authority.open(tmp_path / "ca", "cluster.local", now)
        self.server = Server(self.ca)
        self.certificates = Certificates(embedded=tmp_path / "ca", **certificates)
        self.allow = ["127.0.0.0/8", "10.96.0.0/16"]
        self.sandbox: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.close()

    @property
    def there(self) -> tuple[str, int]:
        """Where the program behind `web` listens."""
        return self.server.ip, 8080

    def web(self, **fields: Any) -> Workload:
        """The peer as a workload."""
        web = Workload(
            workload_ips=(ip_address(self.server.ip),),
            namespace=WEB.namespace,
            name="web-1",
            uid="web-1",
            service_account=WEB.service_account,
            workload_name="web",
            protocol=Protocol.HBONE,
            services={NAME: {80: 8080}},
        )
        return dataclasses.replace(web, **fields)

    def service(self, **fields: Any) -> Service:
        """The service that it is an endpoint of."""
        service = Service(
            name="web",
            namespace="default",
            hostname=NAME.hostname,
            vips=(NetworkAddress("", ip_address(VIP[0])),),
            ports={80: 8080},
        )
        return dataclasses.replace(service, **fields)

    def config(self, *more: Workload, web: Workload | None = None, **own: Any):
        """All of it."""
        client = Workload(
            workload_ips=(ip_address("10.0.0.2"), ip_address("fd00::2")),
            namespace="default",
            name="client",
            service_account="client",
            workload_name="client",
            workload_type="deployment",
            canonical_name="client-app",
            canonical_revision="v1",
        )
        sandbox = Sandbox(
            name="client",
            workload="default/client",
            socket=self.path / "s",
            cid=3,
            egress=Egress(allow=tuple(map(Rule.parse, self.allow))),
            **self.sandbox,
        )
        service = own.pop("service", None) or self.service()
        fields: dict[str, Any] = {
            "sandboxes": (sandbox,),
            "certificates": self.certificates,
            "access_log": self.path / "access.log",
        } | own
        config = Config(
            workloads=(client, *([web] if web else [self.web()]), *more),
            services=(service,),
            fastpath=Fastpath(**fields),
        )
        configuration.check(config)
        return config

    def run(self, play, *more, **fields):
        """Run `play(run)` beside the process; return the access log."""
        config = self.config(*more, **fields)

        def body(loop, ztunnel):
            with tsi_guest.Guest(config.fastpath.sandboxes[0]) as guest:
                play(Run(self, loop, ztunnel, guest))

        async def main():
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(LIMIT_S), Ztunnel(config) as ztunnel:
                await asyncio.to_thread(body, loop, ztunnel)
                await tsi_guest.settled(ztunnel)

        asyncio.run(main())
        return config.fastpath.access_log.read_text().splitlines()


@dataclasses.dataclass
class Run:
    """A run of it, seen from a thread."""

    world: World
    loop: asyncio.AbstractEventLoop
    ztunnel: Any
    guest: Any

    @property
    def pools(self):
        (outbound,) = self.ztunnel._outbounds
        return outbound._pools

    def call(self, function, *args):
        """Call in the event loop; return what that returns."""

        async def called():
            return function(*args)

        future = asyncio.run_coroutine_threadsafe(called(), self.loop)
        return future.result(LIMIT_S)

    def set_mesh(self, config: Config) -> None:
        """Let another mesh hold."""
        self.call(self.ztunnel._set_mesh, Mesh.of(config))

    def connect(self, destination=None):
        """Connect by a new tunnel; return the guest's end, the tunnel, its stream."""
        conn = self.guest.request(destination or self.world.there)
        peer = self.world.server.accept()
        return conn, peer, self.take(conn, peer)

    def again(self, peer, destination=None):
        """Connect by a tunnel that there is; return the guest's end and the stream."""
        conn = self.guest.request(destination or self.world.there)
        return conn, self.take(conn, peer)

    def take(self, conn, peer):
        """Answer CONNECT by 200."""
        stream, self.headers = peer.request()
        peer.answer(stream)
        conn.expect(Op.RESPONSE)
        return stream

    def echoes(self, conn, peer, stream, data=b"ping") -> None:
        """Bytes go both ways."""
        conn.send(data)
        assert peer.read(stream, len(data)) == data
        peer.send(stream, data[::-1])
        assert conn.receive_bytes(len(data)) == data[::-1]


def only(lines):
    """The one line of the access log, without its time."""
    (line,) = lines
    return line.partition("\t")[2]


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as world:
        yield world
