"""The ledger that stands beside each test finds what it is there for."""

from __future__ import annotations

import socket

import pytest

from tests.conformance.ledger import ECHO, Sink, kept, watch
from vhost_user.vsock.packet import CID_HOST, Header, Op, Shutdown

PORT = 5000
LOCAL = 1024


class Guest:
    """A guest to whom nothing comes but what a test says."""

    def __init__(self, cid=3):
        self.cid = cid
        self.timeout_s = 0.0
        self._queued: list[Header] = []

    def _take(self):
        raise TimeoutError


def up(op, *, cid=CID_HOST, guest=3, ports=(LOCAL, PORT), **fields):
    src, dst = ports
    header = Header(
        src_cid=guest, dst_cid=cid, src_port=src, dst_port=dst, op=op, **fields
    )
    return header.encode()


def down(op, *, cid=CID_HOST, guest=3, ports=(LOCAL, PORT), **fields):
    dst, src = ports
    return Header(
        src_cid=cid, dst_cid=guest, src_port=src, dst_port=dst, op=op, **fields
    )


@pytest.fixture
def ledger():
    with kept() as ledger:
        yield ledger


@pytest.fixture
def guest():
    return Guest()


@pytest.fixture
def peer(ledger):
    """The device's end of a host program's socket."""
    ours, theirs = socket.socketpair()
    with watch(Sink(fileno=ours.detach()), ("host", PORT)), theirs:
        yield theirs


@pytest.fixture
def sink(ledger, peer):
    (sink,) = ledger.sinks["host", PORT]
    return sink


def opened(ledger, guest, **options):
    ledger.sent(guest, up(Op.REQUEST, **options))
    ledger.received(guest, down(Op.RESPONSE, **options))


def acknowledged(ledger, guest, size, **options):
    """The guest sends `size` bytes, and hears that they were taken."""
    ledger.sent(guest, up(Op.RW, len=size, **options))
    ledger.received(guest, down(Op.CREDIT_UPDATE, fwd_cnt=size, **options))


def wrong(ledger):
    with pytest.raises(AssertionError) as caught:
        ledger.check()
    return str(caught.value)


def test_bytes_in_the_sinks_buffer_were_taken(ledger, guest, sink, peer):
    opened(ledger, guest)
    peer.send(b"x" * 100)
    acknowledged(ledger, guest, 100)
    ledger.check()
    sink.recv(40)
    ledger.check()
    sink.close()
    ledger.check()


def test_bytes_that_no_sink_has_are_missed(ledger, guest, sink, peer):
    opened(ledger, guest)
    peer.send(b"x" * 99)
    acknowledged(ledger, guest, 100)
    assert "its sink took 99" in wrong(ledger)


def test_bytes_dropped_after_the_sink_closed_are_missed(ledger, guest, sink):
    opened(ledger, guest)
    sink.close()
    acknowledged(ledger, guest, 100)
    assert "its sink took 0" in wrong(ledger)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param({"op": Op.RST}, id="rst"),
        pytest.param(
            {"op": Op.SHUTDOWN, "flags": Shutdown.RECEIVE, "fwd_cnt": 100},
            id="receive",
        ),
    ],
)
def test_a_guest_that_was_told_misses_nothing(ledger, guest, sink, end):
    opened(ledger, guest)
    sink.close()
    acknowledged(ledger, guest, 100)
    ledger.received(guest, down(**end))
    ledger.check()


def test_a_shutdown_that_speaks_of_sending_only_does_not_tell(ledger, guest, sink):
    opened(ledger, guest)
    sink.close()
    acknowledged(ledger, guest, 100)
    ledger.received(guest, down(Op.SHUTDOWN, flags=Shutdown.SEND, fwd_cnt=100))
    assert "its sink took 0" in wrong(ledger)


def test_what_comes_while_it_waits_counts(ledger, guest, sink):
    opened(ledger, guest)
    sink.close()
    acknowledged(ledger, guest, 100)

    def take():
        ledger.received(guest, down(Op.RST))

    guest._take = take
    ledger.check()


def test_a_port_with_more_connections_than_sockets_has_unseen_ones(
    ledger, guest, sink, peer
):
    for port in (LOCAL, LOCAL + 1):
        opened(ledger, guest, ports=(port, PORT))
        acknowledged(ledger, guest, 50, ports=(port, PORT))
    assert "its sink took 0" in wrong(ledger)
    peer.send(b"x" * 50)  # the other one waits to be accepted
    ledger._faults.clear()
    ledger.check()


def test_more_than_was_sent_and_less_than_before_are_missed(ledger, guest):
    opened(ledger, guest)
    ledger.received(guest, down(Op.CREDIT_UPDATE, fwd_cnt=10))
    assert "more than all" in wrong(ledger)
    ledger.received(guest, down(Op.CREDIT_UPDATE, fwd_cnt=9))
    assert "went back to 9" in wrong(ledger)


def test_fwd_cnt_may_wrap(ledger, guest):
    opened(ledger, guest)
    for total in range(1 << 30, 5 << 30, 1 << 30):
        ledger.sent(guest, up(Op.RW, len=1 << 30))
        ledger.received(guest, down(Op.CREDIT_UPDATE, fwd_cnt=total % (1 << 32)))
    ledger.check()


def test_an_echo_has_taken_what_it_sent_back(ledger, guest):
    ports = (LOCAL, ECHO)
    opened(ledger, guest, ports=ports)
    ledger.sent(guest, up(Op.RW, len=10, ports=ports))
    ledger.received(guest, down(Op.RW, len=6, fwd_cnt=6, ports=ports))
    ledger.check()
    ledger.received(guest, down(Op.CREDIT_UPDATE, fwd_cnt=7, ports=ports))
    assert "its sink took 6" in wrong(ledger)


def test_a_sibling_has_taken_what_it_says_that_it_consumed(ledger, guest):
    other = Guest(4)
    there = {"cid": 4, "guest": 3}
    back = {"cid": 3, "guest": 4, "ports": (PORT, LOCAL)}
    ledger.sent(guest, up(Op.REQUEST, **there))
    ledger.received(other, down(Op.REQUEST, **back))
    ledger.sent(other, up(Op.RESPONSE, **back))
    ledger.received(guest, down(Op.RESPONSE, **there))
    ledger.sent(guest, up(Op.RW, len=10, **there))
    ledger.sent(other, up(Op.CREDIT_UPDATE, fwd_cnt=4, **back))
    ledger.received(guest, down(Op.CREDIT_UPDATE, fwd_cnt=4, **there))
    ledger.check()
    ledger.received(guest, down(Op.CREDIT_UPDATE, fwd_cnt=5, **there))
    assert "its sink took 4" in wrong(ledger)
