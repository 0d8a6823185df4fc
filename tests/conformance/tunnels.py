"""Pools and gates of an engine, and what makes connections of them."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any, Self

from tests.conformance.links import wait_for
from tests.conformance.peers import Peer
from tests.conformance.threads import TIMEOUT_S
from tests.support import pki
from vhost_user.engine import Event, EventKind, Hbone
from vhost_user.hbone import Gate, Headers, Pool, Reason, Tls

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from tests.conformance.conftest import Host


class Events:
    """What a pool, a gate or a listener told."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.all: list[Event] = []
        self.add = self.all.append

    def wait(self, kind: EventKind, count: int = 1) -> Event:
        """Wait for the n-th event of a kind."""
        wait_for(lambda: len(self.of(kind)) >= count, f"{count} {kind.name}")
        return self.of(kind)[count - 1]

    def of(self, kind: EventKind) -> list[Event]:
        """Return the events of a kind so far."""
        return [event for event in self._host.call(self.all.copy) if event.kind is kind]

    def reason(self, count: int = 1) -> Reason:
        """Wait for the n-th TUNNEL event; return its reason."""
        return Reason(self.wait(EventKind.TUNNEL, count).reason)


class Mesh:
    """Certificates, pools and gates on a host's engine."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self.folder = folder
        self.ca = pki.Ca()
        self._sockets = contextlib.ExitStack()
        """What the test made: closed behind it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sockets.close()

    def kept(self, sock: Any) -> Any:
        """Have a socket closed behind the test."""
        return self._sockets.enter_context(sock)

    def dial(self, address: tuple[str, int]) -> socket.socket:
        """Connect by TCP."""
        sock = socket.create_connection(address, timeout=TIMEOUT_S)
        self.kept(sock)
        return sock

    def accept(self, server: socket.socket) -> socket.socket:
        """Take a client of a listening socket."""
        sock: socket.socket = self.kept(server.accept()[0])
        sock.settimeout(TIMEOUT_S)
        return sock

    def call(self, function: Any, *args: Any, **options: Any) -> Any:
        return self.host.call(lambda: function(*args, **options))

    def tls(self, *uris: str, ca: pki.Ca | None = None, crls: bytes = b"") -> Tls:
        """Put certificates of our CA into the engine."""
        leaf = (ca or self.ca).issue(*uris)
        made: Tls = self.call(
            Tls,
            self.host.engine,
            chain=leaf.chain,
            key=leaf.key,
            roots=self.ca.roots,
            crls=crls,
        )
        return made

    def context(self, *uris: str, server: bool = False, **options) -> ssl.SSLContext:
        """Return a context of Python's for the other end."""
        return pki.context(
            self.folder, self.ca.issue(*uris), self.ca.roots, server=server, **options
        )

    def gate(self, **options) -> OurGate:
        return OurGate(self, **options)

    def pool(self, address=None, **options) -> OurPool:
        return OurPool(self, address, **options)


class OurGate:
    """A gate of ours, reached by `address`."""

    def __init__(
        self,
        mesh: Mesh,
        *,
        domain: str = "cluster.local",
        tls: Tls | None = None,
        **rest,
    ) -> None:
        self._mesh = mesh
        self.events = Events(mesh.host)
        sock = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = sock.getsockname()
        self.gate = mesh.call(
            Gate,
            mesh.host.engine,
            sock,
            tls or mesh.tls(pki.DB),
            domain,
            on_event=self.events.add,
            **rest,
        )

    def dial(self, *uris: str, **options) -> Peer:
        """Make a tunnel by python-h2."""
        context = self._mesh.context(*(uris or (pki.WEB,)))
        sock = context.wrap_socket(self._mesh.dial(self.address))
        return Peer(self._mesh.kept(sock), client=True, **options)

    def asked(self, count: int = 1) -> int:
        """Wait for the n-th CONNECT; return the connection."""
        return self.events.wait(EventKind.REQUEST, count).conn

    def request(self, conn: int):
        return self._mesh.call(self.gate.request, conn)

    def answer(self, conn: int, target) -> None:
        assert self._mesh.call(self._mesh.host.engine.answer, conn, target)

    def socket(self, conn: int) -> socket.socket:
        """Answer by one end of a socket pair; return the other one."""
        ours: socket.socket
        ours, theirs = self._mesh.host.pair()
        self._mesh.kept(ours)
        assert self._mesh.call(self._mesh.host.engine.answer_fd, conn, theirs)
        return ours

    def stats(self):
        return self._mesh.call(self.gate.stats)


class OurPool:
    """A pool of ours, and a listener whose clients get its streams.

    Without an address it goes to a listening socket, whose tunnels `accept()` takes.
    """

    def __init__(
        self,
        mesh: Mesh,
        address,
        *,
        names=(pki.DB,),
        tls: Tls | None = None,
        authority: str = "10.0.0.9:80",
        network: str | None = None,
        **rest,
    ) -> None:
        self._mesh = mesh
        self.server = None
        if address is None:
            server = socket.create_server(("127.0.0.1", 0), backlog=256)
            self.server = mesh.kept(server)
            self.server.settimeout(TIMEOUT_S)
            address = self.server.getsockname()
        self.events = Events(mesh.host)
        self.conns = Events(mesh.host)
        engine = mesh.host.engine
        self.pool = mesh.call(
            Pool,
            engine,
            tls or mesh.tls(pki.WEB),
            address,
            names,
            on_event=self.events.add,
            **rest,
        )
        self.headers = mesh.call(
            Headers,
            engine,
            authority=authority,
            baggage="k8s.cluster.name=Kubernetes",
            forwarded=('for="10.0.0.1:', '";host=db'),
            network=network,
        )
        self.target = Hbone(self.pool.id, self.headers.id)
        sock = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._name = sock.getsockname()
        self.listener = mesh.call(
            engine.add_listener, sock, self.target, on_event=self.conns.add
        )

    def client(self) -> socket.socket:
        """Make a connection that gets a stream."""
        sock = socket.socket()
        self._mesh.kept(sock)
        sock.settimeout(TIMEOUT_S)
        sock.connect_ex(self._name)  # it may be reset before it is looked at
        return sock

    def accept(
        self, *uris: str, context: ssl.SSLContext | None = None, **options
    ) -> Peer:
        """Take a tunnel."""
        assert self.server is not None
        raw = self._mesh.accept(self.server)
        made = context or self._mesh.context(*(uris or (pki.DB,)), server=True)
        sock = self._mesh.kept(made.wrap_socket(raw, server_side=True))
        return Peer(sock, client=False, **options)

    def pair(self, peer: Peer, sock: socket.socket | None = None):
        """Make a connection over a tunnel; return its client and its stream."""
        sock = sock or self.client()
        stream, _ = peer.request()
        peer.answer(stream)
        return sock, stream

    def failed(self, count: int = 1) -> tuple[int, Reason]:
        """Wait for the n-th connection that failed; return errno and reason."""
        event = self.conns.wait(EventKind.FAILED, count)
        return event.error, Reason(event.reason)

    def stats(self):
        return self._mesh.call(self.pool.stats)
