"""Credit between two guests: what one forges costs its own connection only.

Spec: VIRTIO 1.2 section 5.10.6.3 "Buffer Space Management".
"""

from __future__ import annotations

import pytest

from tests.conformance.siblings import (
    GROUP,
    WINDOW,
    connect,
    make_site,
)
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op, Seq, Type

__all__ = ["make_site"]

CONNS = 16
LIMIT = CONNS * WINDOW
PIECE = b"x" * 16384
PORT = 5000
ECHO = 7

CREDIT = pytest.mark.spec(
    "virtio-1.2:5.10.6.3/payload-only", "virtio-1.2:5.10.6.1.2/bounded"
)
KINDS = pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())

FORGED = {
    "high-fwd-cnt": {"fwd_cnt": 0x10_0000, "buf_alloc": 0x7FE0_0000},
    "fwd-cnt-at-the-wrap": {"fwd_cnt": 0xFFFF_FFFF, "buf_alloc": 0xFFFF_FFFF},
    "half-the-numbers": {"fwd_cnt": 0x8000_0000, "buf_alloc": 0x4000_0000},
    "all-the-memory": {"fwd_cnt": 0, "buf_alloc": 0xFFFF_FFFF},
}
"""What a guest may say of its own receive buffer without having received a byte."""


@pytest.fixture
def pair(make_site):
    site = make_site(GROUP, GROUP, max_conns=CONNS, max_queued_bytes=LIMIT)
    with (
        VsockGuest(site.path(3), cid=3, rx_buffers=8) as a,
        VsockGuest(site.path(4), cid=4, ram_size=64 << 20) as b,
    ):
        yield site, a, b


def flood(site, sender, receiver):
    """Send without regard to credit until that ends the connection.

    The receiver reads nothing; what it has no RX buffers for is kept by the device.
    """
    flags = Seq.EOM if sender.kind == Type.SEQPACKET else 0
    while True:
        sender.say(Op.RW, PIECE, flags=flags)
        sender.guest.drain()
        queued = site.stats(sender.guest.cid).queued_bytes
        assert queued <= LIMIT, f"{sender.tx_cnt} bytes sent, {queued} of them kept"
        if any(packet.op == Op.RST for packet in sender.guest.fence()):
            break
        assert sender.tx_cnt <= 4 * LIMIT, "nobody objects"
    for guest in (sender.guest, receiver):
        guest.fence()
        conn = guest.connect(ECHO)
        conn.say(Op.RW, b"alive")
        assert conn.receive().payload == b"alive"


FORGERIES = [pytest.param(fields, id=name) for name, fields in FORGED.items()]


@CREDIT
@KINDS
@pytest.mark.parametrize("forged", FORGERIES)
def test_a_sibling_starts_with_nothing_consumed_whatever_its_request_says(
    pair, forged, kind
):
    """The other guest is told of no more than the device keeps for it."""
    _, a, b = pair
    a.send(a.header(Op.REQUEST, a.port(), PORT, dst_cid=4, type=kind, **forged))
    request = b.receive().header
    assert request.fwd_cnt == 0
    assert request.buf_alloc <= WINDOW


@CREDIT
@pytest.mark.parametrize(
    ("forged", "kind"),
    [
        pytest.param(fields, kind, id=f"{name}-{kind.name.lower()}")
        for name, fields in FORGED.items()
        for kind in Type
    ],
)
def test_a_forged_request_makes_nobody_queue_more_than_the_limit(pair, forged, kind):
    site, a, b = pair
    port = a.port()
    a.send(a.header(Op.REQUEST, port, PORT, dst_cid=4, type=kind, **forged))
    far = b.accept()
    a.receive_for(port, PORT, 4)
    flood(site, far, a)


@CREDIT
@KINDS
@pytest.mark.parametrize("forged", FORGERIES)
def test_a_forged_response_makes_nobody_queue_more_than_the_limit(pair, forged, kind):
    site, a, b = pair
    near = a.request(PORT, cid=4, kind=kind)
    request = b.receive().header
    answer = b.header(Op.RESPONSE, PORT, request.src_port, dst_cid=3, type=kind)
    b.send(replaced(answer, forged))
    if near.expect(Op.RESPONSE, Op.RST).op == Op.RESPONSE:
        assert near.peer_fwd_cnt == 0
        flood(site, near, b)


@CREDIT
@KINDS
@pytest.mark.parametrize("op", [Op.CREDIT_UPDATE, Op.RW, Op.CREDIT_REQUEST])
@pytest.mark.parametrize("forged", FORGERIES)
def test_a_forged_credit_later_makes_nobody_queue_more_than_the_limit(
    pair, forged, kind, op
):
    site, a, b = pair
    near, far = connect(a, b, PORT, kind=kind)
    near.say(op, b"", **forged)
    a.drain()
    ended = any(packet.op == Op.RST for packet in b.fence())
    if not ended:
        far.say(Op.CREDIT_REQUEST)
        flood(site, far, a)


def replaced(header, fields):
    """Return `header` with other values of some fields."""
    return type(header)(
        **{name: getattr(header, name) for name in header.__slots__} | fields
    )
