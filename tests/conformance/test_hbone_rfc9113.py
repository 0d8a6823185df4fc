"""Peers that break RFC 9113: what it wants comes of it, and nothing else does.

All cases of one role are said to one gate, or beside one pool, each on a tunnel of its
own. Another tunnel is there all the time.
"""

from __future__ import annotations

import contextlib

import pytest

from tests.conformance import rfc9113_messages
from tests.conformance.conftest import Host, read_exactly
from tests.conformance.frames import (
    ACK,
    AUTHORITY,
    CONNECT,
    DATA,
    END_STREAM,
    GET,
    GOAWAY,
    HEADERS,
    PATH,
    PING,
    PREFACE,
    RST,
    SCHEME,
    SETTINGS,
    WINDOW,
    Code,
    frame,
)
from tests.conformance.rfc9113 import (
    BOTH,
    HALF,
    OPEN,
    Answers,
    Case,
    Ends,
    Resets,
    headers,
    number,
    settings,
)
from tests.conformance.tunnels import Mesh
from tests.conformance.wires import (
    LAST,
    Beside,
    Gate,
    Pool,
    client_of,
    echoes,
    server_of,
)
from tests.support import pki
from vhost_user.hbone import Reason


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


@pytest.fixture(scope="module")
def gate(own_mesh):
    return Gate(own_mesh, max_streams=1000)


@pytest.fixture(scope="module")
def beside(own_mesh, gate):
    return Beside(own_mesh, gate)


@pytest.mark.parametrize("case", cases(BOTH | rfc9113_messages.CLIENT))
def test_a_client_that_breaks_rfc_9113(gate, beside, case):
    wire = client_of(gate)
    before, ended = gate.stats(), len(gate.ends())
    came = outcome(wire, case)
    check(came, case.wants)
    beside.works()
    if isinstance(case.wants, Ends):
        assert gate.ends(ended + 1)[ended:] == [Reason.HTTP2]
        after = gate.stats()
        assert after.faults == before.faults + 1
        assert after.tunnels == before.tunnels - 1
        return
    assert gate.stats().faults == before.faults
    if getattr(case.wants, "stream", None) != OPEN:
        echoes(wire, OPEN)
    echoes(wire, LAST)
    wire.sock.close()
    gate.ends(ended + 1)


PREFACES = {
    "http-1": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "another-magic": PREFACE[:-1] + b"x" + frame(SETTINGS),
    "no-settings": PREFACE + frame(PING, 0, 0, bytes(8)),
    "acknowledgement-first": PREFACE + frame(SETTINGS, 1),
}


@pytest.mark.spec("rfc9113:3.4/preface")
@pytest.mark.parametrize("said", PREFACES.values(), ids=PREFACES)
def test_a_client_whose_preface_is_none(gate, beside, said):
    ended = len(gate.ends())
    wire = gate.wire(said)
    seen = [each.code for each in wire.frames() if each.kind == GOAWAY]
    assert seen == [Code.PROTOCOL_ERROR]
    beside.works()
    assert gate.ends(ended + 1)[ended:] == [Reason.HTTP2]


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


@pytest.mark.spec("rfc9113:8.1/no-error")
def test_who_is_refused_hears_that_before_its_body_is_cut(gate):
    wire = gate.wire()
    body = frame(DATA, 0, OPEN, bytes(1000))
    wire.say(headers(OPEN, GET + AUTHORITY + SCHEME + PATH), body)
    (answer,) = [each for each in wire.fence() if each.stream == OPEN]
    assert (answer.kind, answer.payload) == (HEADERS, b"\x8c")  # 400
    assert answer.flags & END_STREAM
    wire.say(body)
    (cut,) = [each for each in wire.fence() if each.stream == OPEN]
    assert (cut.kind, cut.code) == (RST, Code.NO_ERROR)


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
    echoes(wire, OPEN)


# ---- the peer is the server ----


@pytest.fixture
def pool(own_mesh, shared):
    return Pool(own_mesh, *shared, max_tunnels=1)


@pytest.fixture(scope="module")
def shared(own_mesh):
    """What costs most of a pool."""
    return own_mesh.tls(pki.WEB), own_mesh.context(pki.DB, server=True)


@pytest.mark.parametrize("case", cases(BOTH | rfc9113_messages.SERVER))
def test_a_server_that_breaks_rfc_9113(pool, beside, case):
    wire, socks = server_of(pool)
    came = outcome(wire, case)
    check(came, case.wants)
    beside.works()
    if isinstance(case.wants, Ends):
        assert pool.ends(1) == [Reason.HTTP2]
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
def test_a_server_whose_preface_is_none(pool, beside, said):
    pool.ours.client()
    wire = pool.wire(said)
    assert Code.PROTOCOL_ERROR in {
        each.code for each in wire.frames() if each.kind == GOAWAY
    }
    assert pool.ends(1) == [Reason.HTTP2]
    assert pool.stats().faults == 1
    beside.works()
