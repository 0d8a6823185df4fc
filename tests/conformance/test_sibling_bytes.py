"""What two guests send each other: bytes, messages and the credit for them.

Spec: VIRTIO 1.2 sections 5.10.6.2 and 5.10.6.3.
"""

from __future__ import annotations

import pytest

from tests.conformance.siblings import (
    ECHO,
    WINDOW,
    a,
    b,
    connect,
    make_guest,
    make_site,
    pattern,
    pump,
    site,
    works,
)
from vhost_user.frontend import ALL_FEATURES
from vhost_user.vsock.packet import Op, Seq, Shutdown, Type

__all__ = ["a", "b", "make_guest", "make_site", "site"]

MESSAGES = {"kind": Type.SEQPACKET}


# ---- bytes and credit ----


@pytest.mark.spec("virtio-1.2:5.10.6.2/stream-delivery")
@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_bytes_arrive_both_ways_as_they_were_sent(a, b, size):
    near, far = connect(a, b)
    up, down = pattern(size), pattern(size, 2)
    assert pump(near, far, up) == up
    assert pump(far, near, down) == down


def test_a_guest_that_only_listens_hears_all_that_comes_while_it_rests(site, a, b):
    """More than a turn's work, none of it in a turn that its rings began."""
    near, far = connect(a, b)
    for number in range(200):
        site.wait_for_sleep()
        near.send(b"%03d" % number)
        assert far.receive_bytes(3) == b"%03d" % number


@pytest.mark.spec("virtio-1.2:2.7.4.1/any-arrangement")
@pytest.mark.parametrize("layout", [(44, 100), (100,), (4096,), (44, 65536)])
def test_buffers_of_any_layout_work(make_guest, layout):
    a = make_guest(3, rx_layout=layout)
    b = make_guest(4, rx_layout=layout)
    near, far = connect(a, b)
    data = pattern(200_000)
    assert pump(near, far, data) == data


@pytest.mark.spec("virtio-1.2:5.10.6.3.2/valid-fields")
def test_a_guest_is_told_what_the_other_consumed(a, b):
    near, far = connect(a, b)
    near.say(Op.RW, b"x" * 1000)
    assert far.expect(Op.RW).header.len == 1000
    assert a.fence() == []  # nobody consumed a byte that b didn't say it had
    far.fwd_cnt = 400
    far.say(Op.CREDIT_UPDATE)
    assert near.expect(Op.CREDIT_UPDATE).header.fwd_cnt == 400
    far.fwd_cnt = 1000
    far.say(Op.RW, b"y")
    assert near.expect(Op.RW).header.fwd_cnt == 1000
    assert a.fence() == []  # the data carried it


@pytest.mark.spec("virtio-1.2:5.10.6.3/credit-request")
def test_a_credit_request_is_answered_by_the_sibling(a, b):
    near, far = connect(a, b)
    near.say(Op.CREDIT_REQUEST)
    far.expect(Op.CREDIT_REQUEST)
    assert a.fence() == []
    far.buf_alloc = 5000
    far.say(Op.CREDIT_UPDATE)
    near.expect(Op.CREDIT_UPDATE)


@pytest.mark.spec("virtio-1.2:5.10.6.3/payload-only")
def test_a_window_larger_than_ours_can_be_filled(a, b):
    near = a.request(5000, cid=4)
    far = b.accept(buf_alloc=4 * WINDOW)
    assert near.expect(Op.RESPONSE).header.buf_alloc == WINDOW
    data = pattern(4 * WINDOW)
    got = b""
    while len(got) < len(data):
        while not near.credit:
            near.expect(Op.CREDIT_UPDATE)
        room = min(near.credit, 32768)
        near.say(Op.RW, data[near.tx_cnt : near.tx_cnt + room])
        while len(got) < near.tx_cnt:
            got += far.receive(consume=False).payload
    assert got == data
    assert [p.op for p in a.fence()] in ([], [Op.CREDIT_UPDATE])
    assert near.credit == 0


@pytest.mark.spec(
    "virtio-1.2:5.10.6.1.2/bounded",
    "virtio-1.2:5.10.6.1.2/tx-when-rx-full",
)
def test_a_guest_without_rx_buffers_gets_at_most_a_window_kept(site, make_guest, a):
    b = make_guest(4, rx_buffers=1)
    near = a.request(5000, cid=4, buf_alloc=WINDOW)
    packet = b.receive(repost=False)
    far_port = packet.header.src_port
    b.send(b.header(Op.RESPONSE, 5000, far_port, dst_cid=3, buf_alloc=1 << 20))
    near.expect(Op.RESPONSE)
    data = pattern(WINDOW)
    for at in range(0, WINDOW, 4096):
        near.say(Op.RW, data[at : at + 4096])
    a.drain()  # a's ring doesn't wait for b
    assert a.fence() == []
    assert near.credit == 0
    other = a.connect(ECHO)
    other.say(Op.RW, b"alive")
    assert other.receive().payload == b"alive"
    got = b""
    while len(got) < WINDOW:
        b.post_rx()
        got += b.receive(repost=False).payload
    assert got == data
    assert near.expect(Op.CREDIT_UPDATE).header.buf_alloc >= WINDOW // 2
    near.say(Op.RW, b"x" * (near.credit + 1))
    near.expect(Op.RST)
    assert site.stats(3).credit_violations == 1


@pytest.mark.spec("virtio-1.2:5.10.6.3/payload-only")
def test_a_guest_that_overruns_the_window_loses_that_connection(site, a, b):
    near, far = connect(a, b)
    near.say(Op.RW, b"x" * (WINDOW + 1))
    near.expect(Op.RST)
    far.expect(Op.RST)
    assert site.stats(3).credit_violations == 1
    assert site.stats(4).credit_violations == 0
    works(a, b)


@pytest.mark.spec("virtio-1.2:5.10.6.3.2/rw-within-credit")
def test_a_guest_that_shrinks_its_window_is_not_overrun(a, b):
    near, far = connect(a, b)
    near.say(Op.RW, b"x" * 10_000)
    while far.fwd_cnt < 10_000:
        far.receive()
    far.buf_alloc = 1000
    far.say(Op.CREDIT_UPDATE)
    near.expect(Op.CREDIT_UPDATE)
    assert near.peer_fwd_cnt + near.peer_buf_alloc == WINDOW  # it was promised
    near.say(Op.RW, b"y" * near.credit)
    near.say(Op.CREDIT_REQUEST)
    left = near.tx_cnt - 10_000
    while left:
        packet = far.receive()
        if packet.op == Op.RW:
            assert packet.header.len <= 1000
            left -= packet.header.len
            far.say(Op.CREDIT_UPDATE)


@pytest.mark.spec("virtio-1.2:5.10.6.3/payload-only")
def test_a_forged_fwd_cnt_ends_that_connection(site, a, b):
    near, far = connect(a, b)
    near.say(Op.RW, b"x" * 10)
    far.receive()
    far.say(Op.CREDIT_UPDATE, fwd_cnt=11)
    near.expect(Op.RST)
    far.expect(Op.RST)
    assert site.stats(4).bad_packets == 1
    works(a, b)


@pytest.mark.spec("virtio-1.2:5.10.6.3/payload-only")
def test_an_old_fwd_cnt_changes_nothing(a, b):
    near, far = connect(a, b)
    near.say(Op.RW, b"x" * 10)
    far.receive()
    far.say(Op.CREDIT_UPDATE)
    assert near.expect(Op.CREDIT_UPDATE).header.fwd_cnt == 10
    far.say(Op.RW, b"y", fwd_cnt=3, buf_alloc=5)
    assert near.expect(Op.RW).header.fwd_cnt == 10
    assert near.credit == WINDOW


@pytest.mark.spec("virtio-1.2:5.10.6.2/stream-delivery")
def test_sixteen_pairs_share_fairly(a, b):
    pairs = [connect(a, b, 5000 + i) for i in range(16)]
    for near, _ in pairs:
        for _ in range(16):
            near.say(Op.RW, b"x" * 4096, kick=False)
    a.tx.kick()
    shares = dict.fromkeys((far.guest_port for _, far in pairs), 0)
    by_port = {far.guest_port: far for _, far in pairs}
    while sum(shares.values()) < 16 * WINDOW:
        packet = b.receive()
        shares[packet.header.dst_port] += packet.header.len
        by_port[packet.header.dst_port].take_credit(packet.header)
    assert set(shares.values()) == {WINDOW}


# ---- messages ----


@pytest.mark.parametrize("size", [0, 1, 4052, 4053, 30_000, WINDOW])
@pytest.mark.parametrize("flags", [Seq.EOM, Seq.EOM | Seq.EOR], ids=["eom", "eor"])
def test_messages_arrive_whole_with_their_flags(a, b, size, flags):
    near, far = connect(a, b, **MESSAGES)
    data = pattern(size)
    for one, other in ((near, far), (far, near)):
        for _ in range(3):
            one.send_message(data, flags=flags)
            assert other.receive_message() == (data, flags)
            one.receive()  # what the other told of its credit


def test_message_bounds_do_not_depend_on_the_packets(a, b):
    near, far = connect(a, b, **MESSAGES)
    sizes = [1, 2, 0, 5000, 3, 9000, 0, 0, 100]
    for size in sizes:
        near.send_message(pattern(size), packet_size=1000)
    for size in sizes:
        assert far.receive_message() == (pattern(size), Seq.EOM)


def test_messages_that_are_kept_keep_their_bounds(make_guest, a):
    b = make_guest(4, rx_buffers=1)
    near = a.request(5000, cid=4, **MESSAGES)
    far = b.accept()
    near.expect(Op.RESPONSE)
    sizes = [5000, 0, 1, 10_000, 0, 4052, 0]
    for size in sizes:
        near.send_message(pattern(size), packet_size=3000, flags=Seq.EOM | Seq.EOR)
    near.shutdown(Shutdown.SEND)
    a.drain()
    for size in sizes:
        assert far.receive_message() == (pattern(size), Seq.EOM | Seq.EOR)
    while (packet := far.receive()).op == Op.CREDIT_UPDATE:
        pass
    assert packet.header.flags == Shutdown.SEND


def test_a_message_larger_than_what_is_unread_waits_for_credit(a, b):
    near = a.request(5000, cid=4, **MESSAGES)
    far = b.accept(buf_alloc=10_000)
    near.expect(Op.RESPONSE)
    near.send_message(pattern(6000))
    near.say(Op.RW, pattern(4000))  # a message's first part
    got = b""
    while len(got) < 10_000:
        got += far.expect(Op.RW).payload
    far.say(Op.CREDIT_UPDATE)
    near.expect(Op.CREDIT_UPDATE)
    near.say(Op.RW, pattern(2000, 2), flags=Seq.EOM)
    assert far.receive_message() == (pattern(2000, 2), Seq.EOM)
    assert got == pattern(6000) + pattern(4000)


def test_a_sibling_without_seqpacket_refuses_it(make_guest, a):
    b = make_guest(4, features=ALL_FEATURES)
    assert a.request(5000, cid=4, **MESSAGES).expect(Op.RST).header.type == 2
    works(a, b)


def test_a_flood_of_empty_messages_ends_its_connection(site, make_guest, a):
    b = make_guest(4, rx_buffers=1)
    near = a.request(5000, cid=4, **MESSAGES)
    header = b.receive(repost=False).header
    b.send(b.header(Op.RESPONSE, 5000, header.src_port, dst_cid=3, type=2))
    near.expect(Op.RESPONSE)
    for _ in range(5 * WINDOW // 4 + 1):
        near.say(Op.RW, flags=Seq.EOM, kick=a.tx.free < 16)
    a.tx.kick()
    near.expect(Op.RST)
    assert site.stats(3).message_errors == 1


def test_a_packet_of_another_type_is_of_no_connection(a, b):
    near, far = connect(a, b, **MESSAGES)
    near.say(Op.RW, b"x", type=1)
    assert a.receive().header.type == 1
    near.send_message(b"still here")
    assert far.receive_message() == (b"still here", Seq.EOM)
