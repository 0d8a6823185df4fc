"""A guest's listener when the client, the guest, or one of the two sides is gone.

And when the process or the VM may have no more.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING

import pytest

from tests.conformance.doors import (
    FAILED,
    FIRST,
    OPENED,
    RESET,
    TAG,
    Door,
    is_reset,
    name,
    refuse,
    requested,
)
from tests.conformance.links import wait_for
from tests.conformance.shortage import no_fds_left
from tests.conformance.threads import TIMEOUT_S
from vhost_user.errors import StateError
from vhost_user.vsock.packet import Op, Shutdown

if TYPE_CHECKING:
    from vhost_user.engine import Event


def test_a_client_that_leaves_before_the_guest_answers_is_told(guest, door):
    door.know()
    with door.dial() as client:
        header = requested(guest)
        address = name(client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    event = door.heard(1, FAILED)
    assert (event.error, event.src, event.tag) == (errno.ECONNABORTED, address, TAG)
    packet = guest.receive_for(header.dst_port, header.src_port)
    assert packet.op == Op.RST
    refuse(guest, header)  # too late
    assert guest.fence() == []
    assert door.events == []


def test_a_client_that_leaves_before_python_takes_it_can_be_taken(door):
    with door.dial() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        event = door.told(1)
        address = name(client)
    assert event.src == address
    door.take(event).close()


def test_a_guest_that_never_answers_loses_the_client(make_host, make_guest_of):
    host = make_host(dial_timeout_s=0.1)
    guest = make_guest_of(host)
    with contextlib.closing(Door(host, backlog=0)) as door:
        door.know()
        for count in (1, 2):  # and the next is accepted
            with door.dial() as client:
                requested(guest)
                is_reset(client)
                event = door.heard(count, FAILED)
                assert (event.error, event.src) == (errno.ETIMEDOUT, name(client))
                assert guest.receive().op == Op.RST


def test_clients_that_a_guest_without_buffers_gets_are_pending_no_longer(
    make_host, make_guest_of
):
    host = make_host(dial_timeout_s=0.1)
    make_guest_of(host, rx_buffers=0)
    with contextlib.closing(Door(host, backlog=0)) as door:
        door.know()
        for count in (1, 2, 3):
            with door.dial() as client:
                is_reset(client)
                door.heard(count, FAILED)


def test_a_client_that_python_never_takes_is_reset(make_host):
    host = make_host(dial_timeout_s=0.1)
    with contextlib.closing(Door(host, backlog=0)) as door:
        for count in (1, 2):
            with door.dial() as client:
                is_reset(client)
                assert door.told(count, FAILED).error == errno.ETIMEDOUT


def test_a_guest_that_resets_everything_leaves_nothing_behind(host, guest, door):
    door.know()
    for count in range(1, 301):
        with door.dial():
            refuse(guest, requested(guest))
            door.take(door.told(count)).close()
            door.call(door.handle.resume)
    assert host.engine_stats().conns == 0
    assert door.conns() == 0
    assert host.stats().conns == 0


def test_a_guest_that_answers_twice_changes_nothing(guest, door):
    door.know()
    with door.dial() as client:
        header = requested(guest)
        refuse(guest, header)
        refuse(guest, header)
        guest.send(guest.header(Op.RESPONSE, header.dst_port, header.src_port))
        assert [packet.op for packet in guest.fence()] == [Op.RST]
        with door.take(door.told(1)) as sock:
            client.sendall(b"x")
            wait_for(lambda: sock.recv(1, socket.MSG_PEEK), "a byte")


def test_a_vm_that_may_have_no_more_connections_leaves_its_clients_to_python(
    make_host, make_guest_of
):
    host = make_host(max_conns=1)
    guest = make_guest_of(host)
    with contextlib.closing(Door(host)) as door:
        door.know()
        with door.dial(), door.dial() as second, door.dial():
            conn = guest.accept()
            event = door.told(1)
            assert (event.error, event.src) == (errno.EAGAIN, name(second))
            assert guest.fence() == []
            assert len(door.events) == 1  # the third is not accepted
            door.take(event).close()
            conn.shutdown(Shutdown.BOTH)
            conn.expect(Op.RST)
            door.call(door.handle.resume)
            requested(guest)


def test_an_engine_without_room_closes_the_client(make_host, make_guest_of):
    host = make_host(engine_conns=1, max_conns=1)
    guest = make_guest_of(host)
    with contextlib.closing(Door(host)) as door:
        conn = guest.connect(7)
        with door.dial() as client:
            assert client.recv(1) == b""
        assert host.engine_stats().refused == 1
        conn.shutdown(Shutdown.BOTH)
        conn.expect(Op.RST)
        with door.dial():
            door.told(1)


def test_a_process_out_of_descriptors_accepts_later(host, guest, door):
    door.know()
    with socket.socket() as client:
        client.settimeout(TIMEOUT_S)
        with no_fds_left():
            client.connect(door.address)
            wait_for(lambda: host.stats().no_fds > 0, "the shortage")
        assert requested(guest).src_port == FIRST | name(client)[1]


def test_a_paused_listener_stays_so_when_descriptors_are_back(host, guest, door):
    door.know()
    with socket.socket() as client:
        client.settimeout(TIMEOUT_S)
        with no_fds_left():
            client.connect(door.address)
            wait_for(lambda: host.stats().no_fds > 0, "the shortage")
            door.call(door.handle.pause)
        before = host.stats().no_fds
        assert guest.fence() == []
        assert host.stats().no_fds == before
        door.call(door.handle.resume)
        requested(guest)


def test_a_guest_that_leaves_loses_its_pending_clients(make_host, make_guest_of):
    host = make_host()
    guest = make_guest_of(host)
    with contextlib.closing(Door(host)) as door:
        door.know()
        with door.dial() as client:
            requested(guest)
            guest.close()
            is_reset(client)
            event = door.heard(1, FAILED)
            assert (event.error, event.src) == (errno.ECONNRESET, name(client))
        assert door.events == []
        host.idle()
        with make_guest_of(host) as guest, door.dial():
            requested(guest)


def test_a_removed_devices_clients_are_pythons(host):
    ends: list[Event] = []
    device = host.call(
        lambda: host.engine.add_device(guest_cid=9, on_event=ends.append)
    )
    with contextlib.closing(Door(host, device=device)) as door:
        door.know()
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(door.dial()) for _ in range(40)]
            wait_for(lambda: host.call(device.stats).conns == 40, "the offers")
            host.call(device.close)
            for client in clients:
                is_reset(client)
            assert {event.src for event in ends} == {name(each) for each in clients}
            assert {(event.kind, event.tag) for event in ends} == {(FAILED, TAG)}
        with door.dial():
            door.told(1)
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(StateError):
        host.call(
            lambda: host.engine.add_guest_listener(
                sock, device, backlog=1, tag=TAG, on_event=ends.append
            )
        )


def test_a_deleted_listeners_pending_clients_live_on(guest, door):
    other = Door(door.host)
    other.know()
    with other.dial() as client, other.dial() as second:
        header = requested(guest)
        refused = requested(guest)
        other.close()
        guest.send(guest.header(Op.RESPONSE, header.dst_port, header.src_port))
        event = door.heard(1, OPENED)
        assert (event.src, event.tag) == (name(client), TAG)
        refuse(guest, refused)
        is_reset(second)
        event = door.heard(1, FAILED)
        assert (event.error, event.src) == (errno.ECONNREFUSED, name(second))
    assert other.events == []


def test_a_deleted_listeners_clients_can_still_be_taken(door):
    other = Door(door.host)
    with other.dial() as client:
        event = other.told(1)
        other.close()
        with other.take(event) as sock:
            assert sock.getpeername() == client.getsockname()
    handlers = door.host.engine._handlers
    wait_for(lambda: (door.host.deliver(), other.handle.id not in handlers)[1])
