"""Packets that cross on their way are nobody's fault.

Spec: VIRTIO 1.2 section 5.10.6.5: a SHUTDOWN is a hint to the other side, which may
have sent before it came.
"""

from __future__ import annotations

import pytest

from tests.conformance.links import WAYS, pair_id, pairs, say, tells_of_the_end
from vhost_user.vsock.packet import Op, Shutdown, Type

ECHO = 7
KINDS = pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())


@pytest.mark.parametrize("pair", pairs(), ids=pair_id)
def test_payload_that_crosses_our_shutdown_is_not_bad(host, guest, link, pair):
    way, kind = pair
    conn, sock = link(way, kind=kind)
    sock.close()
    for _ in range(64):  # TCP takes some before its RST comes
        say(conn, b"crossing")
        packets = guest.fence()
        if any(tells_of_the_end(packet) for packet in packets):
            break
    say(conn, b"crossing as well")
    packets = guest.fence()
    assert host.stats().bad_packets == 0
    assert host.stats().credit_violations == 0


@KINDS
@pytest.mark.parametrize(
    "op", [Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, Op.SHUTDOWN], ids=lambda op: op.name
)
def test_what_is_no_payload_crosses_our_shutdown_as_well(host, guest, link, op, kind):
    conn, sock = link(WAYS[0], kind=kind)
    conn.shutdown(Shutdown.SEND)
    guest.fence()
    sock.close()
    while not tells_of_the_end(conn.receive()):
        pass
    conn.say(op)
    guest.fence()
    assert host.stats().bad_packets == 0


@KINDS
@pytest.mark.parametrize(
    "op",
    [op for op in Op if op not in (Op.REQUEST, Op.RESPONSE, Op.RST)],
    ids=lambda op: op.name,
)
def test_what_crosses_our_reset_gets_one_and_is_not_bad(host, guest, link, op, kind):
    conn, sock = link(WAYS[0], kind=kind)
    say(conn, b"unread")
    guest.fence()
    sock.close()
    while conn.receive().op != Op.RST:
        pass
    conn.say(op)
    assert {packet.op for packet in guest.fence()} == {Op.RST}
    assert host.stats().bad_packets == 0


def test_payload_that_crosses_a_guests_own_port_reuse_is_the_new_connections(guest):
    conn = guest.connect(ECHO)
    conn.say(Op.RST)
    conn.say(Op.REQUEST)
    conn.tx_cnt = 0
    conn.expect(Op.RESPONSE)
    conn.say(Op.RW, b"mine")
    assert conn.receive().payload == b"mine"
