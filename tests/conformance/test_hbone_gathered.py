"""Payload of frames that come at once: it is passed on at once, whole and in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance.conftest import read_exactly
from vhost_user.engine import EventKind

if TYPE_CHECKING:
    from tests.conformance.peers import Peer

DATA, RST_STREAM = 0x0, 0x3
END_STREAM, PADDED = 0x1, 0x8
PIECES = [bytes([n]) * (100 + n) for n in range(40)]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame, RFC 9113 section 4.1."""
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags))
    return head + stream.to_bytes(4, "big") + payload


@pytest.fixture
def gate(mesh):
    return mesh.gate()


def opened(gate, peer: Peer):
    """Open a stream to one end of a socket pair; return it and the other end."""
    stream = peer.connect()
    sock = gate.socket(gate.asked(stream // 2 + 1))
    assert peer.status(stream) == "200"
    return stream, sock


def test_frames_of_a_stream_are_given_in_one_piece(gate):
    peer = gate.dial()
    stream, sock = opened(gate, peer)
    peer.sock.sendall(b"".join(frame(DATA, 0, stream, piece) for piece in PIECES))
    # one write of ours is one message of the socket's queue
    assert sock.recv(1 << 16) == b"".join(PIECES)


def test_frames_of_streams_in_turn_go_to_each(gate):
    peer = gate.dial()
    opens = [opened(gate, peer) for _ in range(3)]
    peer.sock.sendall(
        b"".join(
            frame(DATA, 0, stream, piece) for piece in PIECES for stream, _ in opens
        )
    )
    for _, sock in opens:
        assert read_exactly(sock, sum(map(len, PIECES))) == b"".join(PIECES)


@pytest.mark.parametrize(
    "last", [b"", b"last"], ids=["empty frame", "frame with payload"]
)
def test_the_end_comes_behind_what_came_with_it(gate, last):
    peer = gate.dial()
    stream, sock = opened(gate, peer)
    frames = [frame(DATA, 0, stream, piece) for piece in PIECES]
    peer.sock.sendall(b"".join([*frames, frame(DATA, END_STREAM, stream, last)]))
    expected = b"".join(PIECES) + last
    assert read_exactly(sock, len(expected)) == expected
    assert sock.recv(1) == b""
    sock.sendall(b"still open")
    assert peer.read(stream, 10) == b"still open"


def test_padding_between_frames_is_left_out(gate):
    peer = gate.dial()
    stream, sock = opened(gate, peer)
    padded = frame(DATA, PADDED, stream, b"\x05" + b"with" + bytes(5))
    before, behind = (frame(DATA, 0, stream, each) for each in (b"before", b"behind"))
    peer.sock.sendall(before + padded + behind)
    assert read_exactly(sock, 16) == b"beforewithbehind"


def test_a_reset_behind_payload_ends_the_stream_and_no_other(gate):
    peer = gate.dial()
    (stream, _), (other, sock) = opened(gate, peer), opened(gate, peer)
    peer.sock.sendall(
        frame(DATA, 0, other, b"one")
        + frame(DATA, 0, stream, b"lost or not")
        + frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big"))
        + frame(DATA, 0, other, b"two")
    )
    assert read_exactly(sock, 6) == b"onetwo"
    assert gate.events.wait(EventKind.CLOSED)


def test_payload_for_a_stream_that_is_no_more_is_skipped(gate):
    peer = gate.dial()
    (stream, gone), (other, sock) = opened(gate, peer), opened(gate, peer)
    gone.close()
    peer.sock.sendall(
        frame(DATA, 0, other, b"one")
        + frame(DATA, 0, stream, bytes(1000))
        + frame(DATA, 0, other, b"two")
    )
    assert read_exactly(sock, 6) == b"onetwo"
    peer.fence()
