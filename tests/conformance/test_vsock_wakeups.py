"""No wake-up is lost, and none is made for nothing."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.conformance.links import WAYS, check_idle, fill, wait_for
from tests.conformance.relays import Relay
from tests.support.limits import LIMIT_S as TIMEOUT_S
from vhost_user.vsock.driver import RX, TX
from vhost_user.vsock.packet import Op

UNIX, TCP, *_ = WAYS
ECHO = 7


# ---- a read that is short although there is more ----


def urgent(sock):
    """One byte out of band stops a read in front of it."""
    sock.send(b"aaa")
    sock.send(b"!", socket.MSG_OOB)
    sock.send(b"bbb")


def descriptors(sock):
    """A read ends with the bytes that descriptors came with."""
    with open("/dev/null", "rb") as null:  # noqa: PTH123
        socket.send_fds(sock, [b"aaa"], [null.fileno()])
        sock.send(b"bbb")


def credentials(sock):
    """A read ends where the sender's descriptors begin, too."""
    with open("/dev/null", "rb") as null:  # noqa: PTH123
        sock.send(b"aaa")
        socket.send_fds(sock, [b"bbb"], [null.fileno()])
        sock.send(b"ccc")


SHORT = pytest.mark.parametrize(
    ("way", "send", "expected"),
    [
        pytest.param(TCP, urgent, b"aaabbb", id="tcp-urgent"),
        pytest.param(UNIX, urgent, b"aaabbb", id="unix-urgent"),
        pytest.param(UNIX, descriptors, b"aaabbb", id="unix-descriptors"),
        pytest.param(UNIX, credentials, b"aaabbbccc", id="unix-two-kinds"),
    ],
)


@pytest.mark.spec("virtio-1.2:5.10.6.2/stream-delivery")
@SHORT
def test_all_that_the_host_sent_reaches_the_guest_without_more(
    link, guest, way, send, expected
):
    """All of it is there when the device reads for the first time."""
    conn, sock = link(way, buf_alloc=0)
    guest.fence()
    send(sock)
    conn.buf_alloc = 4096
    conn.say(Op.CREDIT_UPDATE)
    came = b""
    for _ in range(16):
        came += b"".join(packet.payload for packet in guest.fence())
    assert came == expected


@SHORT
def test_all_that_a_client_sent_is_relayed_without_more(
    host, tmp_path, way, send, expected
):
    relay = Relay(host, tmp_path, tcp=not way.unix)
    near, conn = relay.client()
    with near:
        send(near)
        far = relay.answer(conn)
        with far:
            far.settimeout(TIMEOUT_S)
            came = b""
            with contextlib.suppress(TimeoutError):
                while len(came) < len(expected):
                    came += far.recv(100)
            assert came == expected


@SHORT
def test_all_that_a_server_sent_is_relayed_without_more(
    host, tmp_path, way, send, expected
):
    """The far end's bytes, read by the same rule."""
    if not way.unix:
        listener = socket.create_server(("127.0.0.1", 0))
        server = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        listener.close()
    else:
        server, theirs = host.pair()
    relay = Relay(host, tmp_path, tcp=True)
    near, conn = relay.client()
    with near, server:
        send(server)
        assert host.call(host.engine.answer_fd, conn, theirs)
        near.settimeout(TIMEOUT_S)
        came = b""
        with contextlib.suppress(TimeoutError):
            while len(came) < len(expected):
                came += near.recv(100)
        assert came == expected


def test_a_client_hears_that_the_server_reads_no_more(host, tmp_path):
    """Between two sockets as well: no byte is taken and dropped."""
    relay = Relay(host, tmp_path, tcp=False)
    near, conn = relay.client()
    far = relay.answer(conn)
    with near, far:
        far.shutdown(socket.SHUT_RD)
        near.settimeout(TIMEOUT_S)
        taken = 0
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
            while taken < 4 << 20:
                taken += near.send(b"x" * 4096)


# ---- work for nothing ----


def test_a_connection_that_waits_for_a_full_listener_is_dialled_once_a_tick(
    host, guest
):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{host.uds_path}_5002")
        listener.listen(0)  # its backlog holds one
        guest.request(5002).expect(Op.RESPONSE)
        guest.request(5002)
        wait_for(lambda: host.stats().backlog_full > 0, "a full listener")
        before, woken = host.stats().backlog_full, host.engine_stats().wakeups
        wait_for(lambda: host.stats().backlog_full >= before + 4, "another dial")
        dialled = host.stats().backlog_full - before
        assert dialled <= host.engine_stats().wakeups - woken + 1


def test_many_that_wait_for_a_full_listener_take_turns(host, guest):
    """Each of them gets in when there is room, whatever their number."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(TIMEOUT_S)
        listener.bind(f"{host.uds_path}_5002")
        listener.listen(0)
        conns = [guest.request(5002) for _ in range(100)]
        accepted = [listener.accept()[0] for _ in conns]
        for conn in conns:
            conn.expect(Op.RESPONSE)
        for sock in accepted:
            sock.close()


@pytest.fixture
def lost(host, make_guest):
    """A guest whose connection was lost, and where its stopped rings go on."""
    guest = make_guest(rx_buffers=4)
    with host.listen(5000) as listener:
        guest.connect(5000)
        sock, _ = listener.accept()
    with sock:
        bases = guest.stop()
        guest.reconnect(host.path)
        yield guest, bases


def start(lost, index):
    guest, bases = lost
    queue = guest.rx if index == RX else guest.tx
    guest.vmm.start(index, queue, base=bases[index])
    queue.kick()


def test_a_lost_connection_makes_no_wakeups_while_only_rx_runs(host, lost):
    start(lost, RX)
    check_idle(host)


@pytest.mark.parametrize("rings", [(), (TX,)], ids=["none", "tx"])
def test_a_lost_connection_makes_no_wakeups_without_rx(host, lost, rings):
    for index in rings:
        start(lost, index)
    check_idle(host)


@pytest.mark.parametrize("first", [RX, TX], ids=["rx-first", "tx-first"])
def test_the_guest_is_told_of_a_lost_connection_in_any_order_of_rings(lost, first):
    guest, _ = lost
    for index in (first, RX + TX - first):
        start(lost, index)
    while guest.receive().op != Op.RST:
        pass
    conn = guest.connect(ECHO)
    conn.say(Op.RW, b"alive")
    assert conn.receive().payload == b"alive"


def idle(_host, _guest, _link):
    pass


def unread(_host, guest, link):
    """The guest has no credit, the host's bytes wait."""
    _, sock = link(UNIX, buf_alloc=0)
    sock.send(b"waits")
    guest.fence()


def shut(_host, guest, link):
    """The guest receives no more, the host's bytes are in its way."""
    conn, sock = link(UNIX)
    sock.send(b"waits")
    conn.shutdown(1)
    guest.fence()


def hung_up(_host, guest, link):
    """The host has closed, and the guest has not let go of its port."""
    conn, sock = link(UNIX)
    sock.close()
    conn.shutdown(2)
    guest.fence()


def full(_host, guest, link):
    """The host doesn't read, the device holds a window."""
    conn, _ = link(UNIX)
    fill(guest, conn)


def no_credit_at_end(_host, guest, link):
    """The host has closed behind bytes that the guest has no credit for."""
    _, sock = link(UNIX, buf_alloc=0)
    sock.send(b"waits")
    sock.close()
    guest.fence()


@pytest.mark.parametrize("scene", [idle, unread, shut, hung_up, full, no_credit_at_end])
def test_nothing_to_do_makes_no_wakeups(host, guest, link, scene):
    scene(host, guest, link)
    check_idle(host)
