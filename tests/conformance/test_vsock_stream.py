"""virtio-vsock streams: requests, refusals, data, half-close."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from vhost_user.engine import Engine
from vhost_user.errors import GuestError, StateError
from vhost_user.vsock.device import VsockDevice
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import CID_HOST, Op, Shutdown, Type

ECHO, DISCARD, CHARGEN, REFUSED = 7, 9, 19, 1
PATTERN = bytes(range(251)) * 1200


@pytest.mark.spec("virtio-1.2:5.10.4/guest-cid")
def test_the_configuration_is_the_guests_cid(guest):
    assert guest.vmm.config() == b"\x03\0\0\0\0\0\0\0"


@pytest.mark.spec("virtio-1.2:5.10.6.4.2/no-reserved-cid")
@pytest.mark.parametrize("cid", [0, 1, 2, 2**32 - 1, 2**32 + 3, 2**64 - 1])
def test_a_reserved_cid_is_no_guests(cid):
    async def make():
        async with Engine() as engine:
            VsockDevice(engine, guest_cid=cid)

    with pytest.raises(StateError):
        asyncio.run(make())


# ---- connection requests ----


@pytest.mark.spec(
    "virtio-1.2:5.10.6.5/response",
    "virtio-1.2:5.10.6.3.2/valid-fields",
)
def test_a_request_gets_a_response_from_the_port_it_named(guest):
    conn = guest.request(ECHO)
    header = conn.expect(Op.RESPONSE).header
    assert (header.src_cid, header.dst_cid) == (CID_HOST, 3)
    assert (header.src_port, header.dst_port) == (ECHO, conn.guest_port)
    assert (header.type, header.len, header.flags) == (Type.STREAM, 0, 0)
    assert (header.buf_alloc, header.fwd_cnt) == (64 * 1024, 0)


@pytest.mark.spec("virtio-1.2:5.10.6.5/refused")
@pytest.mark.parametrize("port", [REFUSED, 4999], ids=["refused", "nobody-listens"])
def test_a_request_that_nobody_takes_gets_a_rst(guest, port):
    conn = guest.request(port)
    conn.expect(Op.RST)


@pytest.mark.spec("virtio-1.2:5.10.6.5/refused")
def test_a_host_socket_that_does_not_listen_refuses(host, guest):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{host.uds_path}_4998")
        with pytest.raises(ConnectionRefusedError):
            guest.connect(4998)


def test_a_request_on_a_port_in_use_starts_over(far, guest):
    """A guest that reuses a port has forgotten the connection that was there."""
    conn, sock = far()
    conn.say(Op.REQUEST)
    assert sock.recv(1) == b""
    conn.expect(Op.RST)  # nobody listens any more


@pytest.mark.spec(
    "virtio-1.2:5.10.6.5/rst-disconnects",
    "virtio-1.2:5.10.6.2/flow-tuple",
)
@pytest.mark.parametrize("op", [op for op in Op if op not in (Op.REQUEST, Op.RST)])
def test_a_packet_of_no_connection_gets_a_rst(guest, op):
    guest.send(guest.header(op, 4000, 4001))
    header = guest.receive().header
    assert (header.op, header.src_port, header.dst_port) == (Op.RST, 4001, 4000)
    assert (header.src_cid, header.dst_cid) == (CID_HOST, 3)


@pytest.mark.spec("virtio-1.2:5.10.6.5/rst-disconnects")
def test_a_rst_is_never_answered(host, guest):
    guest.send(guest.header(Op.RST, 4000, 4001))
    assert guest.fence() == []


@pytest.mark.spec("virtio-1.2:5.10.6.4.2/unknown-type")
@pytest.mark.parametrize("kind", [0, 3, 0xFFFF])
def test_an_unknown_type_gets_a_rst_of_that_type(guest, kind):
    guest.send(guest.header(Op.REQUEST, 4000, ECHO, type=kind))
    header = guest.receive().header
    assert (header.op, header.type) == (Op.RST, kind)


@pytest.mark.spec("virtio-1.2:5.10.6/op-invalid")
@pytest.mark.parametrize("op", [0, 8, 0xFFFF])
def test_an_unknown_operation_gets_a_rst(guest, op):
    guest.send(guest.header(op, 4000, ECHO))
    assert guest.receive().op == Op.RST


@pytest.mark.spec("virtio-1.2:5.10.6.2/flow-tuple")
@pytest.mark.parametrize("cid", [0, 1, 3, 4, 2**32 - 1])
def test_a_packet_to_another_cid_gets_a_rst_from_there(guest, cid):
    guest.send(guest.header(Op.REQUEST, 4000, ECHO, dst_cid=cid))
    header = guest.receive().header
    assert (header.op, header.src_cid, header.src_port) == (Op.RST, cid, ECHO)


@pytest.mark.spec("virtio-1.2:5.10.6/header")
def test_a_packet_to_a_cid_of_more_than_32_bits_opens_nothing(host, guest):
    guest.send(guest.header(Op.REQUEST, 4000, ECHO, dst_cid=CID_HOST | 1 << 32))
    with pytest.raises(GuestError, match="reserved CID bits"):
        guest.receive()
    assert host.stats().conns == 0


@pytest.mark.spec("virtio-1.2:5.10.6.2/flow-tuple")
@pytest.mark.parametrize("cid", [0, 2, 4, 3 | 1 << 32])
def test_a_packet_from_a_forged_cid_is_dropped(host, guest, far, cid):
    conn, sock = far()
    conn.say(Op.RW, b"forged", src_cid=cid)
    assert guest.fence() == []
    conn.tx_cnt -= len(b"forged")
    conn.say(Op.RW, b"mine")
    assert sock.recv(100) == b"mine"
    assert host.stats().bad_packets == 1


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0" * 43, id="short-header"),
    ],
)
def test_a_short_packet_is_dropped(host, guest, packet):
    if packet:
        guest.send(packet)
    else:
        guest.tx.add(readable=[], writable=[(guest.ram.alloc(64), 64)])
        guest.tx.kick()
        assert guest.tx.wait_used().len == 0
    assert guest.fence() == []
    assert host.stats().bad_packets == 1


def test_a_packet_longer_than_its_chain_is_dropped(host, guest):
    guest.send(guest.header(Op.RW, 4000, 4001, len=1))
    assert guest.fence() == []
    assert host.stats().bad_packets == 1


def test_bytes_behind_a_packet_are_not_payload(far, guest, read_exactly):
    conn, sock = far()
    header = guest.header(Op.RW, conn.guest_port, conn.host_port, len=3)
    guest.send(header, b"abcdef")
    conn.say(Op.RW, b"xyz")
    assert read_exactly(sock, 6) == b"abcxyz"


@pytest.mark.parametrize("op", [Op.RESPONSE, 99])
def test_a_packet_that_does_not_fit_ends_its_connection_only(guest, op):
    conn, other = guest.connect(ECHO), guest.connect(ECHO)
    conn.say(op)
    conn.expect(Op.RST)
    other.say(Op.RW, b"alive")
    assert other.receive().payload == b"alive"


@pytest.mark.spec("virtio-1.2:5.10.6.5/refused")
def test_one_connection_more_than_the_limit_is_refused(make_host):
    host = make_host(max_conns=2)
    with VsockGuest(host.path) as guest:
        first, _ = guest.connect(ECHO), guest.connect(ECHO)
        with pytest.raises(ConnectionRefusedError):
            guest.connect(ECHO)
        assert host.stats().limit_conns == 1
        first.shutdown(Shutdown.BOTH)
        first.expect(Op.RST)
        guest.connect(ECHO)


# ---- data ----


@pytest.mark.spec("virtio-1.2:5.10.6.2/stream-delivery")
def test_bytes_reach_the_host_in_order(far, read_exactly):
    conn, sock = far()
    sent = PATTERN[: conn.credit]
    for i in range(0, len(sent), 1000):
        conn.say(Op.RW, sent[i : i + 1000])
    assert read_exactly(sock, len(sent)) == sent


@pytest.mark.spec("virtio-1.2:5.10.6.2/stream-delivery")
def test_bytes_reach_the_guest_in_order(far):
    conn, sock = far()
    sock.sendall(PATTERN[:100_000])
    assert conn.receive_bytes(100_000) == PATTERN[:100_000]


@pytest.mark.spec("virtio-1.2:5.10.6.2/stream-delivery")
def test_an_echo_of_more_than_the_window_comes_back_whole(guest):
    conn = guest.connect(ECHO)
    back = b""
    for i in range(0, len(PATTERN), 8192):
        conn.say(Op.RW, PATTERN[i : i + 8192])
        back += conn.receive_bytes(len(PATTERN[i : i + 8192]))
    assert back == PATTERN


def test_an_empty_packet_is_no_end_of_stream(far):
    conn, sock = far()
    conn.say(Op.RW)
    conn.say(Op.RW, b"x")
    assert sock.recv(10) == b"x"


@pytest.mark.spec("virtio-1.2:5.10.6.2/flow-tuple")
def test_many_connections_do_not_mix(guest):
    conns = [guest.connect(ECHO) for _ in range(100)]
    for i, conn in enumerate(conns):
        conn.say(Op.RW, b"%d" % i)
    for i, conn in enumerate(conns):
        assert conn.receive().payload == b"%d" % i


# ---- the end ----


@pytest.mark.spec("virtio-1.2:5.10.6.5/shutdown-send")
def test_the_guest_may_stop_sending_and_go_on_receiving(far, guest):
    conn, sock = far()
    conn.say(Op.RW, b"last words")
    conn.shutdown(Shutdown.SEND)
    assert sock.recv(100) == b"last words"
    assert sock.recv(100) == b""
    sock.sendall(b"still here")
    assert conn.receive_bytes(10) == b"still here"
    sock.close()
    assert conn.expect(Op.SHUTDOWN).header.flags == Shutdown.BOTH


@pytest.mark.spec("virtio-1.2:5.10.6.5/shutdown-send")
def test_the_host_may_stop_sending_and_go_on_receiving(far, read_exactly):
    conn, sock = far()
    sock.sendall(b"last words")
    sock.shutdown(socket.SHUT_WR)
    assert conn.receive_bytes(10) == b"last words"
    assert conn.expect(Op.SHUTDOWN).header.flags == Shutdown.SEND
    conn.say(Op.RW, b"still here")
    assert read_exactly(sock, 10) == b"still here"
    conn.shutdown(Shutdown.SEND)
    assert sock.recv(1) == b""


@pytest.mark.spec("virtio-1.2:5.10.6.5/clean-disconnect")
def test_a_guest_that_closes_gets_a_rst_when_its_bytes_are_out(far, read_exactly):
    conn, sock = far()
    sent = PATTERN[: conn.credit]
    conn.send(sent)
    conn.shutdown(Shutdown.BOTH)
    assert read_exactly(sock, len(sent)) == sent
    assert sock.recv(1) == b""
    while (packet := conn.receive()).op == Op.CREDIT_UPDATE:
        pass
    assert packet.op == Op.RST


@pytest.mark.spec("virtio-1.2:5.10.6.5/clean-disconnect")
def test_a_guest_that_closes_an_idle_connection_gets_a_rst(far):
    conn, sock = far()
    conn.shutdown(Shutdown.BOTH)
    conn.expect(Op.RST)
    assert sock.recv(1) == b""


@pytest.mark.spec("virtio-1.2:5.10.6.5/rst-disconnects")
def test_a_guests_rst_ends_the_host_side(far):
    conn, sock = far()
    conn.say(Op.RST)
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""


@pytest.mark.spec("virtio-1.2:5.10.6.5/shutdown-send")
def test_bytes_after_a_shutdown_end_the_connection(far):
    conn, _ = far()
    conn.shutdown(Shutdown.SEND)
    conn.say(Op.RW, b"one more thing")
    while (packet := conn.receive()).op != Op.RST:
        assert packet.op == Op.CREDIT_UPDATE


@pytest.mark.spec("virtio-1.2:5.10.6.5/shutdown-receive")
def test_a_guest_that_receives_no_more_gets_nothing_and_may_send(
    far, guest, read_exactly
):
    conn, sock = far()
    conn.shutdown(Shutdown.RECEIVE)
    guest.fence()
    with pytest.raises(BrokenPipeError):  # and its peer hears of it
        sock.sendall(b"too late")
    assert [p for p in guest.fence() if p.op == Op.RW] == []
    conn.say(Op.RW, b"still here")
    assert read_exactly(sock, 10) == b"still here"


@pytest.mark.spec("virtio-1.2:5.10.6.5/shutdown-permanent")
def test_a_later_shutdown_takes_nothing_back(far):
    conn, sock = far()
    conn.shutdown(Shutdown.SEND)
    conn.shutdown(Shutdown(0))
    assert sock.recv(1) == b""
    conn.shutdown(Shutdown.RECEIVE)  # both said now, one after the other
    conn.expect(Op.RST)


@pytest.mark.spec("virtio-1.2:5.10.6.5/forced-disconnect")
def test_a_guest_that_does_not_let_go_is_reset(make_host):
    host = make_host(dial_timeout_s=0.1)
    with VsockGuest(host.path) as guest, host.listen(5000) as listener:
        conn = guest.connect(5000)
        sock, _ = listener.accept()
        conn.shutdown(Shutdown.SEND)
        sock.close()
        assert conn.expect(Op.SHUTDOWN).header.flags == Shutdown.BOTH
        conn.expect(Op.RST)
        assert host.stats().conns == 0
        guest.connect(ECHO)


def test_ended_connections_leave_nothing(host, guest):
    for _ in range(50):
        conn = guest.connect(ECHO)
        conn.say(Op.RW, b"x")
        assert conn.receive_bytes(1) == b"x"
        conn.shutdown(Shutdown.BOTH)
        conn.expect(Op.RST)
    assert host.stats().conns == 0
    assert host.stats().opened == 50


def test_an_answer_comes_before_resets_that_nobody_waits_for(host, make_guest_of):
    """Linux gives RX buffers back by half a ring: a close must not take the last."""
    guest = make_guest_of(host, rx_buffers=2)
    closed = [guest.request(ECHO) for _ in range(2)]
    for conn in closed:
        assert guest.receive(repost=False).op == Op.RESPONSE
        conn.shutdown(Shutdown.BOTH)
    guest.request(ECHO)
    guest.drain()
    guest.post_rx(3)
    ops = [guest.receive().op for _ in range(3)]
    assert ops == [Op.RESPONSE, Op.RST, Op.RST]
