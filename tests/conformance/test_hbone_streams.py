"""CONNECTs of ours: what is asked, what an answer means, bytes and ends both ways."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import h2.events
import pytest

from tests.conformance.conftest import read_exactly
from tests.conformance.peers import CODES
from tests.conformance.tunnels import Mesh
from tests.support.limits import LIMIT_S
from vhost_user.engine import EventKind
from vhost_user.hbone import Reason
from vhost_user.vsock.packet import Op, Shutdown

CANCEL, PROTOCOL_ERROR, REFUSED_STREAM, INTERNAL_ERROR = 0x8, 0x1, 0x7, 0x2
WINDOW = 4 << 20
HARD = struct.pack("ii", 1, 0)
DATA = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def pool(mesh):
    return mesh.pool()


@pytest.fixture
def aside():
    """Run the other end in a thread, while the guest waits for it."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit


def test_a_connect_says_where_to_who_asks_and_for_whom(pool):
    sock = pool.client()
    _, headers = pool.accept().request()
    port = sock.getsockname()[1]
    trace = headers.pop("traceparent")
    assert headers == {
        ":method": "CONNECT",
        ":authority": "10.0.0.9:80",
        "baggage": "k8s.cluster.name=Kubernetes",
        "forwarded": f'for="10.0.0.1:{port}";host=db',
    }
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", trace)


def test_each_connect_has_a_traceparent_of_its_own(pool):
    pool.client()
    pool.client()
    peer = pool.accept()
    assert peer.request()[1]["traceparent"] != peer.request()[1]["traceparent"]


def test_settings_and_windows_are_those_of_ztunnel(pool):
    pool.client()
    peer = pool.accept()
    peer.request()
    settings = {int(code): value for code, value in peer.h2.remote_settings.items()}
    assert settings[0x2] == 0  # ENABLE_PUSH
    assert settings[0x4] == WINDOW
    assert settings[0x5] == 1 << 20
    assert settings[0x6] == 16384
    assert peer.h2.outbound_flow_control_window == 16 << 20


def test_bytes_go_both_ways(pool):
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    sock.sendall(b"up")
    assert peer.read(stream, 2) == b"up"
    peer.send(stream, b"down")
    assert read_exactly(sock, 4) == b"down"


@pytest.mark.spec("rfc9113:5.2.1/respected")
def test_a_megabyte_goes_both_ways_with_small_windows(pool):
    sock = pool.client()
    peer = pool.accept(window=0)
    _, stream = pool.pair(peer, sock)
    sock.setblocking(True)
    peer.send(stream, DATA)
    assert read_exactly(sock, len(DATA)) == DATA
    sock.settimeout(0)
    sent, got = 0, b""
    while len(got) < len(DATA):
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(DATA[sent : sent + 65536]) if sent < len(DATA) else 0
        got += peer.read(stream, 1)
        while any(isinstance(each, h2.events.DataReceived) for each in peer.events):
            got += peer.read(stream, 1)
    assert got == DATA


def test_padding_is_no_payload(pool):
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    peer.h2.send_data(stream, b"padded", pad_length=40)
    peer.flush()
    peer.send(stream, b" and not")
    assert read_exactly(sock, 14) == b"padded and not"


@pytest.mark.spec("rfc9113:4.2/16384")
def test_a_megabyte_in_one_frame_is_taken(pool):
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    peer.fence()
    peer.raw(0x0, 0, stream, DATA)
    assert read_exactly(sock, len(DATA)) == DATA


def test_a_larger_frame_ends_the_tunnel(pool):
    sock = pool.client()
    peer = pool.accept()
    pool.pair(peer, sock)
    peer.fence()
    peer.sock.sendall(((1 << 20) + 1).to_bytes(3, "big") + b"\0\0\0\0\0\1")
    assert "end" in peer.gone()
    assert pool.events.reason(2) is Reason.HTTP2


# ---- ends ----


@pytest.mark.spec("rfc9113:8.5/fin")
def test_the_clients_fin_is_an_empty_frame_and_what_comes_back_arrives(pool):
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    sock.sendall(b"last")
    sock.shutdown(socket.SHUT_WR)
    assert peer.read(stream, 4) == b"last"
    event = peer.until(h2.events.DataReceived)
    assert (event.data, bool(event.stream_ended)) == (b"", True)
    peer.send(stream, b"answer", end=True)
    assert read_exactly(sock, 6) == b"answer"
    assert sock.recv(1) == b""
    assert pool.conns.wait(EventKind.CLOSED).error == 0


def test_the_servers_end_is_a_fin_and_what_goes_up_arrives(pool):
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    peer.send(stream, b"bye", end=True)
    assert read_exactly(sock, 3) == b"bye"
    assert sock.recv(1) == b""
    sock.sendall(b"still")
    assert peer.read(stream, 5) == b"still"
    sock.close()
    peer.ended(stream)
    assert pool.conns.wait(EventKind.CLOSED).error == 0


def test_an_answer_that_ends_the_stream_is_an_open_connection(pool):
    sock = pool.client()
    peer = pool.accept()
    stream, _ = peer.request()
    peer.h2.send_headers(stream, [(":status", "200")], end_stream=True)
    peer.flush()
    assert sock.recv(1) == b""
    sock.sendall(b"x")
    assert peer.read(stream, 1) == b"x"


def test_a_reset_by_the_server_is_a_reset(pool):
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    pool.conns.wait(EventKind.OPENED)
    peer.h2.reset_stream(stream, CANCEL)
    peer.flush()
    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    event = pool.conns.wait(EventKind.CLOSED)
    assert (event.error, Reason(event.reason)) == (errno.ECONNRESET, Reason.RESET)
    peer.fence()  # the tunnel is as it was
    pool.pair(peer)


def test_a_reset_by_the_client_is_a_reset(pool):
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    pool.conns.wait(EventKind.OPENED)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
    sock.close()
    assert peer.was_reset(stream) == CANCEL
    peer.fence()


def test_a_lost_tunnel_resets_its_connections(pool):
    socks = [pool.client() for _ in range(3)]
    peer = pool.accept()
    for _ in socks:
        peer.answer(peer.request()[0])
    pool.conns.wait(EventKind.OPENED, 3)
    peer.close()
    for sock in socks:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert pool.events.reason(2) is Reason.LOST


def test_bytes_for_a_connection_that_is_gone_are_answered_by_a_reset(pool):
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    peer.send(stream, b"a", end=False)
    assert read_exactly(sock, 1) == b"a"
    sock.close()
    peer.ended(stream)
    peer.send(stream, b"late")
    assert peer.was_reset(stream) == CANCEL
    assert pool.conns.wait(EventKind.CLOSED).error == errno.EPIPE


# ---- answers ----


@pytest.mark.parametrize(
    ("status", "error", "reason"),
    [
        (400, errno.ECONNREFUSED, Reason.BAD_REQUEST),
        (401, errno.EACCES, Reason.UNAUTHORIZED),
        (503, errno.ECONNREFUSED, Reason.UNAVAILABLE),
        (302, errno.ECONNREFUSED, Reason.STATUS),
    ],
)
def test_an_answer_that_is_no_success_fails_the_connection(pool, status, error, reason):
    pool.client()
    peer = pool.accept()
    peer.answer(peer.request()[0], status)
    assert pool.failed() == (error, reason)
    peer.fence()
    pool.pair(peer)  # by the same tunnel


def test_an_interim_answer_is_none(pool):
    sock = pool.client()
    peer = pool.accept()
    stream, _ = peer.request()
    peer.raw(0x1, 0x4, stream, peer.h2.encoder.encode([(":status", "103")]))
    peer.answer(stream)
    peer.send(stream, b"x")
    assert read_exactly(sock, 1) == b"x"


def test_an_answer_that_never_comes_times_out(make_host, tmp_path):
    with Mesh(make_host(dial_timeout_s=1), tmp_path) as mesh:  # and a handshake's
        pool = mesh.pool()
        pool.client()
        peer = pool.accept()
        stream, _ = peer.request()
        assert pool.failed()[0] == errno.ETIMEDOUT
        assert peer.was_reset(stream) == CANCEL
        peer.fence()


@pytest.mark.parametrize(
    "headers",
    [[("x", "y")], [(":status", "abc")], [(":status", "200"), ("Upper", "x")]],
    ids=["no-status", "no-number", "upper-case"],
)
def test_an_answer_that_is_no_http_resets_the_stream_alone(pool, headers):
    pool.client()
    peer = pool.accept()
    stream, _ = peer.request()
    peer.raw(0x1, 0x4, stream, peer.h2.encoder.encode(headers))
    assert peer.was_reset(stream) == PROTOCOL_ERROR
    assert pool.failed() == (errno.ECONNRESET, Reason.RESET)
    peer.fence()


def test_trailers_are_a_stream_error(pool):
    """RFC 9113 section 8.5: frames other than DATA on a connected stream."""
    sock = pool.client()
    peer = pool.accept()
    _, stream = pool.pair(peer, sock)
    peer.raw(0x1, 0x5, stream, peer.h2.encoder.encode([("x", "y")]))
    assert peer.was_reset(stream) == PROTOCOL_ERROR
    with pytest.raises(ConnectionResetError):
        sock.recv(1)


def test_a_stream_that_is_reset_while_its_client_sends_ends_once(pool, aside):
    """The reset goes out when the next bytes do: in the middle of those."""
    first = pool.client()
    wide = {CODES.INITIAL_WINDOW_SIZE: WINDOW}
    peer = pool.accept(settings=wide, window=1 << 30)  # all that 30 streams may have
    pool.pair(peer, first)
    for _ in range(30):
        sock = pool.client()
        _, stream = pool.pair(peer, sock)
        sending = aside(_send_for_ever, sock)
        peer.read(stream, 1)
        peer.raw(0x1, 0x5, stream, peer.h2.encoder.encode([("x", "y")]))
        assert peer.was_reset(stream) == PROTOCOL_ERROR  # reading: the socket is full
        assert isinstance(sending.result(), ConnectionError)
    peer.fence()


def _send_for_ever(sock):
    try:
        while True:
            sock.sendall(b"x" * 300)
    except OSError as error:
        return error


def test_a_refused_stream_is_tried_on_another_tunnel(mesh):
    pool = mesh.pool(max_streams=1)
    sock = pool.client()
    peer = pool.accept()
    stream, _ = peer.request()
    peer.h2.reset_stream(stream, REFUSED_STREAM)
    peer.flush()
    retried, _ = peer.request()  # this one has room again
    peer.answer(retried)
    peer.send(retried, b"x")
    assert read_exactly(sock, 1) == b"x"


def test_streams_that_are_refused_for_ever_fail(pool):
    pool.client()
    peer = pool.accept()
    for _ in range(5):
        stream, _ = peer.request()
        peer.h2.reset_stream(stream, REFUSED_STREAM)
        peer.flush()
    assert pool.failed() == (errno.ECONNREFUSED, Reason.REFUSED)


# ---- windows ----


def test_a_stream_whose_peer_takes_nothing_waits_alone(pool):
    stuck, other = pool.client(), pool.client()
    peer = pool.accept()
    streams = [peer.request()[0] for _ in range(2)]
    for stream in streams:
        peer.answer(stream)
    pool.conns.wait(EventKind.OPENED, 2)
    stuck.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while True:
            stuck.send(DATA)
    other.sendall(b"through")
    by_port = peer.until(
        h2.events.DataReceived, lambda event: event.data.startswith(b"through")
    )
    assert by_port.data == b"through"


def test_a_client_that_reads_nothing_holds_no_more_than_its_window(pool):
    slow, other = pool.client(), pool.client()
    peer = pool.accept()
    streams = [peer.request()[0] for _ in range(2)]
    for stream in streams:
        peer.answer(stream)
    pool.conns.wait(EventKind.OPENED, 2)
    first, second = streams
    sent = 0
    while peer.h2.local_flow_control_window(first) and sent < 64 << 20:
        size = min(
            peer.h2.local_flow_control_window(first), peer.h2.max_outbound_frame_size
        )
        peer.send(first, bytes(size))
        sent += size
        peer.fence()
    assert sent >= WINDOW
    peer.send(second, b"through")
    reader = [sock for sock in (slow, other) if _first_is(sock, b"t")]
    assert len(reader) == 1


def _first_is(sock, byte):
    sock.settimeout(LIMIT_S)
    return sock.recv(1) == byte


def test_a_stream_that_overruns_its_window_is_reset_alone(pool):
    slow, good = pool.client(), pool.client()
    peer = pool.accept()
    streams = [peer.request()[0] for _ in range(2)]
    for stream in streams:
        peer.answer(stream)
    pool.conns.wait(EventKind.OPENED, 2)
    for _ in range(64):  # as long as nobody reads, and the session's window lasts
        peer.raw(0x0, 0, streams[0], bytes(1 << 18))
    assert peer.was_reset(streams[0]) == 0x3  # FLOW_CONTROL_ERROR
    slow.close()
    good.close()


# ---- a guest ----


@pytest.fixture
def guest_pool(mesh, host):
    pool = mesh.pool()
    host.call(host.device.handle.route, 7000, pool.target)
    return pool


def served(pool):
    """Take a tunnel and answer its first request; return both."""
    peer = pool.accept(settings={CODES.INITIAL_WINDOW_SIZE: WINDOW})
    stream, _ = peer.request()
    peer.answer(stream)
    return peer, stream


def test_a_guests_bytes_go_both_ways(guest_pool, guest, aside):
    taken = aside(served, guest_pool)
    conn = guest.connect(7000, buf_alloc=2 << 20)
    peer, stream = taken.result()
    conn.send(DATA)
    assert peer.read(stream, len(DATA)) == DATA
    peer.send(stream, DATA)
    assert conn.receive_bytes(len(DATA)) == DATA
    conn.shutdown(Shutdown.SEND)
    peer.ended(stream)
    peer.send(stream, b"end", end=True)
    assert conn.receive_bytes(3) == b"end"
    conn.expect(Op.SHUTDOWN)


def test_a_guest_that_takes_nothing_bounds_its_own_stream(guest_pool, guest, aside):
    taken = aside(served, guest_pool)
    slow = guest.connect(7000, buf_alloc=4096)
    peer, stream = taken.result()
    answer = aside(lambda: peer.answer(peer.request()[0]))
    fast = guest.connect(7000, buf_alloc=1 << 20)
    answer.result()
    sent = 0
    while window := peer.h2.local_flow_control_window(stream):
        size = min(window, peer.h2.max_outbound_frame_size)
        peer.send(stream, bytes(size))
        sent += size
        peer.fence()
    assert WINDOW <= sent <= WINDOW + 4096
    peer.send(stream + 2, b"through")
    assert fast.receive_bytes(7) == b"through"
    assert slow.receive_bytes(4096) == bytes(4096)


def test_a_guests_connect_fails_with_what_the_far_side_had(
    guest_pool, guest, host, aside
):
    def refuse():
        peer = guest_pool.accept()
        peer.answer(peer.request()[0], 503)

    refused = aside(refuse)
    assert guest.request(7000).receive().op == Op.RST
    refused.result()
    host.deliver()
    event = host.events_of(EventKind.FAILED)[0]
    assert event.error == errno.ECONNREFUSED
    assert Reason(event.reason) is Reason.UNAVAILABLE


def test_a_guest_that_leaves_resets_its_streams(guest_pool, guest, aside):
    taken = aside(served, guest_pool)
    guest.connect(7000)
    peer, stream = taken.result()
    guest.close()
    assert peer.was_reset(stream) == CANCEL
    peer.fence()


def test_streams_that_a_full_socket_stopped_all_go_on(mesh):
    pool = mesh.pool(ping_s=3600.0)  # a slow peer is silent for long
    size = 3 << 20
    socks = [pool.client() for _ in range(8)]
    peer = pool.accept()
    streams = [peer.request()[0] for _ in socks]
    for stream in streams:
        peer.answer(stream)
    with ThreadPoolExecutor(len(socks)) as pool_of:
        sent = [pool_of.submit(sock.sendall, bytes(size)) for sock in socks]
        for stream in streams:  # in turns: its socket is full in between
            assert peer.read(stream, size) == bytes(size)
        for each in sent:
            each.result()
