"""The real back-end in a thread, for guests in user space to talk to."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.conformance import ledger, links
from tests.conformance.doors import Door
from tests.conformance.ringhand import HandMade
from tests.conformance.threads import TIMEOUT_S, InThread
from tests.conformance.tunnels import Mesh
from vhost_user.backend import Backend
from vhost_user.engine import (
    ALL_EVENTS,
    Chargen,
    Dial,
    Discard,
    Echo,
    Engine,
    Reset,
    Ring,
    Unix,
)
from vhost_user.message import Feature
from vhost_user.vsock.device import VsockDevice
from vhost_user.vsock.driver import GUEST_FEATURES, VsockGuest
from vhost_user.vsock.hybrid import SEQPACKET_SUFFIX, HybridListener
from vhost_user.vsock.packet import Op, Type

ECHO, DISCARD, CHARGEN = 7, 9, 19
REFUSED = 1
DESTINATION = ("192.0.2.80", 8080)
SOURCES = (ip_address("10.0.0.5"), ip_address("fd00::5"))
IDENTITY = "spiffe://cluster.local/ns/default/sa/box"
LEDGER = pytest.StashKey[ledger.Ledger]()


class Host(InThread):
    """A back-end with one device, running its event loop in a thread.

    Host port 7 echoes, 9 discards, 19 sends for ever, 1 refuses; any other reaches
    the unix socket `uds_path` + "_PORT".

    Args:
        neighbour: serve one more VM, CID 4, on the same engine; its port 7 echoes.
        engine_conns: connections of the whole engine.
    """

    def __init__(
        self,
        directory,
        *,
        buf_alloc=64 * 1024,
        poll_us=0,
        dial_timeout_s=30,
        neighbour=False,
        engine_conns=131072,
        **limits,
    ):
        super().__init__()
        self.path = directory / "vhost"
        self.neighbour_path = directory / "vhost4" if neighbour else None
        self.uds_path = directory / "vsock"
        self.events = []
        self._options = {"buf_alloc": buf_alloc, **limits}
        self._engine_options = {
            "poll_us": poll_us,
            "dial_timeout_s": dial_timeout_s,
            "max_conns": engine_conns,
        }

    async def _serve(self):
        async with contextlib.AsyncExitStack() as stack:
            engine = await stack.enter_async_context(Engine(**self._engine_options))
            self.engine = engine
            self.device = VsockDevice(
                engine,
                guest_cid=3,
                on_event=self.events.append,
                want=ALL_EVENTS,
                **self._options,
            )
            stack.callback(self.device.close)
            handle = self.device.handle
            handle.route(None, Unix(str(self.uds_path)))
            handle.route(ECHO, Echo())
            handle.route(DISCARD, Discard())
            handle.route(CHARGEN, Chargen())
            handle.route(REFUSED, Reset())
            hybrid = HybridListener(self.device, self.uds_path)
            await hybrid.start()
            stack.push_async_callback(hybrid.close)
            self.backend = Backend(self.path, self.device, name="host")
            await self.backend.start()
            stack.push_async_callback(self.backend.close)
            if self.neighbour_path is not None:
                other = VsockDevice(engine, guest_cid=4)
                stack.callback(other.close)
                other.handle.route(ECHO, Echo())
                beside = Backend(self.neighbour_path, other, name="neighbour")
                await beside.start()
                stack.push_async_callback(beside.close)
            await self._until_left()

    def idle(self):
        """Wait until the session of a front-end that left has ended."""

        async def idle():
            while self.backend.connected.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(idle(), self._loop).result(TIMEOUT_S)

    def events_of(self, kind):
        """Return the events of one kind so far."""
        return self.call(lambda: [e for e in self.events if e.kind is kind])

    def stats(self):
        return self.call(self.device.handle.stats)

    def engine_stats(self):
        return self.call(self.engine.stats)

    def deliver(self):
        """Let the events that are queued so far reach their handlers."""
        self.call(self.engine.deliver)

    def listen(self, port, kind=socket.SOCK_STREAM):
        """Listen where guest connections to host port `port` arrive."""
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.settimeout(TIMEOUT_S)
        sock.bind(f"{self.uds_path}_{port}")
        sock.listen()
        return ledger.listening(sock, port)

    def listen_tcp(self, port):
        """Listen on TCP where guest connections to host port `port` arrive."""
        sock = socket.create_server(("127.0.0.1", 0))
        sock.settimeout(TIMEOUT_S)
        self.call(self.device.handle.route, port, Dial(sock.getsockname()))
        return ledger.listening(sock, port)

    def listen_ring(self, port, **options):
        """Listen as a process does that guest connections to `port` are offered."""
        path = self.uds_path.with_name(f"ring{port}")
        options = {"identity": IDENTITY, "addresses": SOURCES} | options
        self.peer = self.call(lambda: self.engine.add_peer(path, **options))
        target = Ring(self.peer.id, DESTINATION)
        self.call(self.device.handle.route, port, target)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(TIMEOUT_S)
        sock.bind(str(path))
        sock.listen()
        return sock

    def pair(self):
        """Return two connected unix sockets, one of them to be offered."""
        ours, theirs = socket.socketpair()
        sink = ledger.Sink(fileno=ours.detach())
        sink.settimeout(TIMEOUT_S)
        return sink, theirs

    def dial(self, port=None, kind=socket.SOCK_STREAM):
        """Connect as a host client; with `port`, send its CONNECT line."""
        suffix = SEQPACKET_SUFFIX if kind == socket.SOCK_SEQPACKET else ""
        sock = ledger.Sink(socket.AF_UNIX, kind)
        sock.settimeout(TIMEOUT_S)
        sock.connect(f"{self.uds_path}{suffix}")
        if port is not None:
            ledger.watch(sock, ("guest", port))
            sock.send(b"CONNECT %d\n" % port)
        return sock


@pytest.fixture(autouse=True)
def _ledger(request, monkeypatch):
    """Hold every test to the bytes that it was told were taken; see `ledger`."""
    with ledger.kept() as kept:
        if request.node.get_closest_marker("unseen") is None:
            request.node.stash[LEDGER] = kept
            monkeypatch.setattr(VsockGuest, "watcher", kept)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Check the ledger as part of the test: guests are still there."""
    result = yield
    if (kept := item.stash.get(LEDGER, None)) is not None:
        kept.check()
    return result


@pytest.fixture
def make_host(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(**options):
            return stack.enter_context(Host(tmp_path, **options))

        yield make


@pytest.fixture
def host(make_host):
    return make_host()


@pytest.fixture
def mesh(host, tmp_path):
    with Mesh(host, tmp_path) as mesh:
        yield mesh


RINGS_OF_BOTH_KINDS = {
    "test_vsock_credit",
    "test_vsock_events",
    "test_vsock_seqpacket",
    "test_vsock_stream",
}


def pytest_generate_tests(metafunc):
    """Run what a guest sees of the device over split and over packed rings."""
    name = metafunc.module.__name__.rpartition(".")[2]
    if "ring_kind" in metafunc.fixturenames and name in RINGS_OF_BOTH_KINDS:
        metafunc.parametrize("ring_kind", ["split", "packed"], indirect=True)


@pytest.fixture
def ring_kind(request):
    """Return the kind of rings that guests take: "split", or "packed"."""
    return getattr(request, "param", "split")


@pytest.fixture
def make_guest_of(ring_kind):
    with contextlib.ExitStack() as stack:

        def make(host, *, features=GUEST_FEATURES, **options):
            if ring_kind == "packed":
                features |= Feature.RING_PACKED
            guest = VsockGuest(host.path, features=features, **options)
            return stack.enter_context(guest)

        yield make


@pytest.fixture
def make_guest(host, make_guest_of):
    return functools.partial(make_guest_of, host)


@pytest.fixture
def guest(make_guest):
    return make_guest()


@pytest.fixture
def far(host, guest):
    """Return a guest's connection and the host socket it reaches."""
    with contextlib.ExitStack() as stack:

        def connect(port=5000, **options):
            seqpacket = options.get("kind") == Type.SEQPACKET
            kind = socket.SOCK_SEQPACKET if seqpacket else socket.SOCK_STREAM
            with host.listen(port, kind) as listener:
                conn = guest.connect(port, **options)
                sock, _ = listener.accept()
            stack.enter_context(sock)
            sock.settimeout(TIMEOUT_S)
            Path(f"{host.uds_path}_{port}").unlink()
            return conn, sock

        yield connect


@pytest.fixture
def link(host, guest):
    """Connect a guest's connection and a host socket in one of the `links.WAYS`."""
    with contextlib.ExitStack() as stack:

        def connect(way, **options):
            conn, sock = links.connect(host, guest, way, **options)
            stack.enter_context(sock)
            sock.settimeout(TIMEOUT_S)
            return conn, sock

        yield connect


def read_exactly(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, f"end of stream after {len(data)} of {size} bytes"
        data += more
    return data


@pytest.fixture(name="read_exactly")
def read_exactly_fixture():
    return read_exactly


@pytest.fixture
def door(host):
    """A listener on the host whose clients are the guest's."""
    with contextlib.closing(Door(host)) as door:
        yield door


@pytest.fixture
def ask(host, guest):
    """Return what has the guest ask for a connection by rings.

    That gives the connection and the process, which has yet to answer.
    """
    made = []

    def ask_for(port=5000, **options):
        with host.listen_ring(port, **options) as listener:
            conn = guest.request(port)
            made.append(HandMade(listener.accept()[0]))
        return conn, made[-1]

    yield ask_for
    for process in made:
        process.close()


@pytest.fixture
def pair(ask):
    """Return a connection by rings, and the process that has taken it."""
    conn, process = ask()
    process.answer()
    conn.expect(Op.RESPONSE)
    return conn, process
