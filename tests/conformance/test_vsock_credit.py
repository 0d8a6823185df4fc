"""virtio-vsock credit (VIRTIO 1.2 section 5.10.6.3 "Buffer Space Management")."""

from __future__ import annotations

import contextlib

import pytest

from tests.support.limits import LIMIT_S as TIMEOUT_S
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import HDR_SIZE, Op

ECHO, DISCARD, CHARGEN = 7, 9, 19


def packets_of(conn, packets):
    """Return a connection's packets; the device may ask for credit at any time."""
    return [
        p
        for p in packets
        if p.header.src_port == conn.host_port and p.op != Op.CREDIT_REQUEST
    ]


def data_packet(conn):
    """Return the next packet with payload."""
    while (packet := conn.receive()).op != Op.RW:
        conn.require(packet, Op.CREDIT_REQUEST)
    return packet


@pytest.mark.spec("virtio-1.2:5.10.6.3/credit-request")
def test_a_credit_request_gets_an_update(guest):
    conn = guest.connect(DISCARD)
    conn.say(Op.CREDIT_REQUEST)
    header = conn.expect(Op.CREDIT_UPDATE).header
    assert (header.buf_alloc, header.fwd_cnt) == (64 * 1024, 0)


@pytest.mark.spec(
    "virtio-1.2:5.10.6.3/payload-only",
    "virtio-1.2:5.10.6.3.2/valid-fields",
)
def test_the_update_counts_the_bytes_that_were_taken(guest):
    conn = guest.connect(DISCARD)
    conn.say(Op.RW, b"x" * 1000)
    conn.say(Op.CREDIT_REQUEST)
    assert conn.expect(Op.CREDIT_UPDATE).header.fwd_cnt == 1000


@pytest.mark.spec("virtio-1.2:5.10.6.3/unasked-update")
def test_credit_comes_back_without_asking(guest):
    conn = guest.connect(DISCARD)
    conn.send(b"x" * 1_000_000)
    assert conn.tx_cnt == 1_000_000


@pytest.mark.spec("virtio-1.2:5.10.6.3.2/valid-fields")
def test_bytes_that_the_host_did_not_take_earn_no_credit(far, guest, read_exactly):
    conn, sock = far()
    total = 0
    while conn.credit:  # fill the host's socket buffer, then our window
        piece = min(conn.credit, 32768)
        conn.say(Op.RW, b"x" * piece)
        total += piece
        for packet in packets_of(conn, guest.fence()):
            conn.take_credit(packet.header)
    conn.say(Op.CREDIT_REQUEST)
    assert conn.expect(Op.CREDIT_UPDATE).header.fwd_cnt == total - 64 * 1024
    assert read_exactly(sock, total) == b"x" * total
    while conn.peer_fwd_cnt <= total - 64 * 1024:
        conn.expect(Op.CREDIT_UPDATE)


def test_a_guest_that_uses_less_than_its_window_hears_of_room(make_host, make_guest_of):
    """Linux has no more in flight than its own buffer, since CVE-2026-23086."""
    host = make_host(buf_alloc=1 << 20)
    guest = make_guest_of(host)
    conn = guest.connect(DISCARD)
    own = 4096
    in_flight = 0
    for _ in range(512):
        while in_flight + 1024 <= own:
            conn.say(Op.RW, b"x" * 1024, buf_alloc=own)
            in_flight += 1024
        for packet in packets_of(conn, guest.fence()):
            conn.take_credit(packet.header)
        in_flight = conn.tx_cnt - conn.peer_fwd_cnt & 0xFFFF_FFFF
        assert in_flight < own


@pytest.mark.spec("virtio-1.2:5.10.6.3/payload-only")
def test_a_guest_that_overruns_its_credit_loses_that_connection(host, far, guest):
    other = guest.connect(ECHO)
    conn, sock = far()
    sent = 0
    while host.stats().credit_violations == 0:
        conn.say(Op.RW, b"x" * 32768)
        guest.fence()
        sent += 32768
        assert sent < 4 << 20
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(1 << 20):  # what came before the violation, then an end
            pass
    other.say(Op.RW, b"alive")
    assert other.receive().payload == b"alive"


@pytest.mark.spec("virtio-1.2:5.10.6.3/payload-only")
def test_a_packet_larger_than_the_window_is_a_violation(host, guest):
    conn = guest.connect(DISCARD)
    conn.say(Op.RW, b"x" * (64 * 1024 + 1))
    conn.expect(Op.RST)
    assert host.stats().credit_violations == 1


@pytest.mark.spec("virtio-1.2:5.10.6.3.2/rw-within-credit")
@pytest.mark.parametrize("window", [1, 1000, 5000])
def test_the_device_never_sends_more_than_the_guests_window(guest, window):
    conn = guest.connect(CHARGEN, buf_alloc=window)
    for _ in range(3):
        came = 0
        while came < window:
            came += conn.receive(consume=False).header.len
        assert came == window
        assert packets_of(conn, guest.fence()) == []
        conn.fwd_cnt += window
        conn.say(Op.CREDIT_UPDATE)


@pytest.mark.spec("virtio-1.2:5.10.6.3.2/rw-within-credit")
def test_a_window_that_shrinks_stops_the_device(guest):
    conn = guest.connect(CHARGEN, buf_alloc=8000)
    came = 0
    while came < 8000:
        came += conn.receive(consume=False).header.len
    conn.buf_alloc, conn.fwd_cnt = 1000, 4000  # 4000 in flight, 1000 allowed
    conn.say(Op.CREDIT_UPDATE)
    assert packets_of(conn, guest.fence()) == []
    conn.fwd_cnt = 8000
    conn.say(Op.CREDIT_UPDATE)
    assert data_packet(conn).header.len <= 1000


@pytest.mark.spec("virtio-1.2:5.10.6.3.2/rw-within-credit")
def test_a_window_of_nothing_gets_nothing(guest):
    conn = guest.connect(CHARGEN, buf_alloc=0)
    assert packets_of(conn, guest.fence()) == []
    conn.buf_alloc = 10
    conn.say(Op.CREDIT_UPDATE)
    assert data_packet(conn).header.len == 10


@pytest.mark.spec("virtio-1.2:5.10.6.3/payload-only")
def test_a_forged_fwd_cnt_ends_at_most_its_connection(guest):
    conn, other = guest.connect(ECHO), guest.connect(ECHO)
    conn.say(Op.CREDIT_UPDATE, fwd_cnt=2**31)  # more than was ever sent
    other.say(Op.RW, b"alive")
    assert other.receive().payload == b"alive"


@pytest.mark.spec("virtio-1.2:5.10.6.1.2/tx-when-rx-full")
def test_without_rx_buffers_the_device_waits(make_guest):
    guest = make_guest(rx_buffers=0)
    conns = [guest.request(ECHO) for _ in range(20)]
    guest.drain()
    for conn in conns:
        guest.post_rx()
        assert guest.receive(repost=False).op == Op.RESPONSE
        assert conn.host_port == ECHO


@pytest.mark.spec("virtio-1.2:5.10.6.1.2/bounded")
def test_a_guest_without_rx_buffers_cannot_make_replies_pile_up(host, make_guest):
    guest = make_guest(rx_buffers=0)
    sent = 0
    while guest.tx.free:
        guest.send(guest.header(Op.RW, 4000, 4001))
        sent += 1
        if sent > 20 * guest.tx.num:
            pytest.fail("the device goes on reading")
        host.stats()
    guest.post_rx(64)
    for _ in range(sent):
        assert guest.receive().op == Op.RST
    guest.drain()


@pytest.mark.spec("virtio-1.2:5.10.6.3/credit-request")
def test_a_driver_that_tells_only_when_asked_is_asked(guest):
    conn = guest.connect(CHARGEN, buf_alloc=10_000)
    for _ in range(3):
        came = 0
        while came < 10_000:
            came += conn.receive().header.len
        conn.expect(Op.CREDIT_REQUEST)
        conn.say(Op.CREDIT_UPDATE)


def test_a_window_that_stays_full_is_asked_for_once(guest):
    conn = guest.connect(CHARGEN, buf_alloc=0)
    conn.expect(Op.CREDIT_REQUEST)
    for _ in range(3):
        conn.say(Op.CREDIT_UPDATE)
        assert guest.fence() == []


@pytest.mark.spec("virtio-1.2:5.10.6.3.2/rw-within-credit")
def test_a_window_may_grow_and_shrink_on_the_way(guest):
    conn = guest.connect(CHARGEN, buf_alloc=1000)
    total = 0
    for window in (1000, 20_000, 500, 100_000, 5000):
        conn.buf_alloc, conn.fwd_cnt = window, total
        conn.say(Op.CREDIT_UPDATE)
        came = 0
        while came < window:
            came += data_packet(conn).header.len
        conn.fwd_cnt = total
        assert came == window
        assert packets_of(conn, guest.fence()) == []
        total += came


@pytest.mark.unseen("its packets go past the driver, for speed")
@pytest.mark.spec("virtio-1.2:5.10.6.3/payload-only")
def test_the_guests_counters_wrap(make_host):
    """Past 4 GiB, in packets as large as the window: the same bytes in each."""
    host = make_host(buf_alloc=1 << 30)
    total, piece = 0, 1 << 20
    with VsockGuest(host.path) as guest:
        conn = guest.connect(DISCARD)
        payload, header = guest.ram.alloc(piece), guest.ram.alloc(HDR_SIZE)
        while total <= 2**32:
            size = conn.credit // piece * piece or conn.credit
            head = guest.header(Op.RW, conn.guest_port, DISCARD, len=size)
            guest.ram.write(header, head.encode())
            segments = [(payload, min(piece, size))] * max(size // piece, 1)
            guest.tx.add(readable=[(header, HDR_SIZE), *segments], indirect=True)
            guest.tx.kick()
            total += size
            conn.tx_cnt += size
            assert conn.expect(Op.CREDIT_UPDATE).header.fwd_cnt == total % 2**32
            guest.tx.wait_used()
        stats = host.stats()
    assert (stats.tx_bytes, stats.credit_violations) == (total, 0)


@pytest.mark.spec("virtio-1.2:5.10.6.3/payload-only")
def test_the_devices_counters_wrap(host, make_guest):
    guest = make_guest(rx_buffers=0, queue_size=64)
    conn = guest.request(CHARGEN, buf_alloc=1 << 30)
    size, total = 256 * 1024 + HDR_SIZE, 0
    buffers = {}
    gpa = guest.ram.alloc(size)
    while total <= 2**32:
        while guest.rx.free:
            buffers[guest.rx.add(writable=[(gpa, size)])] = gpa
        guest.rx.kick()
        used = guest.rx.wait_used(TIMEOUT_S)
        while used is not None:
            total += used.len - HDR_SIZE
            used = guest.rx.pop_used()
        conn.fwd_cnt = total
        conn.say(Op.CREDIT_UPDATE)
    assert host.stats().rx_bytes >= total  # some may be on their way
