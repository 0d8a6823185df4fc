"""No byte is dropped and acknowledged: the sink took it, or the guest is told.

Spec: VIRTIO 1.2 section 5.10.6.2, "guaranteed, connection-oriented delivery", and
5.10.6.4, "data is never dropped".
"""

from __future__ import annotations

import socket

import pytest

from tests.conformance.links import (
    WAYS,
    fill,
    pair_id,
    pairs,
    say,
    tells_of_the_end,
    wait_for,
    write_until_told,
)
from tests.conformance.siblings import connect, make_site, site
from tests.support.descriptors import check_closed, descriptors
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op, Shutdown, Type

__all__ = ["make_site", "site"]

EVERY = pytest.mark.parametrize("pair", pairs(), ids=pair_id)
EVERY_UNIX = pytest.mark.parametrize("pair", pairs(unix=True), ids=pair_id)
DELIVERY = pytest.mark.spec(
    "virtio-1.2:5.10.6.2/stream-delivery", "virtio-1.2:5.10.6.2/seqpacket-delivery"
)


@DELIVERY
@EVERY
def test_a_guest_that_shut_receive_hears_when_its_writes_go_nowhere(link, guest, pair):
    way, kind = pair
    conn, sock = link(way, kind=kind)
    conn.shutdown(Shutdown.RECEIVE)
    guest.fence()
    sock.close()
    write_until_told(conn)


@DELIVERY
@EVERY
def test_a_guest_without_credit_to_receive_hears_when_its_writes_go_nowhere(
    link, guest, pair
):
    """The host's last bytes wait for the guest; its own are refused meanwhile."""
    way, kind = pair
    conn, sock = link(way, kind=kind, buf_alloc=0)
    sock.send(b"y" * 1000)
    sock.close()
    guest.fence()
    first = write_until_told(conn)
    conn.buf_alloc = 4096
    conn.say(Op.CREDIT_UPDATE)
    came = b""
    packet = first
    while packet.op != Op.RST and len(came) < 1000:
        packet = conn.receive()
        came += packet.payload
    # TCP may lose what it holds to the RST that answered the guest's write
    assert came == b"y" * 1000 or (packet.op == Op.RST and not way.unix)


@DELIVERY
@EVERY_UNIX
def test_a_guest_hears_when_the_host_reads_no_more_and_stays(link, guest, pair):
    way, kind = pair
    conn, sock = link(way, kind=kind)
    sock.shutdown(socket.SHUT_RD)
    packet = write_until_told(conn)
    if packet.op == Op.SHUTDOWN:
        assert packet.header.flags == Shutdown.RECEIVE
        sock.send(b"still here")
        while (packet := conn.receive()).op != Op.RW:
            assert not tells_of_the_end(packet) or packet.op == Op.SHUTDOWN
        assert packet.payload == b"still here"


@DELIVERY
@EVERY_UNIX
@pytest.mark.parametrize("end", ["closes", "shuts-receive"])
def test_a_guest_hears_when_bytes_that_were_kept_go_nowhere(link, guest, pair, end):
    """The host did not read; the device kept a window's worth for it."""
    way, kind = pair
    conn, sock = link(way, kind=kind)
    fill(guest, conn)
    kept_from = conn.peer_fwd_cnt
    conn.shutdown(Shutdown.RECEIVE)
    guest.fence()
    if end == "closes":
        sock.close()
    else:
        sock.shutdown(socket.SHUT_RD)
        while sock.recv(1 << 20):  # what it has; then the device writes again
            pass
    while not tells_of_the_end(packet := conn.receive()):
        assert packet.header.fwd_cnt == kept_from


@DELIVERY
@EVERY
def test_a_guest_that_receives_hears_when_its_writes_go_nowhere(link, guest, pair):
    way, kind = pair
    conn, sock = link(way, kind=kind)
    sock.close()
    write_until_told(conn)


@pytest.mark.spec("virtio-1.2:5.10.6.5/shutdown-receive")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.id)
def test_an_idle_connection_that_neither_side_reads_ends(host, guest, link, way):
    """The guest reads no more and the host has closed: no descriptor is held."""
    before = descriptors()
    conn, sock = link(way)
    conn.shutdown(Shutdown.RECEIVE)
    guest.fence()
    if way.unix:
        sock.close()
    else:  # a FIN alone may be a host that still reads
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    while not tells_of_the_end(packet := conn.receive()):
        pass
    if packet.op != Op.RST:
        conn.say(Op.RST)
    wait_for(lambda: host.stats().conns == 0, "the end of the connection")
    check_closed(before)


@DELIVERY
@pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())
def test_a_sink_that_closes_with_bytes_unread_resets(host, guest, link, kind):
    conn, sock = link(WAYS[0], kind=kind)
    say(conn, b"unread")
    guest.fence()
    sock.close()
    while not tells_of_the_end(conn.receive()):
        pass


# ---- siblings ----


@pytest.fixture
def siblings(site):
    with VsockGuest(site.path(3), cid=3) as a, VsockGuest(site.path(4), cid=4) as b:
        yield a, b


@DELIVERY
@pytest.mark.parametrize("flags", [Shutdown.RECEIVE, Shutdown.BOTH])
@pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())
def test_a_guest_hears_when_its_sibling_reads_no_more(siblings, kind, flags):
    """Nothing but what the sibling has read is acknowledged, then or later."""
    a, b = siblings
    near, far = connect(a, b, kind=kind)
    say(near, b"x" * 100)
    far.receive()
    far.shutdown(flags)
    while not tells_of_the_end(packet := near.receive()):
        pass
    assert packet.header.flags == flags
    say(near, b"y" * 100)
    near.say(Op.CREDIT_REQUEST)
    for _ in range(4):
        b.fence()
        for packet in a.fence():
            near.take_credit(packet.header)
    assert near.peer_fwd_cnt == 100


@DELIVERY
@pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())
def test_a_guest_hears_when_its_sibling_is_gone_with_bytes_unread(siblings, kind):
    a, b = siblings
    near, _ = connect(a, b, kind=kind)
    say(near, b"x" * 100)
    a.drain()
    b.vmm.close()
    while (packet := near.receive()).op != Op.RST:
        assert packet.header.fwd_cnt == 0


@DELIVERY
@pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())
def test_a_guest_that_shut_receive_hears_when_its_sibling_closes(siblings, kind):
    a, b = siblings
    near, far = connect(a, b, kind=kind)
    near.shutdown(Shutdown.RECEIVE)
    while far.receive().op != Op.SHUTDOWN:
        pass
    far.shutdown(Shutdown.BOTH)
    while not tells_of_the_end(near.receive()):
        pass
    near.say(Op.RST)
    far.expect(Op.RST)
