"""Listeners whose clients are a guest's: who is offered, who is handed to Python."""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
from ipaddress import IPv4Address, IPv6Address

import pytest

from tests.conformance.doors import (
    CLOSED,
    FAILED,
    FIRST,
    LOCAL,
    OPENED,
    PORT,
    TAG,
    Door,
    is_reset,
    name,
    refuse,
    requested,
)
from tests.conformance.links import wait_for
from tests.conformance.threads import TIMEOUT_S
from vhost_user.engine import MAX_CALLERS
from vhost_user.errors import StateError
from vhost_user.vsock.packet import Op, Shutdown


def test_a_known_callers_client_is_offered_at_once(guest, door):
    door.know()
    with door.dial() as client:
        conn = guest.accept()
        assert conn.guest_port == PORT
        assert conn.host_port == FIRST | name(client)[1]
        event = door.heard(1, OPENED)
        assert (event.src, event.dst) == (name(client), door.address[:2])
        assert (event.tag, event.peer_port, event.port) == (TAG, PORT, conn.host_port)
        client.sendall(b"hello")
        assert conn.receive_bytes(5) == b"hello"
        conn.say(Op.RW, b"worlds")
        assert client.recv(6) == b"worlds"
        client.close()
        conn.shutdown(Shutdown.BOTH)
        event = door.heard(1, CLOSED)
        assert (event.up_bytes, event.down_bytes) == (5, 6)
    assert door.events == []


def test_an_ipv6_client_is_known_by_its_own_address(host, guest):
    with contextlib.closing(Door(host, family=socket.AF_INET6)) as door:
        door.know(LOCAL)
        with door.dial() as client:
            assert door.told(1).src == name(client)
        door.know(IPv6Address("::1"))
        with door.dial() as client:
            assert guest.accept().host_port == FIRST | name(client)[1]


def test_python_takes_an_unknown_client(guest, door):
    with door.dial() as client:
        event = door.told(1)
        assert (event.src, event.dst) == (name(client), door.address[:2])
        assert (event.tag, event.error) == (TAG, 0)
        with door.take(event) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            client.sendall(b"x")
            wait_for(lambda: sock.recv(1, socket.MSG_PEEK), "a byte")
            assert sock.recv(1) == b"x"
            sock.sendall(b"y")
            assert client.recv(1) == b"y"
        assert door.call(lambda: door.host.engine.take(event.conn)) is None
    assert guest.fence() == []


def test_a_client_to_be_taken_can_only_be_taken(door):
    with door.dial() as client:
        event = door.told(1)
        engine = door.host.engine
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(StateError):
            door.call(lambda: engine.answer_fd(event.conn, theirs))
        assert door.call(lambda: engine.reset(event.conn))
        is_reset(client)
        assert door.told(1, FAILED).src == name(client)


def test_what_is_no_such_client_is_not_taken(guest, door):
    conn = guest.connect(7)
    event = door.heard(1, OPENED)
    with pytest.raises(StateError):
        door.call(lambda: door.host.engine.take(event.conn))
    conn.say(Op.RW, b"echo")
    assert conn.receive_bytes(4) == b"echo"


def test_a_client_that_the_guest_refuses_is_handed_to_python_untouched(guest, door):
    door.know()
    with door.dial() as client:
        header = requested(guest)
        client.sendall(b"early")
        refuse(guest, header)
        event = door.told(1)
        assert (event.error, event.src) == (errno.ECONNREFUSED, name(client))
        with door.take(event) as sock:
            offer = functools.partial(door.host.device.handle.offer, PORT, sock)
            door.call(lambda: offer(port=FIRST | name(client)[1]))
            conn = guest.accept()
            door.heard(1, OPENED)
        assert conn.receive_bytes(5) == b"early"
    assert door.device(FAILED) == 0


def test_nobody_is_accepted_after_one_that_is_refused(guest, door):
    door.know()
    with door.dial() as first, door.dial() as second:
        refuse(guest, requested(guest))
        refuse(guest, requested(guest))
        door.told(2)
        events = list(door.events)
        with door.dial() as third:
            assert guest.fence() == []
            door.call(door.handle.resume)
            assert requested(guest).src_port == FIRST | name(third)[1]
        assert {event.src for event in events} == {name(first), name(second)}
        for event in events:
            door.take(event).close()


def test_a_paused_listener_accepts_nobody(guest, door):
    door.know()
    door.call(door.handle.pause)
    with door.dial() as client:
        assert guest.fence() == []
        assert door.events == []
        door.call(door.handle.resume)
        assert requested(guest).src_port == FIRST | name(client)[1]


def test_no_more_clients_are_pending_than_the_backlog_could_take(host, guest):
    with contextlib.closing(Door(host, backlog=1)) as door, contextlib.ExitStack() as s:
        door.know()
        for _ in range(3):
            s.enter_context(door.dial())
        headers = [requested(guest) for _ in range(2)]
        assert guest.fence() == []
        refuse(guest, headers[0])
        event = door.told(1)
        door.call(door.handle.resume)
        assert guest.fence() == []  # Python has yet to take that one
        door.take(event).close()
        requested(guest)


def test_unknown_clients_are_pending_until_they_are_taken(host):
    with contextlib.closing(Door(host, backlog=1)) as door, contextlib.ExitStack() as s:
        for _ in range(3):
            s.enter_context(door.dial())
        event = door.told(2)
        host.deliver()
        assert len(door.events) == 2
        door.take(event).close()
        door.told(3)


def test_a_larger_backlog_lets_more_be_pending(host, guest):
    with contextlib.closing(Door(host, backlog=0)) as door, contextlib.ExitStack() as s:
        door.know()
        for _ in range(2):
            s.enter_context(door.dial())
        requested(guest)
        assert guest.fence() == []
        door.call(lambda: door.handle.set_backlog(1))
        requested(guest)


def test_a_client_whose_ports_are_in_use_is_handed_to_python(guest, door):
    door.know()
    sock, theirs = door.host.pair()
    with sock, theirs, socket.socket() as client:
        client.settimeout(TIMEOUT_S)
        client.bind(("127.0.0.1", 0))
        offer = functools.partial(door.host.device.handle.offer, PORT, theirs)
        door.call(lambda: offer(port=FIRST | name(client)[1]))
        client.connect(door.address)
        assert door.told(1).error == 0


def test_a_forgotten_callers_clients_are_pythons(guest, door):
    other = IPv4Address("127.0.0.2")
    door.know()
    door.know(other, first=FIRST + 0x10000)
    door.call(lambda: door.handle.forget(LOCAL))
    door.call(lambda: door.handle.forget(LOCAL))  # again: nothing
    with door.dial(), socket.socket() as client:
        door.told(1)
        client.bind((str(other), 0))
        client.connect(door.address)
        assert requested(guest).src_port == FIRST + 0x10000 | name(client)[1]
        door.call(door.handle.forget_all)
        with socket.socket() as another:
            another.bind((str(other), 0))
            another.connect(door.address)
            assert door.told(2).src == name(another)


def test_a_caller_may_be_told_anew(guest, door):
    door.know()
    door.know(port=PORT + 1, first=FIRST + 0x10000)
    with door.dial() as client:
        header = requested(guest)
        assert header.dst_port == PORT + 1
        assert header.src_port == FIRST + 0x10000 | name(client)[1]


def test_a_listener_knows_a_bounded_number_of_callers(guest, door):
    for number in range(MAX_CALLERS):
        door.know(IPv4Address("10.0.0.0") + number * 7 % MAX_CALLERS)
    with pytest.raises(StateError):
        door.know()
    door.call(lambda: door.handle.forget(IPv4Address("10.0.1.7")))
    door.know()
    with door.dial():
        requested(guest)


@pytest.mark.parametrize("first", [FIRST + 1, 5])
def test_a_first_port_is_that_of_a_range(door, first):
    with pytest.raises(StateError):
        door.know(first=first)


def test_connections_are_counted_by_their_range_until_the_guest_lets_go(guest, door):
    assert door.conns() == 0
    door.know()
    with door.dial() as client:
        header = requested(guest)
        assert door.conns() == 1
        refuse(guest, header)
        with door.take(door.told(1)):
            assert door.conns() == 0
        door.call(door.handle.resume)
        with door.dial():
            conn = guest.accept()
            assert door.conns() == 1
        client.close()
        conn.shutdown(Shutdown.BOTH)
        conn.expect(Op.SHUTDOWN, Op.RST)
        conn.say(Op.RST)
        wait_for(lambda: door.conns() == 0, "the end")
