"""CONNECTs of others: what Python is told, what is answered, bytes and ends."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import subprocess

import h2.events
import pytest

from tests.conformance.conftest import read_exactly
from tests.conformance.peers import CODES, CONNECT, Peer
from tests.conformance.threads import TIMEOUT_S
from tests.support import pki
from vhost_user.engine import Chargen, Dial, Discard, Echo, EventKind, Reset
from vhost_user.hbone import Headers, Reason

PROTOCOL_ERROR, REFUSED_STREAM, CANCEL, CONNECT_ERROR = 0x1, 0x7, 0x8, 0xA
HARD = struct.pack("ii", 1, 0)
DATA = bytes(range(256)) * 4096
AUTHORITY = CONNECT[1]


@pytest.fixture
def gate(mesh):
    return mesh.gate()


def opened(gate, peer, count=1):
    """Open a stream to one end of a socket pair; return it and the other end."""
    stream = peer.connect()
    sock = gate.socket(gate.asked(count))
    assert peer.status(stream) == "200"
    return stream, sock


def test_python_is_told_what_the_connect_said(gate):
    peer = gate.dial()
    says = {"baggage": "k=v", "forwarded": 'for="10.0.0.1:4"', "traceparent": "00-1"}
    peer.connect([*CONNECT, *says.items(), ("x-forwarded-network", "")])
    event = gate.events.wait(EventKind.REQUEST)
    assert event.src == peer.sock.getsockname()
    assert event.dst == gate.address
    request = gate.request(event.conn)
    assert (request.peer, request.authority) == (pki.WEB, "10.0.0.9:80")
    assert {name: getattr(request, name) for name in says} == says
    assert request.network == ""


def test_what_the_connect_does_not_say_is_empty(gate):
    gate.dial().connect()
    request = gate.request(gate.asked())
    assert (request.baggage, request.forwarded, request.traceparent) == ("", "", "")
    assert request.network is None


def test_a_field_that_comes_twice_is_one_list(gate):
    gate.dial().connect([*CONNECT, ("baggage", "a=1"), ("baggage", "b=2")])
    assert gate.request(gate.asked()).baggage == "a=1,b=2"


def test_settings_and_windows_are_those_of_ztunnel(gate):
    peer = gate.dial()
    peer.fence()
    settings = {int(code): value for code, value in peer.h2.remote_settings.items()}
    assert settings[0x3] == 200  # MAX_CONCURRENT_STREAMS
    assert settings[0x4] == 4 << 20
    assert settings[0x5] == 1 << 20
    assert settings[0x6] == 65536
    assert peer.h2.outbound_flow_control_window == 16 << 20


@pytest.mark.spec("rfc9113:8.5/once-connected")
def test_the_answer_comes_once_the_far_side_is_there(gate):
    peer = gate.dial()
    stream = peer.connect()
    conn = gate.asked()
    peer.fence()
    peer.fence()
    assert not any(isinstance(e, h2.events.ResponseReceived) for e in peer.events)
    gate.socket(conn)
    assert peer.status(stream) == "200"


def test_the_answer_has_the_baggage_that_python_says(gate, mesh, host):
    peer = gate.dial()
    stream = peer.connect()
    conn = gate.asked()
    headers = mesh.call(Headers, host.engine, baggage="service.name=db")
    assert mesh.call(gate.gate.respond, conn, headers)
    gate.answer(conn, Echo())
    answer = peer.until(h2.events.ResponseReceived)
    assert dict(answer.headers) == {":status": "200", "baggage": "service.name=db"}
    assert answer.stream_id == stream


def test_a_server_on_the_node_is_reached(gate, mesh):
    server = mesh.kept(socket.create_server(("127.0.0.1", 0)))
    peer = gate.dial()
    stream = peer.connect()
    gate.answer(gate.asked(), Dial(server.getsockname()))
    sock = mesh.accept(server)
    assert peer.status(stream) == "200"
    peer.send(stream, DATA)
    assert read_exactly(sock, len(DATA)) == DATA
    sock.sendall(b"back")
    assert peer.read(stream, 4) == b"back"


def test_a_server_that_refuses_is_503_and_the_end(gate, mesh):
    nobody = mesh.kept(socket.socket())
    nobody.bind(("127.0.0.1", 0))
    peer = gate.dial()
    stream = peer.connect()
    gate.answer(gate.asked(), Dial(nobody.getsockname()))
    assert peer.status(stream) == "503"
    peer.ended(stream)
    assert gate.events.wait(EventKind.FAILED).error == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("error", "status"),
    [(errno.EACCES, "401"), (errno.EINVAL, "400"), (errno.EHOSTUNREACH, "503")],
)
def test_python_refuses_by_a_status(gate, error, status):
    peer = gate.dial()
    stream = peer.connect()
    gate.answer(gate.asked(), Reset(error))
    assert peer.status(stream) == status
    peer.ended(stream)
    peer.fence()


MALFORMED = {
    "get": [(":method", "GET"), (":scheme", "https"), (":path", "/"), AUTHORITY],
    "no-port": [(":method", "CONNECT"), (":authority", "10.0.0.9")],
    "port-0": [(":method", "CONNECT"), (":authority", "10.0.0.9:0")],
    "port-65536": [(":method", "CONNECT"), (":authority", "10.0.0.9:65536")],
    "no-number": [(":method", "CONNECT"), (":authority", "10.0.0.9:http")],
    "no-host": [(":method", "CONNECT"), (":authority", ":80")],
    "ipv6-without-brackets": [(":method", "CONNECT"), (":authority", "fd00::1:80")],
    "long": [(":method", "CONNECT"), (":authority", "a" * 300 + ":80")],
}


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_connect_to_a_host_and_a_port_is_400(gate, headers):
    peer = gate.dial()
    stream = peer.connect(headers)
    assert peer.status(stream) == "400"
    peer.ended(stream)
    peer.fence()
    assert not gate.events.of(EventKind.REQUEST)


@pytest.mark.parametrize("authority", ["[fd00::1]:80", "db.prod.svc.cluster.local:80"])
def test_ipv6_and_names_are_hosts(gate, authority):
    gate.dial().connect([(":method", "CONNECT"), (":authority", authority)])
    assert gate.request(gate.asked()).authority == authority


NO_HTTP = {
    "scheme": [*CONNECT, (":scheme", "https")],
    "path": [*CONNECT, (":path", "/")],
    "no-authority": [CONNECT[0]],
    "two-authorities": [*CONNECT, AUTHORITY],
    "pseudo-header-behind": [CONNECT[0], ("baggage", "k=v"), AUTHORITY],
    "unknown-pseudo-header": [*CONNECT, (":protocol", "x")],
    "upper-case": [*CONNECT, ("Baggage", "k=v")],
    "connection-header": [*CONNECT, ("connection", "close")],
    "line-feed": [*CONNECT, ("baggage", "a\nb")],
}


@pytest.mark.parametrize("headers", NO_HTTP.values(), ids=NO_HTTP)
def test_a_request_that_is_no_http_resets_the_stream_alone(gate, headers):
    """RFC 9113 section 8.1.1: malformed messages are stream errors."""
    peer = gate.dial()
    peer.connect_raw(1, headers)
    code = reset_of(peer, 1)
    assert code == PROTOCOL_ERROR
    assert not gate.events.of(EventKind.REQUEST)


def raw_frames(peer):
    """Read frames that h2 would take for errors, or not at all."""
    data = b""
    while more := peer.sock.recv(65536):
        data += more
        while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
            size = int.from_bytes(data[:3], "big")
            frame, data = data[: 9 + size], data[9 + size :]
            yield frame


def reset_of(peer, stream):
    """Read until a RST_STREAM of a stream that h2 doesn't know; return its code."""
    for frame in raw_frames(peer):
        if frame[3] == 0x3 and int.from_bytes(frame[5:9], "big") == stream:
            return int.from_bytes(frame[9:13], "big")
    raise AssertionError("the tunnel ended")


def test_nghttp_shakes_hands_and_its_get_is_400(gate, mesh):
    """nghttp2's own client."""
    mesh.context(pki.WEB)  # leaves chain.pem and key.pem
    folder = mesh.folder
    host, port = gate.address
    argv = ["nghttp", "-v", f"https://{host}:{port}/", f"--cert={folder}/chain.pem"]
    done = subprocess.run(
        [*argv, f"--key={folder}/key.pem"],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ":status: 400" in done.stdout, done.stdout + done.stderr
    assert "SETTINGS_MAX_CONCURRENT_STREAMS(0x03):200" in done.stdout
    assert "WINDOW_UPDATE" in done.stdout


# ---- bytes and ends ----


def test_a_megabyte_goes_both_ways(gate):
    peer = gate.dial()
    stream, sock = opened(gate, peer)
    peer.send(stream, DATA, end=True)
    assert read_exactly(sock, len(DATA)) == DATA
    assert sock.recv(1) == b""
    sock.settimeout(0)
    at, got = 0, b""
    while len(got) < len(DATA):
        if at < len(DATA):
            with contextlib.suppress(BlockingIOError):
                at += sock.send(DATA[at:])
        got += peer.read(stream, 1)
    assert got[: len(DATA)] == DATA
    sock.close()
    peer.ended(stream)


def test_what_is_sent_before_the_answer_arrives(gate):
    peer = gate.dial()
    stream = peer.connect()
    peer.send(stream, b"early", end=True)
    conn = gate.asked()
    peer.fence()
    sock = gate.socket(conn)
    assert read_exactly(sock, 5) == b"early"
    assert sock.recv(1) == b""
    assert peer.status(stream) == "200"
    sock.sendall(b"answer")
    assert peer.read(stream, 6) == b"answer"


@pytest.mark.spec("rfc9113:8.5/fin")
def test_end_stream_on_the_connect_is_a_fin(gate):
    peer = gate.dial()
    stream = peer.h2.get_next_available_stream_id()
    peer.h2.send_headers(stream, CONNECT, end_stream=True)
    peer.flush()
    sock = gate.socket(gate.asked())
    assert sock.recv(1) == b""
    sock.sendall(b"x")
    sock.close()
    assert peer.status(stream) == "200"
    assert peer.read(stream, 1) == b"x"
    peer.ended(stream)


def test_echo_and_discard_are_far_sides(gate):
    peer = gate.dial()
    first = peer.connect()
    gate.answer(gate.asked(), Echo())
    second = peer.connect()
    gate.answer(gate.asked(2), Discard())
    assert [peer.status(each) for each in (first, second)] == ["200", "200"]
    peer.send(first, DATA[:60000])
    assert peer.read(first, 60000) == DATA[:60000]
    peer.send(second, DATA, end=True)
    peer.ended(second)


@pytest.mark.spec("rfc9113:8.5/rst-back")
def test_a_reset_of_the_stream_resets_the_far_side(gate, mesh):
    server = mesh.kept(socket.create_server(("127.0.0.1", 0)))
    peer = gate.dial()
    stream = peer.connect()
    gate.answer(gate.asked(), Dial(server.getsockname()))
    sock = mesh.accept(server)
    assert peer.status(stream) == "200"
    peer.h2.reset_stream(stream, CANCEL)
    peer.flush()
    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    event = gate.events.wait(EventKind.CLOSED)
    assert (event.error, Reason(event.reason)) == (errno.ECONNRESET, Reason.RESET)


@pytest.mark.spec("rfc9113:8.5/rst")
def test_a_reset_of_the_far_side_resets_the_stream(gate, mesh):
    server = mesh.kept(socket.create_server(("127.0.0.1", 0)))
    peer = gate.dial()
    stream = peer.connect()
    gate.answer(gate.asked(), Dial(server.getsockname()))
    sock = mesh.accept(server)
    assert peer.status(stream) == "200"
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
    sock.close()
    assert peer.was_reset(stream) == CONNECT_ERROR
    peer.fence()


def test_a_connect_that_is_reset_before_the_answer_ends(gate):
    peer = gate.dial()
    stream = peer.connect()
    conn = gate.asked()
    peer.h2.reset_stream(stream, CANCEL)
    peer.flush()
    assert gate.events.wait(EventKind.FAILED).error == errno.ECONNRESET
    assert gate.request(conn) is None


def test_trailers_are_a_stream_error(gate):
    peer = gate.dial()
    stream, sock = opened(gate, peer)
    peer.raw(0x1, 0x5, stream, peer.h2.encoder.encode([("x", "y")]))
    assert peer.was_reset(stream) == PROTOCOL_ERROR
    assert sock.recv(1) == b""  # a unix socket has no RST
    peer.fence()


@pytest.mark.spec("rfc9113:5.1.2/exceeded")
def test_a_stream_above_the_limit_is_refused_and_the_others_go_on(mesh):
    gate = mesh.gate(max_streams=2)
    peer = gate.dial()
    first, _ = opened(gate, peer)
    opened(gate, peer, 2)
    peer.connect_raw(5)
    assert reset_of(peer, 5) == REFUSED_STREAM
    peer.raw(0x3, 0, first, CANCEL.to_bytes(4, "big"))
    peer.connect_raw(7)
    gate.asked(3)


def test_an_orderly_end_of_both_leaves_nothing(gate):
    peer = gate.dial()
    stream, sock = opened(gate, peer)
    sock.close()
    peer.ended(stream)
    peer.send(stream, b"", end=True)
    peer.fence()
    assert gate.events.wait(EventKind.CLOSED).error == 0
    assert gate.stats().streams == 0


# ---- drain ----


def test_a_drain_lets_streams_end_and_takes_no_new_ones(gate, mesh):
    peer = gate.dial()
    stream, sock = opened(gate, peer)
    mesh.call(gate.gate.drain, 60.0)
    notice = peer.until(h2.events.ConnectionTerminated)
    assert (notice.last_stream_id, notice.error_code) == (2**31 - 1, 0)
    peer.raw(0x6, 0x1, 0, bytes(8))  # h2 answers no PING any more
    sock.sendall(b"go on")
    sock.close()
    frames = raw_frames(peer)
    last = next(frame for frame in frames if frame[3] == 0x7)
    assert int.from_bytes(last[9:13], "big") == stream
    assert next(frame for frame in frames if frame[3] == 0x0)[9:] == b"go on"
    peer.raw(0x0, 0x1, stream)
    assert gate.events.reason(2) is Reason.DRAINED
    assert gate.stats().tunnels == 0


def test_what_is_left_at_the_deadline_of_a_drain_is_cut(gate, mesh):
    peer = gate.dial()
    _, sock = opened(gate, peer)
    mesh.call(gate.gate.drain, 0.1)
    assert sock.recv(1) == b""
    assert gate.events.reason(2) is Reason.DRAINED
    assert gate.stats().tunnels == 0


def test_a_gate_that_is_closed_leaves_its_tunnels(gate, mesh, host):
    peer = gate.dial()
    stream, sock = opened(gate, peer)
    mesh.call(gate.gate.close)
    sock.sendall(b"x")
    assert peer.read(stream, 1) == b"x"
    assert gate.gate.id in host.engine._handlers
    peer.close()
    assert gate.events.reason(2) is Reason.LOST
    host.deliver()
    assert gate.gate.id not in host.engine._handlers


def test_bytes_go_on_though_the_socket_was_full_and_no_window_opens(mesh):
    """What a full socket took a part of leaves room, as a used-up window does."""
    gate = mesh.gate()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(gate.address)
    tls = mesh.kept(mesh.context(pki.WEB).wrap_socket(sock))
    wide = {CODES.INITIAL_WINDOW_SIZE: 16 << 20}  # more than any socket holds
    peer = Peer(tls, client=True, settings=wide)
    stream = peer.connect()
    gate.answer(gate.asked(), Chargen())
    came = 0
    while came < 12 << 20:
        came += len(peer.read(stream, 1 << 20, acknowledge=False))
