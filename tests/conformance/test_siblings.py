"""Two guests of one back-end that reach each other by CID (VIRTIO 1.2 section 5.10)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random

import pytest

from tests.conformance.threads import InThread
from vhost_user.backend import Backend
from vhost_user.engine import ALL_EVENTS, Echo, Engine, EventKind
from vhost_user.errors import StateError
from vhost_user.frontend import ALL_FEATURES
from vhost_user.vsock.device import VsockDevice
from vhost_user.vsock.driver import PAYLOAD_OPS, VsockGuest
from vhost_user.vsock.packet import Op, Seq, Shutdown, Type

ECHO = 7
MESSAGES = {"kind": Type.SEQPACKET}
WINDOW = 64 * 1024
GROUP = frozenset({"a"})


class Site(InThread):
    """A back-end with several devices: CID 3 and up, `groups` of each."""

    def __init__(self, directory, groups, *, dial_timeout_s=30.0, **options):
        super().__init__()
        self.directory = directory
        self.events = {}
        self.devices = {}
        self.backends = {}
        self._groups = groups
        self._dial_timeout_s = dial_timeout_s
        self._options = {"buf_alloc": WINDOW, **options}

    async def _serve(self):
        async with contextlib.AsyncExitStack() as stack:
            self._engine = await stack.enter_async_context(
                Engine(poll_us=0, dial_timeout_s=self._dial_timeout_s)
            )
            for cid, groups in enumerate(self._groups, 3):
                self.events[cid] = []
                device = VsockDevice(
                    self._engine,
                    guest_cid=cid,
                    groups=groups,
                    on_event=self.events[cid].append,
                    want=ALL_EVENTS,
                    **self._options,
                )
                device.handle.route(ECHO, Echo())
                self.devices[cid] = device
                backend = Backend(self.path(cid), device, name=f"CID {cid}")
                await backend.start()
                self.backends[cid] = backend
            await self._until_left()
            for cid in tuple(self.backends):
                await self._remove(cid)

    async def _remove(self, cid):
        await self.backends.pop(cid).close()
        self.devices.pop(cid).close()

    def path(self, cid):
        return self.directory / str(cid)

    def remove(self, cid):
        """Take a device out of the engine while its guest runs."""
        self.run(self._remove(cid))

    def stats(self, cid):
        return self.call(self.devices[cid].handle.stats)

    def add(self, cid, groups):
        """Add a device that has no socket, and remove it."""

        def add():
            VsockDevice(self._engine, guest_cid=cid, groups=groups).close()

        self.call(add)

    def wait_events(self, cid, kind, count):
        """Wait for events of one kind; return all of that kind."""

        async def wait():
            while True:
                found = [e for e in self.events[cid] if e.kind is kind]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.001)

        return self.run(wait())


@pytest.fixture
def make_site(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(*groups, **options):
            return stack.enter_context(Site(tmp_path, groups, **options))

        yield make


@pytest.fixture
def site(make_site):
    return make_site(GROUP, GROUP)


@pytest.fixture
def make_guest(site):
    with contextlib.ExitStack() as stack:

        def make(cid, **options):
            guest = VsockGuest(site.path(cid), cid=cid, **options)
            return stack.enter_context(guest)

        yield make


@pytest.fixture
def a(make_guest):
    return make_guest(3)


@pytest.fixture
def b(make_guest):
    return make_guest(4)


def connect(a, b, port=5000, **options):
    """Connect guest `a` to port `port` of guest `b`; return both ends."""
    near = a.request(port, cid=b.cid, **options)
    far = b.accept()
    near.expect(Op.RESPONSE)
    return near, far


def works(a, b):
    """Check that two guests still have a connection when they want one."""
    near, far = connect(a, b, 6000)
    near.say(Op.RW, b"ping")
    assert far.receive_bytes(4) == b"ping"
    far.say(Op.RW, b"pong")
    assert near.receive_bytes(4) == b"pong"


def pattern(size, seed=1):
    return random.Random(seed).randbytes(size)


def pump(near, far, data):
    """Send all of `data` within the credit while the other end reads it."""
    got = bytearray()
    told = far.fwd_cnt
    while len(got) < len(data):
        room = min(near.credit, 32768, len(data) - near.tx_cnt)
        if room > 0:
            near.say(Op.RW, data[near.tx_cnt : near.tx_cnt + room])
            while len(got) < near.tx_cnt:
                packet = far.expect(*PAYLOAD_OPS)
                got += packet.payload
                if packet.op == Op.CREDIT_REQUEST:
                    far.say(Op.CREDIT_UPDATE)
                if far.fwd_cnt - told >= far.buf_alloc // 4:
                    told = far.fwd_cnt
                    far.say(Op.CREDIT_UPDATE)
        else:
            near.expect(Op.CREDIT_UPDATE)
    return bytes(got)


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


# ---- bytes and credit ----


@pytest.mark.spec("virtio-1.2:5.10.6.2/stream-delivery")
@pytest.mark.parametrize("size", [1, 100_000, 3_000_000])
def test_bytes_arrive_both_ways_as_they_were_sent(a, b, size):
    near, far = connect(a, b)
    up, down = pattern(size), pattern(size, 2)
    assert pump(near, far, up) == up
    assert pump(far, near, down) == down


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
