"""What one VM may take: connections, bytes, requests a second, the host's shortages."""

from __future__ import annotations

import contextlib
import logging
import socket

import pytest

from tests.conformance.shortage import no_fds_left
from tests.support.limits import LIMIT_S
from vhost_user.engine import MIN_WINDOW
from vhost_user.vsock.packet import Op, Shutdown

ECHO, DISCARD = 7, 9
WINDOW = 64 * 1024


def echoes(conn, data=b"ping"):
    conn.say(Op.RW, data)
    assert conn.receive_bytes(len(data)) == data


def drop(conn):
    conn.shutdown(Shutdown.BOTH)
    while conn.expect(Op.RST, Op.CREDIT_UPDATE).op != Op.RST:
        pass


def logged(caplog, text):
    """How many lines say it; `host.stats()` before has let the event come."""
    return sum(text in record.getMessage() for record in caplog.records)


# ---- connections ----


def test_one_connection_too_many_is_refused_and_counted(
    make_host, make_guest_of, caplog
):
    host = make_host(max_conns=3)
    guest = make_guest_of(host)
    conns = [guest.connect(ECHO) for _ in range(3)]
    for _ in range(5):
        guest.request(ECHO).expect(Op.RST)
    assert host.stats().limit_conns == 5
    for conn in conns:
        echoes(conn)
    drop(conns.pop())
    echoes(guest.connect(ECHO))  # recovered
    host.deliver()
    assert logged(caplog, "CID 3: has max_conns connections (3); more are refused") == 1


def test_a_host_client_too_many_gets_a_reason(make_host, make_guest_of):
    host = make_host(max_conns=1)
    guest = make_guest_of(host)
    guest.connect(ECHO)
    with host.dial(5001) as sock:
        assert sock.recv(100).startswith(b"ERROR ")
        assert sock.recv(1) == b""
    assert host.stats().limit_conns == 1


# ---- bytes ----


def test_windows_come_from_the_vms_bytes_and_never_exceed_them(
    make_host, make_guest_of, caplog
):
    total = 64 * MIN_WINDOW + 2 * WINDOW
    host = make_host(max_conns=64, max_queued_bytes=total)
    guest = make_guest_of(host)
    conns = [guest.connect(DISCARD) for _ in range(64)]
    windows = [conn.peer_buf_alloc for conn in conns]
    assert all(window >= MIN_WINDOW for window in windows)
    assert windows == sorted(windows, reverse=True)
    stats = host.stats()
    assert stats.window_bytes == sum(windows) <= total
    assert stats.limit_bytes >= 60
    host.deliver()
    assert logged(caplog, "CID 3: nears max_queued_bytes") == 1


def test_a_guest_that_fills_every_window_is_held_within_its_bytes(
    make_host, make_guest_of
):
    """Nobody reads on the host; no byte is lost, and idle connections still work."""
    total = 16 * MIN_WINDOW + 64 * 1024
    host = make_host(max_conns=16, max_queued_bytes=total)
    guest = make_guest_of(host)
    other = guest.connect(ECHO)
    pattern = bytes(range(256)) * 4096
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(host.listen(5000))
        pairs = []
        for _ in range(10):
            conn = guest.connect(5000)
            pairs.append((conn, stack.enter_context(listener.accept()[0])))
        for conn, _ in pairs:
            fill(guest, conn, pattern)
        assert 0 < host.stats().queued_bytes <= total
        echoes(other)
        for conn, sock in pairs:
            sock.settimeout(LIMIT_S)
            assert read_all(sock, conn.tx_cnt) == pattern[: conn.tx_cnt]
    assert host.stats().queued_bytes == 0


def test_sockets_that_hold_a_window_are_within_the_vms_bytes(make_host, make_guest_of):
    window, most, usual = 1 << 20, 4 << 20, 256 << 10
    host = make_host(buf_alloc=window, max_conns=16, max_queued_bytes=most)
    guest = make_guest_of(host)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(host.listen(5000))
        conns = []
        for _ in range(12):
            conns.append(guest.connect(5000))
            stack.enter_context(listener.accept()[0])  # and doesn't read
            fill(guest, conns[-1], bytes(2 * most))
        in_sockets = sum(conn.peer_fwd_cnt for conn in conns)
        # Linux counts a socket's bytes with what it needs to hold them.
        assert in_sockets <= 2 * most + (12 - most // window) * usual
        assert host.stats().queued_bytes <= most


def fill(guest, conn, pattern):
    """Send from `pattern` until the credit is used up for good."""
    while True:
        while conn.credit:
            size = min(conn.credit, 8192)
            conn.say(Op.RW, pattern[conn.tx_cnt : conn.tx_cnt + size])
        for packet in guest.fence():
            if packet.header.src_port == conn.host_port:
                conn.take_credit(packet.header)
        if not conn.credit:
            return


def read_all(sock, size):
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


def test_the_end_of_a_window_never_moves_back(make_host, make_guest_of):
    """Linux takes a window that shrank below what is in flight for a huge one."""
    host = make_host(max_conns=8, max_queued_bytes=8 * MIN_WINDOW + 16 * 1024)
    guest = make_guest_of(host)
    conns = [guest.connect(DISCARD) for _ in range(4)]
    ends = {conn: conn.peer_buf_alloc for conn in conns}
    for _ in range(20):
        for conn in conns:
            conn.say(Op.RW, bytes(min(conn.credit, 1000)))
            conn.say(Op.CREDIT_REQUEST)
            conn.expect(Op.CREDIT_UPDATE)
            end = conn.peer_fwd_cnt + conn.peer_buf_alloc
            assert end >= ends[conn]
            ends[conn] = end


def test_a_busy_connections_window_grows_and_its_end_frees_it(make_host, make_guest_of):
    host = make_host(buf_alloc=256 * 1024)
    guest = make_guest_of(host)
    conn = guest.connect(DISCARD)
    assert conn.peer_buf_alloc == 64 * 1024
    conn.send(bytes(512 * 1024))
    conn.say(Op.CREDIT_REQUEST)
    while conn.peer_buf_alloc < 256 * 1024:
        conn.expect(Op.CREDIT_UPDATE)
    assert host.stats().window_bytes == 256 * 1024
    drop(conn)
    assert host.stats().window_bytes == 0


# ---- rate ----


def test_requests_above_the_rate_are_refused_and_counted(
    make_host, make_guest_of, caplog
):
    host = make_host(accept_rate=10)
    guest = make_guest_of(host)
    conns = [guest.request(ECHO) for _ in range(200)]
    answers = [conn.receive().op for conn in conns]
    opened = answers.count(Op.RESPONSE)
    assert 10 <= opened < 200
    assert answers[:10] == [Op.RESPONSE] * 10
    assert host.stats().limit_rate == 200 - opened
    echoes(conns[0])
    host.deliver()
    assert logged(caplog, "CID 3: exceeds accept_rate; requests are refused") == 1


def test_the_guests_requests_do_not_use_up_the_hosts(make_host, make_guest_of):
    host = make_host(accept_rate=2)
    guest = make_guest_of(host)
    for _ in range(50):
        guest.request(ECHO).receive()
    with host.dial(5001) as sock:
        assert guest.accept().guest_port == 5001
        assert sock.recv(3) == b"OK "


def test_requests_are_taken_again_as_time_goes_by(make_host, make_guest_of):
    host = make_host(accept_rate=2)
    guest = make_guest_of(host)
    while guest.request(ECHO).receive().op == Op.RESPONSE:
        pass
    while guest.request(ECHO).receive().op == Op.RST:
        pass
    assert host.stats().limit_rate >= 1


# ---- shortages ----


def test_without_descriptors_requests_are_refused_and_others_go_on(
    host, guest, far, caplog
):
    conn, sock = far()
    with host.listen(5001) as listener:
        with no_fds_left():
            for _ in range(3):
                guest.request(5001).expect(Op.RST)
            conn.say(Op.RW, b"alive")
            assert sock.recv(10) == b"alive"
        assert host.stats().no_fds == 3
        guest.connect(5001)  # recovered
        listener.accept()[0].close()
    host.deliver()
    assert logged(caplog, "CID 3: a connection failed: out of file descriptors") == 1


def test_without_descriptors_host_clients_wait_and_are_served_later(
    host, guest, caplog
):
    conn = guest.connect(ECHO)
    socks = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    with no_fds_left():
        for sock in socks:
            sock.settimeout(LIMIT_S)
            sock.connect(str(host.uds_path))
            sock.send(b"CONNECT 5001\n")
        before = host.engine_stats().wakeups
        for _ in range(20):
            echoes(conn)
        assert host.engine_stats().wakeups - before < 500
    for _ in socks:
        guest.accept()
    for sock in socks:
        assert sock.recv(3) == b"OK "
        sock.close()
    assert logged(caplog, "can't accept") == 1


def test_a_full_listener_holds_up_its_own_connections_only(host, guest, far, caplog):
    conn, sock = far()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{host.uds_path}_5001")
        listener.listen(0)
        waiting = [guest.request(5001) for _ in range(20)]
        for _ in range(20):
            conn.say(Op.RW, b"alive")
            assert sock.recv(10) == b"alive"
            echoes(guest.connect(ECHO))
        assert host.stats().backlog_full >= 19 - 2
        # recovered: each gets in as there is room
        accepted = [listener.accept()[0] for _ in waiting]
        for one in waiting:
            one.expect(Op.RESPONSE)
        for one in accepted:
            one.close()
    host.deliver()
    assert logged(caplog, "its backlog is full") == 1


@pytest.fixture(autouse=True)
def _log_level(caplog):
    caplog.set_level(logging.INFO)
