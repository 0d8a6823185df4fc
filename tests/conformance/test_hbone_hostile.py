"""Peers that break HTTP/2, or say too much: it costs them their tunnel, nobody else's.

RFC 9113, section 10.5 "Denial-of-Service Considerations".
"""

from __future__ import annotations

import errno
import threading

import pytest

from tests.conformance.conftest import read_exactly
from tests.conformance.frames import (
    CONT,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    RST,
    SETTINGS,
    WINDOW,
    Code,
    frame,
)
from tests.conformance.peers import CONNECT
from tests.conformance.test_hbone_gate import opened, raw_frames
from vhost_user.engine import EventKind
from vhost_user.hbone import Reason


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


def connects(peer, reset):
    """Return CONNECTs, each reset at once: "rapid reset" (CVE-2023-44487)."""
    return [
        b"".join(
            frame(HEADERS, END_HEADERS, stream, peer.h2.encoder.encode(CONNECT))
            + frame(RST, 0, stream, reset)
            for stream in range(first, first + 200, 2)
        )
        for first in range(3, 12001, 200)
    ]


def streams(peer, *faults):
    """Return CONNECTs, each with a fault that has us reset it ("MadeYouReset").

    CVE-2025-8671: all that the client says is a request, and no RST_STREAM.
    """
    block = peer.h2.encoder.encode(CONNECT)
    return [
        frame(HEADERS, END_HEADERS, stream, block)
        + b"".join(fault(stream) for fault in faults)
        for stream in range(3, 8001, 2)
    ]


FLOODS = {
    "ping": lambda peer: [frame(PING, 0, 0, bytes(8)) * 100] * 1000,
    "settings": lambda peer: [frame(SETTINGS) * 100] * 1000,
    "empty-data": lambda peer: [frame(DATA, 0, 1) * 100] * 1000,
    "priority": lambda peer: [frame(PRIORITY, 0, 1, bytes(4) + b"\x10") * 100] * 1000,
    "unknown": lambda peer: [frame(0xFA, 0, 0, b"x") * 100] * 1000,
    "window-update": lambda peer: [frame(WINDOW, 0, 0, b"\0\0\0\1") * 100] * 1000,
    "padding": lambda peer: [frame(DATA, PADDED, 1, b"\3\0\0\0") * 100] * 1000,
    "continuation": lambda peer: [frame(HEADERS, 0, 3) + frame(CONT, 0, 3) * 1000],
    "malformed": lambda peer: streams(peer, lambda s: frame(HEADERS, 4, s, b"\x82")),
    "window-of-nothing": lambda peer: streams(
        peer, lambda s: frame(WINDOW, 0, s, bytes(4))
    ),
    "behind-the-end": lambda peer: streams(
        peer, lambda s: frame(DATA, END_STREAM, s) + frame(DATA, 0, s, b"x")
    ),
    "rapid-reset": lambda peer: connects(peer, (8).to_bytes(4, "big")),
}


@pytest.mark.spec("rfc9113:10.5/limits")
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
@pytest.mark.unseen
def test_a_flood_costs_its_peer_the_tunnel(gate, bystander, flood):
    peer = gate.dial()
    stream, _ = opened(gate, peer, 2)
    assert stream == 1
    before = gate.stats().floods
    shouting = shout(peer, flood(peer))
    code = code_of_goaway(peer)
    shouting.join()
    assert code in {Code.ENHANCE_YOUR_CALM, None}  # None: it was cut while it shouted
    assert gate.events.reason(3) is Reason.FLOOD
    assert gate.stats().floods == before + 1


def test_a_header_block_without_end_is_a_flood(gate, bystander):
    peer = gate.dial()
    peer.fence()
    more = frame(CONT, 0, 1, bytes(16000))
    shout(peer, [frame(HEADERS, 0, 1, b"\x42\x07CONNECT")] + [more] * 100).join()
    code_of_goaway(peer)
    assert gate.events.reason(3) is Reason.FLOOD


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
