"""Peers that break HTTP/2, or say too much: it costs them their tunnel, nobody else's.

RFC 9113, section 10.5 "Denial-of-Service Considerations".
"""

from __future__ import annotations

import errno
import threading

import pytest

from tests.conformance.conftest import read_exactly
from tests.conformance.peers import CODES, CONNECT
from tests.conformance.test_hbone_gate import opened, raw_frames
from vhost_user.engine import EventKind
from vhost_user.hbone import Reason

ENHANCE_YOUR_CALM = 0xB
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONT = range(10)
END_STREAM, END_HEADERS = 0x1, 0x4


@pytest.fixture
def gate(mesh):
    return mesh.gate()


@pytest.fixture
def bystander(gate):
    """A tunnel beside; it works as before when the test is over."""
    peer = gate.dial()
    stream, sock = opened(gate, peer)
    yield peer
    peer.send(stream, b"there")
    assert read_exactly(sock, 5) == b"there"
    sock.sendall(b"back")
    assert peer.read(stream, 4) == b"back"


def code_of_goaway(peer):
    """Return the error of the last GOAWAY before the tunnel ends; None: none came."""
    code = None
    try:
        for frame in raw_frames(peer):
            if frame[3] == GOAWAY:
                code = int.from_bytes(frame[13:17], "big")
    except OSError:
        pass
    return code


def shout(peer, frames):
    """Send frames as long as the other end takes them, in a thread."""

    def run():
        try:
            for frame in frames:
                peer.sock.sendall(frame)
        except OSError:
            pass

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def frame(kind, flags=0, stream=0, payload=b""):
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload


def connects(peer, reset):
    """Return CONNECTs, each reset at once: "rapid reset" (CVE-2023-44487)."""
    return [
        b"".join(
            frame(HEADERS, END_HEADERS, stream, peer.h2.encoder.encode(CONNECT))
            + frame(RST, 0, stream, reset)
            for stream in range(first, first + 200, 2)
        )
        for first in range(1, 12001, 200)
    ]


FLOODS = {
    "ping": lambda peer: [frame(PING, 0, 0, bytes(8)) * 100] * 1000,
    "settings": lambda peer: [frame(SETTINGS) * 100] * 1000,
    "empty-data": lambda peer: [frame(DATA, 0, 1) * 100] * 1000,
    "priority": lambda peer: [frame(PRIORITY, 0, 1, bytes(4) + b"\x10") * 100] * 1000,
    "unknown": lambda peer: [frame(0xFA, 0, 0, b"x") * 100] * 1000,
    "window-update": lambda peer: [frame(WINDOW, 0, 0, b"\0\0\0\1") * 100] * 1000,
    "rapid-reset": lambda peer: connects(peer, (8).to_bytes(4, "big")),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
@pytest.mark.unseen
def test_a_flood_costs_its_peer_the_tunnel(gate, bystander, flood):
    peer = gate.dial()
    if flood is not FLOODS["rapid-reset"]:
        opened(gate, peer, 2)
    before = gate.stats().floods
    shouting = shout(peer, flood(peer))
    code = code_of_goaway(peer)
    shouting.join()
    assert code in {ENHANCE_YOUR_CALM, None}  # None: it was cut while it shouted
    assert gate.events.reason(3) is Reason.FLOOD
    assert gate.stats().floods == before + 1


def test_a_header_block_without_end_is_a_flood(gate, bystander):
    peer = gate.dial()
    peer.fence()
    more = frame(CONT, 0, 1, bytes(16000))
    shout(peer, [frame(HEADERS, 0, 1, b"\x42\x07CONNECT")] + [more] * 100).join()
    code_of_goaway(peer)
    assert gate.events.reason(3) in {Reason.FLOOD, Reason.HTTP2}


def test_headers_beyond_the_list_are_refused(gate, bystander):
    peer = gate.dial()
    peer.fence()
    big = [(f"x-{index}", "v" * 4000) for index in range(20)]
    block = peer.h2.encoder.encode([*CONNECT, *big])
    peer.raw(HEADERS, 0, 1, block[:16000])
    rest = [block[at : at + 16000] for at in range(16000, len(block), 16000)]
    for part in rest[:-1]:
        peer.raw(CONT, 0, 1, part)
    peer.raw(CONT, END_HEADERS, 1, rest[-1])
    kinds = {each[3] for each in until_end_of(peer, 1)}
    assert kinds & {RST, GOAWAY}
    assert len(gate.events.of(EventKind.REQUEST)) == 1  # the bystander's


def until_end_of(peer, stream):
    """Yield frames up to the one that ends a stream or the tunnel."""
    for each in raw_frames(peer):
        yield each
        if each[3] == GOAWAY or (
            each[3] == RST and int.from_bytes(each[5:9], "big") == stream
        ):
            return


BREAKS = {
    "no-preface": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "data-on-stream-0": frame(DATA, 0, 0, b"x"),
    "data-on-an-idle-stream": frame(DATA, 0, 9, b"x"),
    "even-stream": frame(HEADERS, END_HEADERS, 2, b"\x82"),
    "bad-hpack": frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
    "short-ping": frame(PING, 0, 0, b"1234"),
    "ping-on-a-stream": frame(PING, 0, 1, bytes(8)),
    "short-settings": frame(SETTINGS, 0, 0, b"12345"),
    "settings-ack-with-payload": frame(SETTINGS, 1, 0, bytes(6)),
    "huge-window": frame(SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"),
    "window-of-nothing": frame(WINDOW, 0, 0, bytes(4)),
    "window-overflow": frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "lone-continuation": frame(CONT, END_HEADERS, 1, b"\x82"),
    "headers-cut-by-ping": frame(HEADERS, 0, 1, b"\x82") + frame(PING, 0, 0, bytes(8)),
    "push": frame(PUSH, END_HEADERS, 1, bytes(4)),
    "padding-longer-than-the-frame": frame(DATA, 8, 1, b"\xff12"),
    "reset-of-an-idle-stream": frame(RST, 0, 7, bytes(4)),
    "frame-of-16-mib": b"\xff\xff\xff\0\0\0\0\0\1",
}


@pytest.mark.parametrize("said", BREAKS.values(), ids=BREAKS)
def test_what_breaks_http_2_ends_the_tunnel_alone(gate, bystander, said):
    """RFC 9113 section 5.4.1: a connection error."""
    peer = gate.dial()
    stream, _ = opened(gate, peer, 2)
    assert stream == 1
    peer.sock.sendall(said)
    assert code_of_goaway(peer)
    assert gate.events.reason(3) is Reason.HTTP2


def test_a_peer_that_does_not_speak_http_2_at_all_is_cut(gate, bystander, mesh):
    sock = mesh.kept(
        mesh.context("spiffe://cluster.local/ns/a/sa/b").wrap_socket(
            mesh.dial(gate.address)
        )
    )
    sock.sendall(BREAKS["no-preface"])
    while sock.recv(65536):
        pass
    assert gate.events.reason(2) is Reason.HTTP2


def test_a_peer_that_opens_too_many_streams_is_refused_and_others_go_on(mesh):
    gate = mesh.gate(max_streams=10)
    peer = gate.dial()
    many = b"".join(
        frame(HEADERS, END_HEADERS, stream, peer.h2.encoder.encode(CONNECT))
        for stream in range(1, 2001, 2)
    )
    shouting = shout(peer, [many])
    refused = 0
    for each in raw_frames(peer):
        refused += each[3] == RST
        if refused == 990:
            break
    shouting.join()
    assert len(gate.events.of(EventKind.REQUEST)) == 10


def test_a_server_that_floods_loses_its_tunnel(mesh):
    pool = mesh.pool()
    sock = pool.client()
    peer = pool.accept()
    pool.pair(peer, sock)
    pool.conns.wait(EventKind.OPENED)
    shouting = shout(peer, [frame(PING, 0, 0, bytes(8)) * 100] * 1000)
    code_of_goaway(peer)
    shouting.join()
    assert pool.events.reason(2) is Reason.FLOOD
    assert pool.conns.wait(EventKind.CLOSED).error == errno.ECONNRESET


def test_a_server_that_pushes_ends_its_tunnel(mesh):
    pool = mesh.pool()
    pool.client()
    peer = pool.accept(settings={CODES.MAX_CONCURRENT_STREAMS: 100})
    stream, _ = peer.request()
    promised = (2).to_bytes(4, "big") + peer.h2.encoder.encode(CONNECT)
    peer.raw(PUSH, END_HEADERS, stream, promised)
    assert code_of_goaway(peer)
    assert pool.failed()[0] == errno.ECONNRESET
