"""Two guests of one back-end that reach each other by CID (VIRTIO 1.2 section 5.10)."""

from __future__ import annotations

import contextlib
import errno

import pytest

from tests.conformance.siblings import (
    ECHO,
    GROUP,
    a,
    b,
    connect,
    make_guest,
    make_site,
    site,
    works,
)
from vhost_user.engine import EventKind
from vhost_user.errors import StateError
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op, Shutdown

__all__ = ["a", "b", "make_guest", "make_site", "site"]


# ---- connections ----


@pytest.mark.spec("virtio-1.2:5.10.6.2/flow-tuple")
def test_a_request_reaches_the_sibling_as_it_was_sent(a, b):
    conn = a.request(5000, cid=4, buf_alloc=12345)
    header = b.receive().header
    assert header.op == Op.REQUEST
    assert (header.src_cid, header.dst_cid) == (3, 4)
    assert (header.src_port, header.dst_port) == (conn.guest_port, 5000)
    assert (header.buf_alloc, header.fwd_cnt) == (12345, 0)


@pytest.mark.spec("virtio-1.2:5.10.6.5/response")
def test_the_response_comes_when_the_sibling_gives_it(a, b):
    conn = a.request(5000, cid=4)
    assert a.fence() == []
    b.accept(buf_alloc=23456)
    header = conn.expect(Op.RESPONSE).header
    assert (header.src_cid, header.src_port) == (4, 5000)
    assert (header.buf_alloc, header.fwd_cnt) == (23456, 0)


@pytest.mark.spec("virtio-1.2:5.10.6.5/refused")
def test_a_refusal_comes_back(site, a, b):
    conn = a.request(5000, cid=4)
    request = b.receive().header
    b.send(b.header(Op.RST, 5000, request.src_port, dst_cid=3))
    conn.expect(Op.RST)
    for cid in (3, 4):
        (event,) = site.wait_events(cid, EventKind.FAILED, 1)
        assert event.cid == 7 - cid
        assert site.stats(cid).conns == 0


@pytest.mark.spec("virtio-1.2:5.10.6.5/refused")
@pytest.mark.parametrize("cid", [3, 5, 6, 99], ids=["own", "other-group", "none", "99"])
def test_a_cid_that_is_no_sibling_refuses(make_site, cid):
    site = make_site(GROUP, GROUP, frozenset({"b", "c"}), frozenset())
    with VsockGuest(site.path(3)) as guest:
        conn = guest.request(5000, cid=cid)
        assert conn.expect(Op.RST).header.src_cid == cid


@pytest.mark.spec("virtio-1.2:5.10.6.5/response")
def test_one_common_group_is_enough(make_site):
    site = make_site(frozenset({"a", "b"}), frozenset({"b", "c"}), frozenset({"c"}))
    with contextlib.ExitStack() as stack:
        guests = [
            stack.enter_context(VsockGuest(site.path(cid), cid=cid))
            for cid in (3, 4, 5)
        ]
        works(guests[0], guests[1])
        works(guests[2], guests[1])
        guests[0].request(1, cid=5).expect(Op.RST)


def test_two_siblings_cannot_have_one_cid(site):
    with pytest.raises(StateError):
        site.add(4, GROUP)
    site.add(4, frozenset({"b"}))
    site.add(5, GROUP)


@pytest.mark.spec("virtio-1.2:5.10.6.5/refused")
def test_a_sibling_that_is_off_refuses(a):
    a.request(5000, cid=4).expect(Op.RST)


@pytest.mark.spec("virtio-1.2:5.10.6.2/flow-tuple")
def test_the_same_ports_both_ways_and_to_the_host_are_three_connections(site, a, b):
    ports = (7, 7)
    host = a.header(Op.REQUEST, *ports)
    a.send(host)
    assert a.receive_for(*ports).op == Op.RESPONSE
    a.send(a.header(Op.REQUEST, *ports, dst_cid=4))
    far = b.accept()
    assert a.receive_for(*ports, cid=4).op == Op.RESPONSE
    b.send(b.header(Op.REQUEST, *ports))  # b to the host: the echo, too
    assert b.receive_for(*ports).op == Op.RESPONSE
    a.send(a.header(Op.RW, *ports, len=4), b"host")
    assert a.receive_for(*ports).payload == b"host"
    a.send(a.header(Op.RW, *ports, dst_cid=4, len=4), b"peer")
    assert far.expect(Op.RW).payload == b"peer"
    assert site.stats(3).conns == site.stats(4).conns == 2


def test_each_side_reports_its_connection(site, a, b):
    near, far = connect(a, b)
    near.say(Op.RW, b"12345")
    far.receive_bytes(5)
    for cid in (3, 4):
        (event,) = site.wait_events(cid, EventKind.OPENED, 1)
        assert event.cid == 7 - cid
    near.shutdown(Shutdown.BOTH)
    far.expect(Op.SHUTDOWN)
    far.say(Op.RST)
    near.expect(Op.RST)
    ended = {cid: site.wait_events(cid, EventKind.CLOSED, 1)[0] for cid in (3, 4)}
    assert [ended[cid].error for cid in (3, 4)] == [0, 0]
    assert (ended[3].up_bytes, ended[3].down_bytes) == (5, 0)
    assert (ended[4].up_bytes, ended[4].down_bytes) == (0, 5)
    assert site.stats(3).tx_bytes == site.stats(4).rx_bytes == 5


def test_max_conns_counts_at_both_ends(make_site):
    site = make_site(GROUP, GROUP, GROUP, max_conns=1)
    with contextlib.ExitStack() as stack:
        a, b, c = (
            stack.enter_context(VsockGuest(site.path(cid), cid=cid))
            for cid in (3, 4, 5)
        )
        connect(a, b)
        c.request(5000, cid=4).expect(Op.RST)
        assert site.stats(4).limit_conns == 1
        assert site.stats(5).conns == 0
        works_alone = c.request(ECHO)
        works_alone.expect(Op.RESPONSE)


# ---- the end ----


@pytest.mark.spec("virtio-1.2:5.10.6.5/shutdown-send")
def test_half_close_goes_on_and_the_other_half_works(a, b):
    near, far = connect(a, b)
    near.say(Op.RW, b"last words")
    near.shutdown(Shutdown.SEND)
    assert far.receive_bytes(10) == b"last words"
    assert far.expect(Op.SHUTDOWN).header.flags == Shutdown.SEND
    far.say(Op.RW, b"answer")
    assert near.receive_bytes(6) == b"answer"
    far.shutdown(Shutdown.SEND)
    assert near.expect(Op.SHUTDOWN).header.flags == Shutdown.SEND
    assert a.fence() == b.fence() == []  # neither has let go yet


@pytest.mark.spec("virtio-1.2:5.10.6.5/shutdown-receive")
def test_the_receiving_half_can_close_first(a, b):
    near, far = connect(a, b)
    far.shutdown(Shutdown.RECEIVE)
    assert near.expect(Op.SHUTDOWN).header.flags == Shutdown.RECEIVE
    far.say(Op.RW, b"still")
    assert near.receive_bytes(5) == b"still"


@pytest.mark.spec("virtio-1.2:5.10.6.5/clean-disconnect")
def test_no_rst_answers_a_close_before_the_sibling_does(a, b):
    near, far = connect(a, b)
    near.say(Op.RW, b"bye")
    near.shutdown(Shutdown.BOTH)
    assert far.receive_bytes(3) == b"bye"
    assert far.expect(Op.SHUTDOWN).header.flags == Shutdown.BOTH
    assert a.fence() == []
    far.say(Op.RST)
    near.expect(Op.RST)
    assert a.fence() == b.fence() == []


@pytest.mark.spec("virtio-1.2:5.10.6.5/shutdown-send")
def test_shutdown_comes_behind_the_bytes_that_are_kept(make_guest, a):
    b = make_guest(4, rx_buffers=1)
    near = a.request(5000, cid=4)
    header = b.receive(repost=False).header
    b.send(b.header(Op.RESPONSE, 5000, header.src_port, dst_cid=3))
    near.expect(Op.RESPONSE)
    near.say(Op.RW, b"x" * 10_000)
    near.shutdown(Shutdown.SEND)
    near.say(Op.CREDIT_REQUEST)
    a.drain()
    b.post_rx()
    came = 0
    while (packet := b.receive(repost=False)).op != Op.SHUTDOWN:
        came += packet.header.len
        b.post_rx()
    assert came == 10_000


@pytest.mark.spec("virtio-1.2:5.10.6.5/rst-disconnects")
@pytest.mark.parametrize("who", ["opener", "sibling"])
def test_a_reset_goes_on_either_way(site, a, b, who):
    near, far = connect(a, b)
    one, other = (near, far) if who == "opener" else (far, near)
    one.say(Op.RST)
    other.expect(Op.RST)
    for cid in (3, 4):
        (event,) = site.wait_events(cid, EventKind.CLOSED, 1)
        assert event.error == 104
        assert site.stats(cid).conns == 0
    assert a.fence() == b.fence() == []


@pytest.mark.spec("virtio-1.2:5.10.6.5/clean-disconnect")
def test_bytes_of_a_guest_that_gave_up_waiting_still_arrive(site, make_guest, a):
    b = make_guest(4, rx_buffers=1)
    near = a.request(5000, cid=4)
    port = b.receive(repost=False).header.src_port
    b.send(b.header(Op.RESPONSE, 5000, port, dst_cid=3))
    near.expect(Op.RESPONSE)
    near.say(Op.RW, b"x" * 10_000)
    near.shutdown(Shutdown.BOTH)
    near.say(Op.RST)  # Linux does so after 8 s
    a.drain()
    b.post_rx(8)
    seen = [b.receive(repost=False)]
    while seen[-1].op != Op.SHUTDOWN or seen[-1].header.flags != Shutdown.BOTH:
        seen.append(b.receive(repost=False))
    assert sum(p.header.len for p in seen) == 10_000
    b.send(b.header(Op.RST, 5000, port, dst_cid=3))
    site.wait_events(3, EventKind.CLOSED, 1)
    assert site.stats(3).conns == site.stats(4).conns == 0


# ---- siblings that misbehave ----


@pytest.mark.spec("virtio-1.2:5.10.6.5/rst-disconnects")
def test_a_response_to_nothing_is_refused(a, b):
    b.send(b.header(Op.RESPONSE, 5000, 5001, dst_cid=3))
    assert b.receive_for(5000, 5001, cid=3).op == Op.RST
    assert a.fence() == []


@pytest.mark.spec("virtio-1.2:5.10.6.5/rst-disconnects")
@pytest.mark.parametrize("op", [Op.RW, Op.SHUTDOWN, Op.CREDIT_UPDATE])
def test_an_answer_that_is_none_fails_the_connection(a, b, op):
    conn = a.request(5000, cid=4)
    port = b.receive().header.src_port
    b.send(b.header(op, 5000, port, dst_cid=3))
    conn.expect(Op.RST)
    assert b.receive().op == Op.RST
    works(a, b)


@pytest.mark.spec("virtio-1.2:5.10.6.5/rst-disconnects")
def test_bytes_before_the_response_fail_the_connection(a, b):
    conn = a.request(5000, cid=4)
    b.receive()
    conn.say(Op.RW, b"early")
    conn.expect(Op.RST)
    assert b.receive().op == Op.RST
    works(a, b)


@pytest.mark.spec("virtio-1.2:5.10.6.2/flow-tuple")
def test_a_guest_cannot_speak_for_its_sibling(site, a, b):
    near, far = connect(a, b)
    b.send(b.header(Op.RST, far.guest_port, far.host_port, src_cid=5, dst_cid=3))
    assert a.fence() == []
    assert site.stats(4).bad_packets == 1
    near.say(Op.RW, b"on")
    assert far.receive_bytes(2) == b"on"


@pytest.mark.spec("virtio-1.2:5.10.6.5/rst-disconnects")
def test_a_request_that_is_never_answered_ends_at_both_guests(make_site):
    site = make_site(GROUP, GROUP, dial_timeout_s=0.1)
    with VsockGuest(site.path(3)) as a, VsockGuest(site.path(4), cid=4) as b:
        conn = a.request(5000, cid=4)
        assert b.receive().op == Op.REQUEST
        conn.expect(Op.RST)
        assert b.receive().op == Op.RST
        for cid in (3, 4):
            (event,) = site.wait_events(cid, EventKind.FAILED, 1)
            assert event.error == errno.ETIMEDOUT


@pytest.mark.spec("virtio-1.2:5.10.6.5/rst-disconnects")
def test_a_request_that_is_never_answered_ends_when_the_guest_gives_up(site, a, b):
    conn = a.request(5000, cid=4)
    assert b.receive().op == Op.REQUEST
    conn.say(Op.RST)
    assert b.receive().op == Op.RST
    assert site.stats(3).conns == site.stats(4).conns == 0
    works(a, b)


@pytest.mark.spec("virtio-1.2:5.10.6.2/flow-tuple")
def test_the_same_ports_again_reset_the_old_connection(a, b):
    near, far = connect(a, b)
    near.say(Op.REQUEST)
    far.expect(Op.RST)
    packet = near.receive()
    if packet.op == Op.RST:  # b had not heard of the end when the request came
        near.say(Op.REQUEST)
    assert far.expect(Op.REQUEST).header.src_port == near.guest_port


def test_a_front_end_that_leaves_resets_its_siblings_connections(site, make_guest, a):
    with VsockGuest(site.path(4), cid=4) as b:
        near, far = connect(a, b)
        waiting = a.request(5001, cid=4)
        assert b.receive().op == Op.REQUEST
        far.say(Op.RW, b"bye")
        assert near.receive_bytes(3) == b"bye"
    near.expect(Op.RST)
    waiting.expect(Op.RST)
    works(a, make_guest(4))


def test_a_device_that_is_removed_resets_its_siblings_connections(site, a, b):
    near, _ = connect(a, b)
    site.remove(4)
    near.expect(Op.RST)
    a.request(5000, cid=4).expect(Op.RST)
    other = a.connect(ECHO)
    other.say(Op.RW, b"alive")
    assert other.receive().payload == b"alive"


def test_a_ring_that_is_stopped_keeps_its_connections(a, b):
    near, far = connect(a, b)
    b.stop()
    near.say(Op.RW, b"while you were out")
    a.drain()
    b.start()
    assert far.receive_bytes(18) == b"while you were out"


def test_a_ring_that_breaks_harms_only_its_guest(a, b):
    near, _ = connect(a, b)
    b.rx.set_avail_idx(b.rx.avail_idx + 1000)
    for _ in range(8):
        near.say(Op.RW, b"x" * 8192)
    a.drain()
    other = a.connect(ECHO)
    other.say(Op.RW, b"alive")
    assert other.receive().payload == b"alive"
