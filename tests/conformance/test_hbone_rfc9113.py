"""Peers that break RFC 9113: what it wants comes of it, and nothing else does.

All cases of one role are said to one gate, or beside one pool, each on a tunnel of its
own. Another tunnel is there all the time.
"""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.conformance import rfc9113_messages
from tests.conformance.conftest import Host, read_exactly
from tests.conformance.frames import (
    ACK,
    AUTHORITY,
    CONNECT,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    METHOD,
    OK,
    PING,
    PREFACE,
    RST,
    SETTINGS,
    WINDOW,
    Code,
    Wire,
    frame,
)
from tests.conformance.links import wait_for
from tests.conformance.rfc9113 import (
    ASKED,
    BOTH,
    CLOSED,
    HALF,
    OPEN,
    RESET,
    Answers,
    Case,
    Ends,
    Resets,
    headers,
    number,
    settings,
)
from tests.conformance.tunnels import Mesh
from tests.support import pki
from vhost_user.engine import Echo, EventKind
from vhost_user.hbone import Reason

LAST = 11


def cases(table):
    """Return a table's cases as pytest has them."""
    return [
        pytest.param(
            case,
            id=name,
            marks=[pytest.mark.spec(spec)] if (spec := _spec_of(case)) else [],
        )
        for name, case in table.items()
    ]


def _spec_of(case: Case) -> str:
    return case.spec if not case.spec or ":" in case.spec else f"rfc9113:{case.spec}"


def outcome(wire, case):
    """Say a case; return the connection's error, or what came on each stream."""
    with contextlib.suppress(OSError):  # it was cut in the middle
        wire.say(case.said)
    seen = wire.fence()
    if isinstance(case.wants, Answers) and not _is_over(seen, case.wants.stream):
        seen += wire.until(lambda each: _is_over([each], case.wants.stream))
    for each in seen:
        if each.kind == GOAWAY:
            return Ends(each.code)
    return {
        each.stream: Resets(each.code, each.stream)
        if each.kind == RST
        else Answers(each.payload, each.stream)
        for each in seen
        if each.kind in {RST, HEADERS}
    }


def _is_over(seen, stream):
    """Whether a request was answered, or the tunnel ended."""
    return any(
        each.kind == GOAWAY or (each.kind in {RST, HEADERS} and each.stream == stream)
        for each in seen
    )


def check(came, wants):
    """What came is what the RFC wants."""
    if isinstance(wants, Ends):
        assert came == wants
    elif isinstance(wants, Resets):
        assert came == {wants.stream: wants}
    elif isinstance(wants, Answers):
        assert came[wants.stream] == wants
    else:
        assert came == {}


@pytest.fixture(scope="module")
def own_mesh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rfc9113")
    with Host(folder) as host, Mesh(host, folder) as mesh:
        yield mesh


# ---- the peer is the client ----


class Gate:
    """A gate that answers by what `:authority` has: port 7 an echo, 3 a socket."""

    def __init__(self, mesh):
        self._mesh = mesh
        self.ours = mesh.gate(max_streams=1000)
        self.sockets = []
        host = mesh.host
        host.call(host.engine.hear, self.ours.gate.id, self._hear)
        self._context = mesh.context(pki.WEB)
        self.beside = self.ours.dial()
        self.stream = self.beside.connect(
            [(":method", "CONNECT"), (":authority", "a:7")]
        )
        assert self.beside.status(self.stream) == "200"

    def _hear(self, event):
        self.ours.events.add(event)
        if event.kind is not EventKind.REQUEST:
            return
        engine = self._mesh.host.engine
        request = self.ours.gate.request(event.conn)
        if request is None:
            return
        if request.authority.endswith(":7"):
            engine.answer(event.conn, Echo())
        else:
            ours, theirs = socket.socketpair()
            self.sockets.append(self._mesh.kept(ours))
            engine.answer_fd(event.conn, theirs)

    def wire(self, preface):
        """Make a tunnel; say this first."""
        sock = self._mesh.dial(self.ours.address)
        return Wire(self._mesh.kept(self._context.wrap_socket(sock)), preface)

    def works(self):
        """The tunnel beside does."""
        self.beside.send(self.stream, b"there")
        assert self.beside.read(self.stream, 5) == b"there"

    def ended(self, count=0):
        """Wait for so many ends of tunnels; return why those ended."""
        events = self.ours.events

        def reasons():
            return [r for e in events.of(EventKind.TUNNEL) if (r := Reason(e.reason))]

        wait_for(lambda: len(reasons()) >= count, f"{count} ends")
        return reasons()


@pytest.fixture(scope="module")
def gate(own_mesh):
    return Gate(own_mesh)


def client_of(gate):
    """Return a client whose streams are as rfc9113.py has them."""
    wire = gate.wire(PREFACE + frame(SETTINGS))
    stays = METHOD + AUTHORITY.replace(b":7", b":3")
    wire.say(
        headers(OPEN, CONNECT),
        headers(HALF, stays, END_HEADERS | END_STREAM),
        headers(CLOSED, CONNECT, END_HEADERS | END_STREAM),
        headers(RESET, stays),
        frame(RST, 0, RESET, number(Code.CANCEL)),
        headers(LAST, CONNECT),
    )
    missing = {(HEADERS, OPEN), (HEADERS, HALF), (HEADERS, LAST), (DATA, CLOSED)}

    def all_there(each):
        missing.discard((each.kind, each.stream))
        return not missing

    wire.until(all_there)
    assert not missing
    return wire


@pytest.mark.parametrize("case", cases(BOTH | rfc9113_messages.CLIENT))
def test_a_client_that_breaks_rfc_9113(gate, case):
    wire = client_of(gate)
    before, ended = gate.ours.stats(), len(gate.ended())
    came = outcome(wire, case)
    check(came, case.wants)
    gate.works()
    if isinstance(case.wants, Ends):
        assert gate.ended(ended + 1)[ended:] == [Reason.HTTP2]
        after = gate.ours.stats()
        assert after.faults == before.faults + 1
        assert after.tunnels == before.tunnels - 1
        return
    assert gate.ours.stats().faults == before.faults
    if getattr(case.wants, "stream", None) != OPEN:
        _echoes(wire, OPEN)
    _echoes(wire, LAST)
    wire.sock.close()
    gate.ended(ended + 1)


def _echoes(wire, stream):
    wire.say(frame(DATA, 0, stream, b"still"))
    seen = wire.until(lambda each: (each.kind, each.stream) == (DATA, stream))
    assert seen[-1].payload.endswith(b"still")


PREFACES = {
    "http-1": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "another-magic": PREFACE[:-1] + b"x" + frame(SETTINGS),
    "no-settings": PREFACE + frame(PING, 0, 0, bytes(8)),
    "acknowledgement-first": PREFACE + frame(SETTINGS, 1),
}


@pytest.mark.spec("rfc9113:3.4/preface")
@pytest.mark.parametrize("said", PREFACES.values(), ids=PREFACES)
def test_a_client_whose_preface_is_none(gate, said):
    ended = len(gate.ended())
    wire = gate.wire(said)
    seen = [each.code for each in wire.frames() if each.kind == GOAWAY]
    assert seen == [Code.PROTOCOL_ERROR]
    gate.works()
    assert gate.ended(ended + 1)[ended:] == [Reason.HTTP2]


@pytest.mark.spec("rfc9113:6.5.3/acknowledged")
def test_settings_are_acknowledged(gate):
    wire = gate.wire(PREFACE + frame(SETTINGS) + frame(SETTINGS))
    acks = [each for each in wire.fence() if each.kind == SETTINGS and each.flags]
    assert [(each.flags, each.payload) for each in acks] == [(ACK, b""), (ACK, b"")]


@pytest.mark.spec("rfc9113:6.7/answered")
def test_a_ping_is_answered_by_its_bytes(gate):
    wire = gate.wire(PREFACE + frame(SETTINGS) + frame(PING, 0, 0, b"\xff12345\0\n"))
    (answer,) = wire.until(lambda each: each.kind == PING)[-1:]
    assert (answer.flags, answer.payload) == (ACK, b"\xff12345\0\n")


@pytest.mark.spec("rfc9113:6.9.2/negative")
def test_a_window_that_became_negative_is_waited_for(gate):
    wire = gate.wire(PREFACE + settings(4, 10))
    wire.say(headers(OPEN, CONNECT), frame(DATA, 0, OPEN, b"0123456789abcdefghij"))
    wire.until(lambda each: each.payload == b"0123456789")
    wire.say(settings(4, 0), frame(WINDOW, 0, OPEN, number(10)))  # -10, and 0
    assert DATA not in {each.kind for each in wire.fence()}
    wire.say(frame(WINDOW, 0, OPEN, number(5)))
    assert wire.until(lambda each: each.kind == DATA)[-1].payload == b"abcde"


@pytest.mark.spec("rfc9113:6.9/accounted")
def test_data_behind_the_end_counts_for_the_tunnels_window(gate):
    wire = client_of(gate)
    for _ in range(9):  # MiB, of 16
        wire.say(frame(DATA, 0, HALF, bytes(1 << 20)))
    (given,) = wire.until(lambda each: (each.kind, each.stream) == (WINDOW, 0))[-1:]
    assert int.from_bytes(given.payload, "big") >= 8 << 20
    _echoes(wire, OPEN)


# ---- the peer is the server ----


class Pools:
    """A pool for each case, and one beside."""

    def __init__(self, mesh):
        self._mesh = mesh
        self._tls = mesh.tls(pki.WEB)
        self._context = mesh.context(pki.DB, server=True)
        beside = self.new()
        self.sock = beside.client()
        self.peer = beside.accept(context=self._context)
        _, self.stream = beside.pair(self.peer, self.sock)

    def new(self):
        return self._mesh.pool(tls=self._tls, max_tunnels=1)

    def works(self):
        """The tunnel beside does."""
        self.peer.send(self.stream, b"there")
        assert read_exactly(self.sock, 5) == b"there"
        self.sock.sendall(b"back")
        assert self.peer.read(self.stream, 4) == b"back"

    def wire(self, pool, preface):
        """Take a tunnel; say this first."""
        sock = self._mesh.accept(pool.server)
        wrapped = self._context.wrap_socket(sock, server_side=True)
        wire = Wire(self._mesh.kept(wrapped), preface)
        assert wire._read(len(PREFACE)) == PREFACE
        return wire


@pytest.fixture(scope="module")
def pools(own_mesh):
    return Pools(own_mesh)


def server_of(pools, pool):
    """Return a server whose streams are as rfc9113.py has them, and its clients."""
    socks = {OPEN: pool.client()}
    wire = pools.wire(pool, frame(SETTINGS))
    for stream in (OPEN, HALF, CLOSED, RESET, ASKED):
        socks[stream] = socks.get(stream) or pool.client()
        wire.until(
            lambda each, stream=stream: (each.kind, each.stream) == (HEADERS, stream)
        )
        if stream != ASKED:
            wire.say(headers(stream, OK))
    socks[CLOSED].close()
    wire.until(lambda each: (each.stream, each.flags) == (CLOSED, END_STREAM))
    wire.say(
        frame(DATA, END_STREAM, HALF),
        frame(DATA, END_STREAM, CLOSED),
        frame(RST, 0, RESET, number(Code.CANCEL)),
    )
    wire.fence()
    assert socks[HALF].recv(1) == b""
    return wire, socks


@pytest.mark.parametrize("case", cases(BOTH | rfc9113_messages.SERVER))
def test_a_server_that_breaks_rfc_9113(pools, case):
    pool = pools.new()
    wire, socks = server_of(pools, pool)
    came = outcome(wire, case)
    check(came, case.wants)
    pools.works()
    if isinstance(case.wants, Ends):
        assert pool.events.reason(2) is Reason.HTTP2
        with pytest.raises(ConnectionResetError):
            socks[OPEN].recv(1)
        assert pool.stats().faults == 1
        return
    assert pool.stats().faults == 0
    hurt = getattr(case.wants, "stream", None)
    if hurt == OPEN:
        with pytest.raises(ConnectionResetError):
            socks[OPEN].recv(1)
    else:
        came_down = b""
        socks[OPEN].sendall(b"up")
        wire.say(frame(DATA, 0, OPEN, b"still"))
        while not came_down.endswith(b"still"):
            came_down += read_exactly(socks[OPEN], 1)
        wire.until(lambda each: each.payload == b"up")


@pytest.mark.spec("rfc9113:3.4/preface")
@pytest.mark.parametrize(
    "said", [frame(PING, 0, 0, bytes(8)), b"HTTP/1.1 400 Bad\r\n\r\n"]
)
def test_a_server_whose_preface_is_none(pools, said):
    pool = pools.new()
    pool.client()
    wire = pools.wire(pool, said)
    assert Code.PROTOCOL_ERROR in {
        each.code for each in wire.frames() if each.kind == GOAWAY
    }
    assert pool.events.reason() is Reason.HTTP2
    assert pool.stats().faults == 1
    pools.works()
