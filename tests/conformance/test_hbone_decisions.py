"""CONNECTs that go where an earlier one went, without Python."""

from __future__ import annotations

import errno

import h2.events
import pytest

from tests.conformance.links import wait_for
from tests.conformance.peers import CONNECT
from tests.support import pki
from vhost_user.engine import Ask, Dial, Echo, EventKind, Reset, Unix
from vhost_user.errors import StateError
from vhost_user.hbone import Guest, Headers, Reason
from vhost_user.vsock.packet import Op

TAG, OTHER = 0x80000001, 0x80000002
FIRST = 5 << 16
MOST = 4096  # VU_MAX_DECISIONS


def says(**fields):
    return [*CONNECT, *fields.items()]


def forwarded(port, host="10.0.0.1"):
    return says(forwarded=f'for="{host}:{port}";host=db')


@pytest.fixture
def gate(mesh):
    return mesh.gate()


@pytest.fixture
def decide(gate, mesh):
    """Have a peer ask, decide about it and answer it."""

    def decide(peer, where=None, *, headers=CONNECT, answers=None):
        count = asked(gate) + 1
        stream = peer.connect(headers)
        conn = gate.asked(count)
        where = where or Echo()
        assert mesh.call(gate.gate.decide, conn, where, tag=TAG, headers=answers)
        gate.answer(conn, Echo() if isinstance(where, Guest) else where)
        assert peer.status(stream)

    return decide


def asked(gate):
    return len(gate.events.of(EventKind.REQUEST))


def again(peer, headers=CONNECT):
    """Open a stream; return the status."""
    return peer.status(peer.connect(headers))


def test_who_says_the_same_is_answered_without_python(gate, decide):
    peer = gate.dial()
    decide(peer)
    stream = peer.connect()
    assert peer.status(stream) == "200"
    peer.send(stream, b"x")
    assert peer.read(stream, 1) == b"x"
    assert asked(gate) == 1
    event = gate.events.wait(EventKind.OPENED, 2)
    assert (event.tag, event.src) == (TAG, peer.sock.getsockname())
    assert event.dst == gate.address
    assert gate.stats().decided == 1


def test_the_events_of_who_was_asked_about_have_no_tag(gate, decide):
    decide(gate.dial())
    assert gate.events.wait(EventKind.OPENED).tag == 0


def test_another_tunnel_of_the_same_client_says_the_same(gate, decide):
    decide(gate.dial())
    assert again(gate.dial()) == "200"
    assert asked(gate) == 1


def test_what_it_said_can_be_read_while_it_lives(gate, decide):
    peer = gate.dial()
    decide(peer, headers=forwarded(4))
    peer.connect([*forwarded(5), ("traceparent", "00-1")])
    request = gate.request(gate.events.wait(EventKind.OPENED, 2).conn)
    assert (request.peer, request.authority) == (pki.WEB, "10.0.0.9:80")
    assert request.forwarded == 'for="10.0.0.1:5";host=db'
    assert request.traceparent == "00-1"


OTHERS = {
    "authority": [(":method", "CONNECT"), (":authority", "10.0.0.9:81")],
    "baggage": says(baggage="k=other", forwarded='for="10.0.0.1:4";host=db'),
    "no-baggage": says(forwarded='for="10.0.0.1:4";host=db'),
    "client": says(baggage="k=v", forwarded='for="10.0.0.2:4";host=db'),
    "host": says(baggage="k=v", forwarded='for="10.0.0.1:4";host=web'),
    "no-forwarded": says(baggage="k=v"),
    "network": says(
        baggage="k=v",
        forwarded='for="10.0.0.1:4";host=db',
        **{"x-forwarded-network": "east"},
    ),
    "empty-network": says(
        baggage="k=v",
        forwarded='for="10.0.0.1:4";host=db',
        **{"x-forwarded-network": ""},
    ),
    "moved": says(baggage='k=vfor="10.0.0.1:', forwarded='4";host=db'),
}


@pytest.mark.parametrize("other", OTHERS)
def test_who_says_something_else_is_asked_about(gate, decide, other):
    peer = gate.dial()
    decide(peer, headers=says(baggage="k=v", forwarded='for="10.0.0.1:4";host=db'))
    peer.connect(OTHERS[other])
    gate.asked(2)


def test_another_identity_is_asked_about(gate, decide):
    decide(gate.dial())
    gate.dial(pki.DB).connect()
    gate.asked(2)


SAME_PORT = ["10.0.0.1", "[fd00::1]"]
NOT_A_PORT = {
    "ipv6-without-brackets": ('for="fd00::1"', 'for="fd00::2"'),
    "not-quoted": ("for=10.0.0.1:1", "for=10.0.0.1:2"),
    "too-long": ('for="10.0.0.1:000001"', 'for="10.0.0.1:000002"'),
    "above-65535": ('for="10.0.0.1:65536"', 'for="10.0.0.1:65537"'),
    "no-address": ('for="1"', 'for="2"'),
    "empty": ('for=""', 'for=" "'),
    "open": ('for="10.0.0.1:1', 'for="10.0.0.1:2'),
}


@pytest.mark.parametrize("client", SAME_PORT)
def test_the_clients_port_is_no_difference(gate, decide, client):
    peer = gate.dial()
    decide(peer, headers=forwarded(4, client))
    assert again(peer, forwarded(65535, client)) == "200"
    assert asked(gate) == 1


@pytest.mark.parametrize("case", NOT_A_PORT)
def test_what_is_no_port_is_a_difference(gate, decide, case):
    peer = gate.dial()
    one, other = NOT_A_PORT[case]
    decide(peer, headers=says(forwarded=one))
    peer.connect(says(forwarded=other))
    gate.asked(2)
    assert again(peer, says(forwarded=one)) == "200"


@pytest.mark.parametrize(
    ("error", "status"),
    [(errno.EACCES, "401"), (errno.EINVAL, "400"), (errno.EHOSTUNREACH, "503")],
)
def test_a_decision_may_be_a_status(gate, decide, error, status):
    peer = gate.dial()
    decide(peer, Reset(error))
    assert again(peer) == status
    event = gate.events.wait(EventKind.FAILED, 2)
    assert (event.tag, event.error) == (TAG, error)
    assert asked(gate) == 1


def test_a_decision_may_be_a_server_on_the_node(gate, decide, mesh):
    server = mesh.kept(mesh.pool().server)
    peer = gate.dial()
    decide(peer, Dial(server.getsockname()))
    mesh.accept(server)
    stream = peer.connect()
    sock = mesh.accept(server)
    assert peer.status(stream) == "200"
    sock.sendall(b"back")
    assert peer.read(stream, 4) == b"back"


def test_a_server_that_refuses_is_503_each_time(gate, decide, mesh):
    server = mesh.pool().server
    address = server.getsockname()
    server.close()
    peer = gate.dial()
    decide(peer, Dial(address))
    assert again(peer) == "503"
    event = gate.events.wait(EventKind.FAILED, 2)
    assert (event.tag, event.error) == (TAG, errno.ECONNREFUSED)


def test_the_answer_has_the_headers_of_the_decision(gate, decide, mesh, host):
    headers = mesh.call(Headers, host.engine, baggage="service.name=db")
    peer = gate.dial()
    decide(peer, answers=headers)
    mesh.call(headers.close)
    stream = peer.connect()
    answer = peer.until(
        h2.events.ResponseReceived, lambda event: event.stream_id == stream
    )
    assert dict(answer.headers) == {":status": "200", "baggage": "service.name=db"}


# ---- the end of a decision ----


def test_all_are_asked_about_again_once_python_forgets(gate, decide, mesh):
    peer = gate.dial()
    decide(peer)
    mesh.call(gate.gate.forget)
    assert gate.events.wait(EventKind.FORGOT).tag == TAG
    peer.connect()
    gate.asked(2)


def test_a_connection_outlives_its_decision(gate, decide, mesh):
    peer = gate.dial()
    decide(peer)
    stream = peer.connect()
    assert peer.status(stream) == "200"
    mesh.call(gate.gate.forget)
    peer.send(stream, b"x")
    assert peer.read(stream, 1) == b"x"


def test_a_later_decision_takes_the_place_of_an_earlier_one(gate, decide, mesh):
    peer = gate.dial()
    streams = [peer.connect() for _ in range(2)]
    conns = [gate.asked(count) for count in (1, 2)]
    for conn, tag, error in zip(conns, (TAG, OTHER), (errno.EACCES, 0), strict=True):
        mesh.call(gate.gate.decide, conn, Reset(error), tag=tag)
        gate.answer(conn, Reset(error))
    assert gate.events.wait(EventKind.FORGOT).tag == TAG
    assert [peer.status(stream) for stream in streams] == ["401", "503"]
    assert again(peer) == "503"
    assert gate.events.wait(EventKind.FAILED, 3).tag == OTHER


def test_a_gate_that_closes_forgets_before_it_is_gone(gate, decide, mesh):
    peer = gate.dial()
    decide(peer)
    mesh.call(gate.gate.close)
    assert gate.events.wait(EventKind.FORGOT).tag == TAG
    peer.connect()
    conn = gate.asked(2)
    assert not mesh.call(gate.gate.decide, conn, Echo(), tag=TAG)


def test_above_the_bound_the_least_recently_used_decision_goes(gate, mesh):
    peer = gate.dial()

    def ask(*numbers):
        """Ask with a baggage of its own each; all are refused, by who is asked."""
        streams = [peer.connect(says(baggage=f"n={number}")) for number in numbers]
        for stream in streams:
            assert peer.status(stream) == "401"
            peer.send(stream, b"", end=True)

    def on_event(event):
        if event.kind is EventKind.REQUEST:
            refusal = Reset(errno.EACCES)
            tag = int(gate.gate.request(event.conn).baggage[2:]) + 1
            assert gate.gate.decide(event.conn, refusal, tag=tag)
            assert mesh.host.engine.answer(event.conn, refusal)
        gate.events.add(event)

    mesh.call(mesh.host.engine.hear, gate.gate.id, on_event)
    for first in range(0, MOST, 128):
        ask(*range(first, first + 128))
    ask(0)
    assert gate.stats().decided == 1
    ask(MOST)
    assert gate.events.wait(EventKind.FORGOT).tag == 2
    ask(0)
    assert gate.stats().decided == 2
    ask(1)
    assert gate.stats().decided == 2
    assert gate.events.wait(EventKind.FORGOT, 2).tag == 3


# ---- what is no decision ----


@pytest.mark.parametrize("where", [Ask(), Unix("/tmp/x")], ids=["ask", "unix"])
def test_what_goes_by_a_vsock_port_is_no_decision(gate, mesh, where):
    gate.dial().connect()
    with pytest.raises(StateError):
        mesh.call(gate.gate.decide, gate.asked(), where, tag=TAG)


def test_a_decision_has_a_tag(gate, mesh):
    gate.dial().connect()
    with pytest.raises(StateError):
        mesh.call(gate.gate.decide, gate.asked(), Echo(), tag=0)


def test_what_was_answered_is_decided_no_more(gate, mesh):
    gate.dial().connect()
    gate.answer(gate.asked(), Echo())
    with pytest.raises(StateError):
        mesh.call(gate.gate.decide, gate.asked(), Echo(), tag=TAG)


def test_a_connect_that_is_gone_decides_nothing(gate, mesh):
    peer = gate.dial()
    stream = peer.connect()
    conn = gate.asked()
    peer.h2.reset_stream(stream)
    peer.flush()
    gate.events.wait(EventKind.FAILED)
    assert not mesh.call(gate.gate.decide, conn, Echo(), tag=TAG)


# ---- a program in a guest ----


@pytest.fixture
def to_guest(host, guest):
    return Guest(host.device.handle, 80, FIRST)


def test_a_decision_may_be_a_program_in_a_guest(gate, decide, to_guest, guest, host):
    peer = gate.dial()
    decide(peer, to_guest, headers=forwarded(7))
    stream = peer.connect(forwarded(9))
    peer.send(stream, b"early")
    conn = guest.accept()
    assert (conn.guest_port, conn.host_port) == (80, FIRST | 9)
    assert peer.status(stream) == "200"
    assert conn.receive_bytes(5) == b"early"
    conn.send(b"back")
    assert peer.read(stream, 4) == b"back"
    wait_for(lambda: host.events_of(EventKind.OPENED), "opened")
    event = host.events_of(EventKind.OPENED)[0]
    assert (event.tag, event.src) == (TAG, peer.sock.getsockname())
    assert (event.peer_port, event.port) == (80, FIRST | 9)
    assert gate.request(event.conn).forwarded == 'for="10.0.0.1:9";host=db'
    assert asked(gate) == 1


def test_a_clients_port_that_is_taken_is_another_one(gate, decide, to_guest, guest):
    peer = gate.dial()
    decide(peer, to_guest, headers=forwarded(7))
    ports = []
    for _ in range(3):
        peer.connect(forwarded(0xFFFF))
        ports.append(guest.accept().host_port)
    assert ports == [FIRST | 0xFFFF, FIRST, FIRST | 1]


def test_a_client_without_a_port_gets_one(gate, decide, to_guest, guest):
    peer = gate.dial()
    decide(peer, to_guest)
    streams = [peer.connect() for _ in range(2)]
    ports = {guest.accept().host_port for _ in streams}
    assert {port & ~0xFFFF for port in ports} == {FIRST}
    assert len(ports) == 2


def test_what_a_guest_refuses_is_asked_about(gate, decide, to_guest, guest, host):
    peer = gate.dial()
    decide(peer, to_guest)
    stream = peer.connect()
    peer.send(stream, b"early")
    peer.fence()
    header = guest.receive().header
    guest.send(guest.header(Op.RST, header.dst_port, header.src_port))
    event = gate.events.wait(EventKind.REQUEST, 2)
    assert (event.error, event.src) == (errno.ECONNREFUSED, peer.sock.getsockname())
    assert gate.request(event.conn).authority == CONNECT[1][1]
    assert not host.events_of(EventKind.FAILED)
    gate.answer(event.conn, Echo())
    assert peer.status(stream) == "200"
    assert peer.read(stream, 5) == b"early"


def test_what_a_guest_refuses_ends_with_a_gate_that_is_closed(
    gate, decide, to_guest, guest, mesh
):
    peer = gate.dial()
    decide(peer, to_guest)
    stream = peer.connect()
    header = guest.receive().header
    mesh.call(gate.gate.close)
    guest.send(guest.header(Op.RST, header.dst_port, header.src_port))
    assert peer.status(stream) == "503"


def test_what_a_guest_has_no_room_for_is_asked_about(gate, decide, to_guest, mesh):
    peer = gate.dial()
    decide(peer, to_guest)
    mesh.call(
        to_guest.device.limit, max_conns=0, max_queued_bytes=1 << 20, accept_rate=0
    )
    stream = peer.connect()
    gate.answer(gate.asked(2), Reset())
    assert peer.status(stream) == "503"


def test_a_tag_is_forgotten_behind_its_last_event(
    gate, decide, to_guest, guest, mesh, host
):
    peer = gate.dial()
    decide(peer, to_guest)
    peer.connect()
    wait_for(lambda: gate.stats().decided == 1, "decided")
    mesh.call(gate.gate.forget)
    host.deliver()
    assert not host.events_of(EventKind.FORGOT)
    guest.accept()
    wait_for(lambda: host.events_of(EventKind.FORGOT), "forgotten")
    kinds = [event.kind for event in host.events if event.tag == TAG]
    assert kinds == [EventKind.OPENED, EventKind.FORGOT]


def test_a_device_that_goes_takes_its_decisions_along(gate, decide, mesh, host):
    device = mesh.call(host.engine.add_device, guest_cid=9, on_event=gate.events.add)
    peer = gate.dial()
    decide(peer, Guest(device, 80, FIRST))
    mesh.call(device.close)
    assert gate.events.wait(EventKind.FORGOT).tag == TAG
    peer.connect()
    conn = gate.asked(2)
    gone = Guest(device, 80, FIRST)
    assert not mesh.call(gate.gate.decide, conn, gone, tag=TAG)


def test_ports_of_a_guest_begin_at_a_multiple_of_65536(gate, mesh, host):
    gate.dial().connect()
    bad = Guest(host.device.handle, 80, FIRST + 1)
    with pytest.raises(StateError):
        mesh.call(gate.gate.decide, gate.asked(), bad, tag=TAG)


def test_a_lost_tunnel_ends_what_a_guest_has_yet_to_take(gate, decide, to_guest, guest):
    peer = gate.dial()
    decide(peer, to_guest)
    peer.connect()
    header = guest.receive().header
    assert header.op == Op.REQUEST
    peer.sock.close()
    assert guest.receive().op == Op.RST
    assert gate.events.reason(2) in (Reason.LOST, Reason.CLOSED)
