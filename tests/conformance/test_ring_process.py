"""What a process is told of a guest's connection by rings, and what it may answer.

The process is by hand (`ringhand`); docs/ring.md is the specification.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.conformance.conftest import DESTINATION, IDENTITY
from tests.conformance.links import wait_for
from tests.conformance.ringhand import (
    DATA,
    RESET,
    STATE,
    UP_PRODUCER,
    HandMade,
)
from vhost_user.engine import EventKind, Ring
from vhost_user.errors import StateError
from vhost_user.vsock.packet import Op, Type

PORT = 5000


def failure(host):
    wait_for(lambda: host.events_of(EventKind.FAILED))
    (event,) = host.events_of(EventKind.FAILED)
    return event.error


# ---- what it is told ----


def test_the_hello_says_what_the_connection_is(ask):
    conn, process = ask()
    hello = process.hello
    assert len(hello) == 1024
    assert hello[:8] == b"fpring\r\n"
    assert struct.unpack_from("=IIII", hello, 8) == (1, 1024, 262144, 262144)
    assert struct.unpack_from("=Q", hello, 24) != (0,)
    ip = ip_address(DESTINATION[0]).packed + bytes(12)
    assert hello[32:56] == struct.pack("=HHI16s", 4, DESTINATION[1], 0, ip)
    ip = ip_address("10.0.0.5").packed + bytes(12)
    port = conn.guest_port & 0xFFFF
    assert hello[56:80] == struct.pack("=HHI16s", 4, port, 0, ip)
    assert struct.unpack_from("=II", hello, 80) == (len(IDENTITY), 0)
    assert hello[88 : 88 + len(IDENTITY)].decode() == IDENTITY
    assert not any(hello[88 + len(IDENTITY) :])


def test_an_ipv6_destination_comes_with_the_ipv6_source(host, guest):
    with host.listen_ring(PORT) as listener:
        target = Ring(host.peer.id, ("2001:db8::1", 443))
        host.call(host.device.handle.route, PORT, target)
        guest.request(PORT)
        with HandMade(listener.accept()[0]) as process:
            address = ip_address("2001:db8::1").packed
            assert process.hello[32:56] == struct.pack("=HHI16s", 6, 443, 0, address)
            assert process.hello[56:58] == b"\6\0"
            assert process.hello[64:80] == ip_address("fd00::5").packed


def test_a_listeners_client_is_where_its_connection_comes_from(host):
    with host.listen_ring(PORT) as listener:
        front = socket.create_server(("127.0.0.1", 0))
        where = front.getsockname()
        target = Ring(host.peer.id, DESTINATION)
        host.call(
            lambda: host.engine.add_listener(front, target, on_event=host.events.append)
        )
        client = socket.create_connection(where)
        with client, HandMade(listener.accept()[0]) as process:
            ip = ip_address("127.0.0.1").packed + bytes(12)
            port = client.getsockname()[1]
            assert process.hello[56:80] == struct.pack("=HHI16s", 4, port, 0, ip)
            process.answer()
            client.send(b"up")
            assert process.take(2) == b"up"
            process.put(b"down")
            process.end()
            assert client.recv(10) == b"down"
            assert client.recv(10) == b""


def test_a_source_that_is_not_known_is_not_said(ask):
    _, process = ask(addresses=())
    assert process.hello[56:80] == bytes(24)


def test_the_memory_begins_with_its_own_description(pair):
    _, process = pair
    head = struct.unpack_from("=8sIIII", process.memory)
    assert head == (b"fpring\r\n", 1, 4096, 262144, 262144)
    assert len(process.memory) == 4096 + 2 * 262144


def test_the_memory_cannot_be_taken_away(pair):
    conn, process = pair
    for size in (0, 4096, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(process.memfd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(process.memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    conn.say(Op.RW, b"still here")
    assert process.take(10) == b"still here"


@pytest.mark.parametrize("ring_bytes", [4096, 65536, 1 << 20])
def test_the_size_of_rings_is_an_option(ask, ring_bytes):
    conn, process = ask(ring_bytes=ring_bytes)
    process.answer()
    conn.expect(Op.RESPONSE)
    assert (process.up_bytes, process.down_bytes) == (ring_bytes, ring_bytes)
    data = os.urandom(50_000)
    for at in range(0, len(data), 4000):
        conn.send(data[at : at + 4000])
        assert process.take(len(data[at : at + 4000])) == data[at : at + 4000]


# ---- the answer ----


@pytest.mark.parametrize(
    "error", [errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES, 133]
)
def test_a_process_that_refuses_gives_the_errno(host, ask, error):
    conn, process = ask()
    process.answer(error)
    conn.expect(Op.RST)
    assert failure(host) == error


@pytest.mark.parametrize(
    "message",
    [b"\0", struct.pack("=Ii", 2, 0), struct.pack("=Ii", 1, -1), bytes(9), bytes(4096)]
    + [struct.pack("=Ii", 1, error) for error in (134, 4096, 0x7FFF_FFFF)],
    ids=["short", "version", "negative", "long", "very-long", "134", "4096", "max"],
)
def test_an_answer_that_is_none_is_a_protocol_error(host, ask, message):
    conn, process = ask()
    process.sock.send(message)
    conn.expect(Op.RST)
    assert failure(host) == errno.EPROTO


def test_a_process_that_leaves_without_an_answer_refuses(host, ask):
    conn, process = ask()
    process.sock.close()
    conn.expect(Op.RST)
    assert failure(host) == errno.ECONNREFUSED


def test_a_process_that_never_answers_times_out(make_host, make_guest_of):
    host = make_host(dial_timeout_s=0.2)
    guest = make_guest_of(host)
    with host.listen_ring(PORT) as listener:
        conn = guest.request(PORT)
        with HandMade(listener.accept()[0]) as process:
            conn.expect(Op.RST)
            assert failure(host) == errno.ETIMEDOUT
            process.sock.recv(100)  # its end
            assert process.get(UP_PRODUCER, STATE) == RESET | errno.ETIMEDOUT << 8


def test_before_the_answer_no_byte_of_the_process_counts(ask):
    conn, process = ask()
    process.put(b"early")
    process.ring()
    process.answer()
    conn.expect(Op.RESPONSE)
    assert conn.receive_bytes(5) == b"early"


@pytest.mark.parametrize("there", ["nothing", "a file", "a stream listener", "left"])
def test_where_no_process_listens_connections_are_refused(host, guest, there):
    listener = host.listen_ring(PORT)
    path = Path(listener.getsockname())
    listener.close()
    if there != "left":
        path.unlink()
    if there == "a file":
        path.touch()
    with socket.socket(socket.AF_UNIX) as stream:
        if there == "a stream listener":
            stream.bind(str(path))
            stream.listen()
        guest.request(PORT).expect(Op.RST)
    assert failure(host) == errno.ECONNREFUSED


def test_a_full_listener_is_asked_again(host, guest):
    with host.listen_ring(PORT) as listener:
        listener.listen(0)  # one more than that fits
        conns = [guest.request(PORT) for _ in range(40)]
        guest.fence()
        for _ in conns:
            with HandMade(listener.accept()[0]) as process:
                process.answer(errno.EHOSTDOWN)
        for conn in conns:
            conn.expect(Op.RST)
    assert {e.error for e in host.events_of(EventKind.FAILED)} == {errno.EHOSTDOWN}


def test_a_process_that_is_removed_is_offered_nothing_more(host, guest, pair):
    conn, process = pair
    host.call(host.peer.close)
    guest.request(PORT).expect(Op.RST)
    assert failure(host) == errno.ECONNREFUSED
    conn.say(Op.RW, b"still here")
    assert process.take(10) == b"still here"
    with pytest.raises(StateError):
        host.call(host.peer.close)


def test_messages_are_not_carried(host, guest):
    with host.listen_ring(PORT):
        guest.request(PORT, kind=Type.SEQPACKET).expect(Op.RST)
    assert failure(host) == errno.EPROTOTYPE


@pytest.mark.parametrize(
    "options",
    [
        {"path": "/" + "x" * 107},
        {"path": ""},
        {"identity": "x" * 937},
        {"ring_bytes": 0},
        {"ring_bytes": 2048},
        {"ring_bytes": 5000},
        {"ring_bytes": 1 << 31},
    ],
    ids=["long", "empty", "identity", "0", "2048", "5000", "2g"],
)
def test_a_process_must_have_a_path_and_a_size(host, options):
    options = {"path": "/run/x", "identity": ""} | options
    path = options.pop("path")
    with pytest.raises(StateError):
        host.call(lambda: host.engine.add_peer(path, **options))


# ---- limits ----


def test_rings_are_smaller_where_memory_is_scarce(make_host, make_guest_of):
    host = make_host(max_queued_bytes=1 << 20, max_conns=16)
    guest = make_guest_of(host)
    sizes, made = [], []
    with host.listen_ring(PORT) as listener:
        listener.listen(32)
        for _ in range(16):
            guest.request(PORT)
            made.append(HandMade(listener.accept()[0]))
            sizes.append(made[-1].up_bytes)
        limited = host.stats().limit_bytes
    for process in made:
        process.close()
    assert sizes[0] == 65536
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 4096
    assert sum(2 * size for size in sizes) <= 1 << 20
    assert limited >= 16


def test_room_for_rings_comes_back(make_host, make_guest_of):
    host = make_host(max_queued_bytes=1 << 20, max_conns=16)
    guest = make_guest_of(host)
    with host.listen_ring(PORT) as listener:
        for _ in range(40):
            conn = guest.request(PORT)
            with HandMade(listener.accept()[0]) as process:
                assert process.up_bytes == 65536
                process.answer(errno.ECONNREFUSED)
                conn.expect(Op.RST)


def test_the_bytes_begin_behind_the_first_page(pair):
    conn, process = pair
    conn.say(Op.RW, b"up")
    assert process.take(2) == b"up"
    assert process.memory[DATA : DATA + 2] == b"up"
