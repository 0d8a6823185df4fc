"""virtio-vsock seqpacket sockets: messages, whole or not at all."""

from __future__ import annotations

import socket

import pytest

from vhost_user.frontend import ALL_FEATURES
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op, Seq, Shutdown, Type

ECHO, DISCARD, CHARGEN = 7, 9, 19
PATTERN = bytes(range(251)) * 1200
WINDOW = 64 * 1024
BOTH = Seq.EOM | Seq.EOR
SIZES = [1, 43, 4052, 4053, 8104, 30_000, WINDOW]
MESSAGES = {"kind": Type.SEQPACKET}


def data_packet(conn, *, consume=True):
    """Return the next packet with payload; the device may ask for credit meanwhile."""
    while (packet := conn.receive(consume=consume)).op != Op.RW:
        conn.require(packet, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST)
    return packet


def nothing_but_credit(guest):
    return {p.op for p in guest.fence()} <= {Op.CREDIT_REQUEST, Op.CREDIT_UPDATE}


# ---- types ----


@pytest.mark.spec("virtio-1.2:5.10.3/seqpacket")
def test_the_device_offers_seqpacket(guest):
    assert guest.vmm.features & 1 << 1


@pytest.mark.spec("virtio-1.2:5.10.3/stream", "virtio-1.2:5.10.6.4.2/unknown-type")
def test_without_the_feature_a_seqpacket_request_gets_a_rst(host, make_guest):
    guest = make_guest(features=ALL_FEATURES)
    conn = guest.request(ECHO, **MESSAGES)
    assert conn.expect(Op.RST).header.type == Type.SEQPACKET
    with host.dial(5001, socket.SOCK_SEQPACKET) as sock:
        assert sock.recv(100).startswith(b"ERROR ")
        assert sock.recv(100) == b""


@pytest.mark.spec("virtio-1.2:5.10.3/seqpacket", "virtio-1.2:5.10.6/header")
def test_each_packet_of_a_seqpacket_connection_has_its_type(guest):
    conn = guest.request(ECHO, **MESSAGES)
    assert conn.expect(Op.RESPONSE).header.type == Type.SEQPACKET
    conn.send_message(b"x")
    assert conn.expect(Op.RW).header.type == Type.SEQPACKET
    conn.say(Op.CREDIT_REQUEST)
    assert conn.expect(Op.CREDIT_UPDATE).header.type == Type.SEQPACKET
    conn.shutdown(Shutdown.BOTH)
    assert conn.expect(Op.RST).header.type == Type.SEQPACKET


@pytest.mark.parametrize(
    ("listens", "asks"),
    [
        pytest.param(socket.SOCK_STREAM, Type.SEQPACKET, id="stream-listens"),
        pytest.param(socket.SOCK_SEQPACKET, Type.STREAM, id="seqpacket-listens"),
    ],
)
def test_a_host_socket_of_the_other_type_refuses(host, guest, listens, asks):
    with host.listen(5000, listens):
        conn = guest.request(5000, kind=asks)
        assert conn.expect(Op.RST).header.type == asks


@pytest.mark.parametrize("op", [Op.RW, Op.SHUTDOWN, Op.CREDIT_REQUEST])
def test_a_packet_of_another_type_is_of_no_connection(guest, op):
    conn = guest.connect(ECHO, **MESSAGES)
    conn.say(op, type=Type.STREAM)
    header = guest.receive().header
    assert (header.op, header.type) == (Op.RST, Type.STREAM)
    conn.send_message(b"alive")
    assert conn.receive_message() == (b"alive", Seq.EOM)


# ---- guest to host ----


@pytest.mark.spec(
    "virtio-1.2:5.10.6.2/seqpacket-delivery", "virtio-1.2:5.10.6.6.1/message"
)
@pytest.mark.parametrize("size", SIZES)
def test_a_message_reaches_the_host_whole(far, size):
    conn, sock = far(**MESSAGES)
    for packet_size in (65536, 4096, 1000):
        conn.send_message(PATTERN[:size], packet_size=packet_size)
        assert sock.recv(1 << 20) == PATTERN[:size]


@pytest.mark.spec("virtio-1.2:5.10.6.2/seqpacket-delivery")
def test_messages_stay_apart(far):
    conn, sock = far(**MESSAGES)
    for i in range(200):
        conn.send_message(b"%d" % i)
    assert [sock.recv(100) for _ in range(200)] == [b"%d" % i for i in range(200)]


@pytest.mark.spec("virtio-1.2:5.10.6.6.1/message")
def test_a_message_is_held_until_its_end_comes(far, guest):
    conn, sock = far(**MESSAGES)
    for piece in (b"one ", b"", b"two "):
        conn.say(Op.RW, piece)
        guest.fence()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(100)
    sock.setblocking(True)
    conn.say(Op.RW, b"three", flags=Seq.EOM)
    conn.say(Op.RW, b"four", flags=BOTH)
    assert sock.recv(100) == b"one two three"
    assert sock.recv(100) == b"four"


@pytest.mark.spec("virtio-1.2:5.10.6.6.1/message")
def test_a_message_may_end_with_an_empty_packet(far, guest):
    conn, sock = far(**MESSAGES)
    conn.say(Op.RW, b"half")
    guest.fence()
    conn.say(Op.RW, flags=Seq.EOM)
    assert sock.recv(100) == b"half"


def test_an_empty_message_is_no_end(far):
    conn, sock = far(**MESSAGES)
    conn.send_message(b"")
    conn.send_message(b"x")
    assert sock.recv(100) == b""
    assert sock.recv(100) == b"x"


def test_messages_for_a_host_that_does_not_read_are_kept_apart(far, guest):
    conn, sock = far(**MESSAGES)
    sent: list[bytes] = []
    while conn.credit:  # the socket's buffer, then ours
        sent.append(PATTERN[: min(conn.credit, 1 + len(sent) % 5000)])
        conn.say(Op.RW, sent[-1], flags=Seq.EOM)
        for packet in guest.fence():
            conn.take_credit(packet.header)
    assert [sock.recv(1 << 20) for _ in sent] == sent


def test_a_window_full_of_tiny_messages_is_kept(far, guest):
    conn, sock = far(**MESSAGES)
    count = 0
    while conn.credit:
        conn.say(Op.RW, b"x", flags=Seq.EOM, fwd_cnt=0)
        count += 1
        if count % 1000 == 0:
            for packet in guest.fence():
                conn.take_credit(packet.header)
            if count > 3 * WINDOW:
                pytest.fail("the host never stops")
    for _ in range(count):
        assert sock.recv(100) == b"x"


def test_a_flood_of_empty_messages_ends_its_connection_only(make_host):
    host = make_host(buf_alloc=4096)
    with VsockGuest(host.path) as guest, host.listen(5000, socket.SOCK_SEQPACKET):
        conn = guest.connect(5000, **MESSAGES)
        other = guest.connect(ECHO, **MESSAGES)
        sent = 0
        while host.stats().message_errors == 0:
            for _ in range(50):
                conn.say(Op.RW, flags=Seq.EOM)
            guest.fence()
            sent += 50
            assert sent < 10 * 4096
        other.send_message(b"alive")
        assert other.receive_message() == (b"alive", Seq.EOM)


@pytest.mark.spec("virtio-1.2:5.10.6.3/unasked-update")
def test_the_rest_of_a_message_gets_its_credit_in_time(far):
    """With less than half a window consumed no update is due yet, but needed."""
    conn, sock = far(**MESSAGES)
    first = PATTERN[: WINDOW * 2 // 5]
    conn.send_message(first)
    assert sock.recv(1 << 20) == first
    conn.send_message(PATTERN[:WINDOW])
    assert sock.recv(1 << 20) == PATTERN[:WINDOW]


@pytest.mark.parametrize("close", [Shutdown.SEND, Shutdown.BOTH])
def test_a_message_without_end_is_not_delivered(host, far, guest, close):
    conn, sock = far(**MESSAGES)
    conn.send_message(b"whole")
    conn.say(Op.RW, b"never finis")
    guest.fence()
    conn.shutdown(close)
    conn.expect(Op.RST)
    assert sock.recv(100) == b"whole"
    assert sock.recv(100) == b""
    assert host.stats().message_errors == 1


def test_a_message_larger_than_the_window_is_a_violation(host, guest):
    conn = guest.connect(DISCARD, **MESSAGES)
    conn.say(Op.RW, PATTERN[: WINDOW + 1], flags=Seq.EOM)
    conn.expect(Op.RST)
    assert host.stats().credit_violations == 1


def test_a_guest_that_closes_gets_a_rst_when_its_messages_are_out(far, guest):
    conn, sock = far(**MESSAGES)
    sent = [PATTERN[:size] for size in (1, 30_000, 5)]
    for message in sent:
        conn.send_message(message)
    conn.shutdown(Shutdown.BOTH)
    conn.expect(Op.RST)
    assert [sock.recv(1 << 20) for _ in sent] == sent
    assert sock.recv(1) == b""


# ---- host to guest ----


@pytest.mark.spec(
    "virtio-1.2:5.10.6.2/seqpacket-delivery", "virtio-1.2:5.10.6.6.1/message"
)
@pytest.mark.parametrize("size", SIZES)
def test_a_message_reaches_the_guest_whole(far, size):
    conn, sock = far(**MESSAGES)
    for _ in range(3):
        sock.send(PATTERN[:size])
        assert conn.receive_message() == (PATTERN[:size], Seq.EOM)


@pytest.mark.spec("virtio-1.2:5.10.6.6.1/message")
def test_only_the_last_packet_of_a_message_ends_it(far):
    conn, sock = far(**MESSAGES)
    sock.send(PATTERN[:10_000])
    flags, got = [], 0
    while got < 10_000:
        header = conn.expect(Op.RW).header
        got += header.len
        flags.append(header.flags)
    assert flags == [0] * (len(flags) - 1) + [Seq.EOM]


def test_a_segment_for_each_few_bytes_is_enough(host):
    with (
        VsockGuest(host.path, rx_layout=(1,) * 200, rx_indirect=True) as guest,
        host.dial(5001, socket.SOCK_SEQPACKET) as sock,
    ):
        conn = guest.accept()
        assert sock.recv(100).startswith(b"OK ")
        sock.send(PATTERN[:2000])
        assert conn.receive_message() == (PATTERN[:2000], Seq.EOM)


def test_messages_to_the_guest_stay_apart(far):
    conn, sock = far(**MESSAGES)
    for i in range(100):
        sock.send(b"%d" % i)
    assert [conn.receive_message()[0] for _ in range(100)] == [
        b"%d" % i for i in range(100)
    ]


def test_empty_messages_of_the_host_are_no_end(far):
    conn, sock = far(**MESSAGES)
    for message in (b"", b"x", b"", b"", b"y"):
        sock.send(message)
    sock.shutdown(socket.SHUT_WR)
    got = [conn.receive_message() for _ in range(5)]
    assert got == [(m, Seq.EOM) for m in (b"", b"x", b"", b"", b"y")]
    assert conn.expect(Op.SHUTDOWN).header.flags == Shutdown.SEND


@pytest.mark.spec("virtio-1.2:5.10.6.3.2/rw-within-credit")
def test_credit_is_respected_in_the_middle_of_a_message(far, guest):
    conn, sock = far(buf_alloc=10_000, **MESSAGES)
    sock.send(PATTERN[:6000])
    sock.send(PATTERN[:8000])
    came = [conn.receive(consume=False) for _ in range(3)]
    assert [(p.header.len, p.header.flags) for p in came] == [
        (4052, 0),
        (1948, Seq.EOM),
        (4000, 0),
    ]
    first = came[-1].payload
    assert nothing_but_credit(guest)
    conn.fwd_cnt += 10_000
    conn.say(Op.CREDIT_UPDATE)
    rest, flags = conn.receive_message()
    assert (first + rest, flags) == (PATTERN[:8000], Seq.EOM)


@pytest.mark.spec("virtio-1.2:5.10.6.3.2/rw-within-credit")
def test_a_window_that_shrinks_within_a_message_holds_the_rest(far, guest):
    conn, sock = far(buf_alloc=10_000, **MESSAGES)
    sock.send(PATTERN[:6000])
    sock.send(PATTERN[:8000])
    came = 0
    while came < 10_000:
        came += conn.receive(consume=False).header.len
    conn.buf_alloc, conn.fwd_cnt = 1000, 6000
    conn.say(Op.CREDIT_UPDATE)
    assert nothing_but_credit(guest)
    conn.fwd_cnt = 10_000
    for size in (1000, 1000, 1000, 1000):
        conn.say(Op.CREDIT_UPDATE)
        assert data_packet(conn).header.len == size
    assert nothing_but_credit(guest)


def test_a_message_waits_for_rx_buffers(host):
    with (
        VsockGuest(host.path, rx_buffers=3) as guest,
        host.dial(5001, socket.SOCK_SEQPACKET) as sock,
    ):
        conn = guest.accept()
        sock.recv(100)
        sock.send(PATTERN[:60_000])
        sock.send(b"next")
        assert conn.receive_message() == (PATTERN[:60_000], Seq.EOM)
        assert conn.receive_message() == (b"next", Seq.EOM)


@pytest.mark.parametrize("window", [100, 5000])
def test_a_message_larger_than_the_guests_window_ends_the_connection(host, far, window):
    conn, sock = far(buf_alloc=window, **MESSAGES)
    sock.send(PATTERN[:window])
    sock.send(PATTERN[: window + 1])
    assert conn.receive_message() == (PATTERN[:window], Seq.EOM)
    conn.expect(Op.RST)
    assert host.stats().message_errors == 1


def test_a_message_larger_than_256_kib_ends_the_connection(host, far):
    conn, sock = far(buf_alloc=1 << 20, **MESSAGES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    whole = PATTERN[: 256 * 1024].ljust(256 * 1024, b"x")
    sock.send(whole)
    assert conn.receive_message() == (whole, Seq.EOM)
    sock.send(whole + b"x")
    conn.expect(Op.RST)
    assert host.stats().message_errors == 1


def test_the_ends_come_one_by_one(far):
    conn, sock = far(**MESSAGES)
    sock.send(b"last words")
    sock.shutdown(socket.SHUT_WR)
    assert conn.receive_message() == (b"last words", Seq.EOM)
    assert conn.expect(Op.SHUTDOWN).header.flags == Shutdown.SEND
    conn.send_message(b"still here")
    assert sock.recv(100) == b"still here"
    conn.shutdown(Shutdown.SEND)
    assert sock.recv(1) == b""


# ---- the host asks ----


def test_a_host_client_asks_by_a_message(host, guest):
    with host.dial(5001, socket.SOCK_SEQPACKET) as sock:
        sock.send(b"early")
        conn = guest.accept()
        assert (conn.guest_port, conn.kind) == (5001, Type.SEQPACKET)
        assert sock.recv(100).startswith(b"OK ")
        assert conn.receive_message() == (b"early", Seq.EOM)
        conn.send_message(b"pong")
        assert sock.recv(100) == b"pong"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"CONNECT 5001", id="no-newline"),
        pytest.param(b"CONNECT 5001\nearly", id="more-than-the-line"),
        pytest.param(b"CONNECT " + b"5" * 100 + b"\n", id="long"),
        pytest.param(b"HELLO\n", id="no-connect"),
    ],
)
def test_a_first_message_that_is_no_line_is_refused(host, guest, sent):
    with host.dial(kind=socket.SOCK_SEQPACKET) as sock:
        sock.send(sent)
        assert sock.recv(200).startswith(b"ERROR ")
        assert sock.recv(1) == b""
    with host.dial(5001, socket.SOCK_SEQPACKET):
        assert guest.accept()


# ---- the engine's own services ----


@pytest.mark.spec("virtio-1.2:5.10.6.6.1/record")
@pytest.mark.parametrize("flags", [Seq.EOM, BOTH], ids=["EOM", "EOM-EOR"])
@pytest.mark.parametrize("size", [0, 1, 5000, 60_000])
def test_an_echo_keeps_boundaries_and_flags(guest, size, flags):
    conn = guest.connect(ECHO, **MESSAGES)
    for _ in range(3):
        conn.send_message(PATTERN[:size], packet_size=5000, flags=flags)
        assert conn.receive_message() == (PATTERN[:size], flags)


def test_an_echo_waits_for_credit(guest):
    conn = guest.connect(ECHO, buf_alloc=2000, **MESSAGES)
    conn.say(Op.RW, PATTERN[:1200], flags=Seq.EOM)
    conn.say(Op.RW, PATTERN[:1800], flags=BOTH)
    came = [data_packet(conn, consume=False) for _ in range(2)]
    assert [(p.header.len, p.header.flags) for p in came] == [(1200, 1), (800, 0)]
    assert nothing_but_credit(guest)
    conn.fwd_cnt += 2000
    conn.say(Op.CREDIT_UPDATE)
    assert conn.receive_message() == (PATTERN[800:1800], BOTH)


def test_an_echo_ends_after_its_last_message(guest):
    conn = guest.connect(ECHO, **MESSAGES)
    conn.send_message(b"bye")
    conn.shutdown(Shutdown.SEND)
    assert conn.receive_message() == (b"bye", Seq.EOM)
    conn.expect(Op.SHUTDOWN)


def test_a_discard_takes_more_than_its_window(guest):
    conn = guest.connect(DISCARD, **MESSAGES)
    for _ in range(20):
        conn.send_message(PATTERN[:40_000])
    assert conn.tx_cnt == 800_000


@pytest.mark.parametrize("window", [1, 1000, 100_000])
def test_chargen_sends_messages(guest, window):
    conn = guest.connect(CHARGEN, buf_alloc=window, **MESSAGES)
    for _ in range(3):
        data, flags = conn.receive_message()
        assert (len(data), flags) == (min(window, 65536), Seq.EOM)


def test_ended_message_connections_leave_nothing(host, guest):
    for port in (ECHO, DISCARD, CHARGEN):
        conn = guest.connect(port, **MESSAGES)
        conn.say(Op.RW, b"half a message")
        conn.say(Op.RST)
    guest.fence()
    assert host.stats().conns == 0


@pytest.mark.spec("virtio-1.2:5.10.3/implied-stream")
def test_a_stream_has_no_messages(guest):
    conn = guest.connect(ECHO)
    conn.say(Op.RW, b"x", flags=BOTH)
    assert conn.expect(Op.RW).header.flags == 0
