"""A guest that gave up a connection hears no more of it, and may use its ports again.

It closed, and gave up waiting for the answer while its last bytes were still on their
way to the host: they are delivered, but the connection is over.

Spec: VIRTIO 1.2 section 5.10.6.5, "forcibly disconnect the socket".
"""

from __future__ import annotations

import socket

import pytest

from tests.conformance.links import MESSAGES, fill, say
from tests.conformance.siblings import GROUP, make_site
from tests.support.limits import LIMIT_S
from vhost_user.engine import Discard, Echo, Unix
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op, Shutdown, Type

__all__ = ["make_site"]

PORT = 6000
WINDOW = 64 * 1024
MOST = 1 << 20
"""What a window grows to: more than the host's socket takes at once."""

STARTS = pytest.mark.spec("virtio-1.2:5.10.6.3.2/valid-fields")
RESET = pytest.mark.spec(
    "virtio-1.2:5.10.6.5/forced-disconnect", "virtio-1.2:5.10.6.5/rst-disconnects"
)
KINDS = pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())


def give_up(guest, conn):
    """Close as Linux does, and reset when no answer came."""
    conn.shutdown(Shutdown.BOTH)
    guest.fence()
    conn.say(Op.RST)
    assert guest.fence() == []


def again(guest, conn):
    """Connect from the same port to the same one; return the new connection."""
    new = type(conn)(
        guest, conn.guest_port, conn.host_port, buf_alloc=conn.buf_alloc, kind=conn.kind
    )
    new.say(Op.REQUEST)
    new.expect(Op.RESPONSE)
    return new


@pytest.fixture
def host(make_host):
    return make_host(buf_alloc=MOST, max_conns=64)


@pytest.fixture
def orphan(host, guest):
    """Return a function that leaves an orphan; it returns its two ends.

    A host that reads bit by bit takes what the device holds bit by bit: over TCP, and
    over a unix socket message by message.
    """
    socks = []

    def leave(kind):
        if kind == Type.STREAM:
            listener = host.listen_tcp(PORT)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        else:
            host.call(host.device.handle.route, PORT, Unix(str(host.uds_path)))
            listener = host.listen(PORT, socket.SOCK_SEQPACKET)
        with listener:
            conn = guest.connect(PORT, kind=kind)
            sock, _ = listener.accept()
        socks.append(sock)
        sock.settimeout(LIMIT_S)
        fill(guest, conn)
        give_up(guest, conn)
        return conn, sock

    yield leave
    for sock in socks:
        sock.close()


def read_all(guest, sock):
    """Read to the end; return the bytes, and what the guest was told meanwhile."""
    data, packets = b"", []
    while more := sock.recv(65536):
        data += more
        packets += guest.fence()
    return data, packets + guest.fence()


@RESET
@KINDS
def test_the_last_bytes_of_a_guest_that_gave_up_arrive(guest, orphan, kind):
    conn, sock = orphan(kind)
    data, _ = read_all(guest, sock)
    assert data == b"x" * conn.tx_cnt


@RESET
@KINDS
def test_a_guest_hears_nothing_of_a_connection_that_it_reset(guest, orphan, kind):
    _, sock = orphan(kind)
    _, packets = read_all(guest, sock)
    assert packets == []


@STARTS
@KINDS
@pytest.mark.parametrize("target", [Discard(), Echo()], ids=["discard", "echo"])
def test_a_port_pair_that_is_used_again_starts_with_fresh_credit(
    host, guest, orphan, kind, target
):
    conn, sock = orphan(kind)
    host.call(host.device.handle.route, PORT, target)
    new = again(guest, conn)
    assert new.peer_fwd_cnt == 0
    _, packets = read_all(guest, sock)  # the orphan's bytes go
    assert packets == []
    say(new, b"mine")
    for _ in range(16):
        new.say(Op.CREDIT_REQUEST)
        for packet in guest.fence():
            new.take_credit(packet.header)
            assert packet.header.fwd_cnt in (0, len(b"mine"))
    assert new.peer_fwd_cnt == len(b"mine")


@RESET
@KINDS
def test_an_echo_of_a_guest_that_gave_up_says_nothing(guest, kind):
    """Nobody is there to echo to: what is kept for the guest goes."""
    conn = guest.connect(7, kind=kind, buf_alloc=0)
    say(conn, b"x" * 1000)
    guest.fence()
    conn.shutdown(Shutdown.BOTH)
    conn.say(Op.RST)
    guest.fence()
    conn.say(Op.CREDIT_UPDATE, buf_alloc=WINDOW)
    assert {packet.op for packet in guest.fence()} <= {Op.RST}


@RESET
@pytest.mark.parametrize("options", [{}, MESSAGES], ids=["stream", "seqpacket"])
def test_a_sibling_hears_the_end_and_the_guest_nothing_more(make_site, options):
    site = make_site(GROUP, GROUP)
    with (
        VsockGuest(site.path(3), cid=3) as a,
        VsockGuest(site.path(4), cid=4) as b,
    ):
        near = a.request(PORT, cid=4, **options)
        far = b.accept(buf_alloc=100)
        near.expect(Op.RESPONSE)
        say(near, b"x" * 100)
        a.drain()
        near.shutdown(Shutdown.BOTH)
        near.say(Op.RST)
        a.drain()
        assert far.expect(Op.RW).payload == b"x" * 100
        while far.receive().op != Op.RST:
            pass
        assert a.fence() == []
        fresh = type(near)(
            a, near.guest_port, PORT, buf_alloc=WINDOW, cid=4, kind=near.kind
        )
        fresh.say(Op.REQUEST)
        b.accept()
        fresh.expect(Op.RESPONSE)
        assert fresh.peer_fwd_cnt == 0
