"""Half-close as a table: what each end has ended, and what the other one sees of it.

Spec: VIRTIO 1.2 section 5.10.6.5 "Stream Sockets" (1.3 has the same text): "The
VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE bit indicates that the peer will not receive any more
data. The VIRTIO_VSOCK_SHUTDOWN_F_SEND bit indicates that the peer will not send any
more data. These hints are permanent once sent and successive packets with bits clear
do not reset them." and "Clean disconnect is achieved by one or more
VIRTIO_VSOCK_OP_SHUTDOWN packets that indicate no more data will be sent and received,
followed by a VIRTIO_VSOCK_OP_RST response from the peer."
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from dataclasses import dataclass

import pytest

from tests.conformance import links
from tests.conformance.links import WAYS, wait_for
from vhost_user.vsock.packet import Op, Shutdown, Type

UNIX, TCP, *_ = WAYS
NOTHING = Shutdown(0)
RECEIVE, SEND, BOTH = Shutdown.RECEIVE, Shutdown.SEND, Shutdown.BOTH


@dataclass(frozen=True)
class Row:
    """What the guest is told, given what each end has ended.

    A RST says as much as SHUTDOWN with both flags, and more.
    """

    guest: Shutdown
    """Flags of the guest's SHUTDOWN."""
    host: str
    """"writes": SHUT_WR; "reads": SHUT_RD; "close"; "reset"."""
    told: Shutdown
    """Flags of the SHUTDOWNs that the guest gets."""
    ends: bool
    """Whether nothing is left of the connection once the guest has let go of it."""

    @property
    def id(self):
        return f"guest-{(self.guest.name or 'nothing').lower()}-host-{self.host}"


TABLE = [
    # The guest goes on with both: it hears what the host does not do any more.
    Row(NOTHING, "writes", SEND, ends=False),
    Row(NOTHING, "reads", RECEIVE, ends=False),
    Row(NOTHING, "close", BOTH, ends=True),
    Row(NOTHING, "reset", BOTH, ends=True),
    # "will not send": the host's socket is at its end; what it sends still arrives.
    Row(SEND, "writes", BOTH, ends=True),
    Row(SEND, "reads", NOTHING, ends=False),
    Row(SEND, "close", BOTH, ends=True),
    Row(SEND, "reset", BOTH, ends=True),
    # "will not receive": the host's writer hears of it; what the guest sends arrives.
    Row(RECEIVE, "writes", NOTHING, ends=False),
    Row(RECEIVE, "reads", BOTH, ends=True),
    Row(RECEIVE, "close", BOTH, ends=True),
    Row(RECEIVE, "reset", BOTH, ends=True),
    # "no more data will be sent and received, followed by a RST".
    Row(BOTH, "writes", BOTH, ends=True),
    Row(BOTH, "reads", BOTH, ends=True),
    Row(BOTH, "close", BOTH, ends=True),
    Row(BOTH, "reset", BOTH, ends=True),
]

HOST_FIRST = [
    dataclasses.replace(row, told=SEND)  # a guest that receives no more isn't told
    if (row.guest, row.host) == (RECEIVE, "writes")
    else row
    for row in TABLE
]

TCP_TABLE = [
    Row(NOTHING, "writes", SEND, ends=False),
    Row(NOTHING, "close", BOTH, ends=True),
    Row(NOTHING, "reset", BOTH, ends=True),
    Row(SEND, "writes", BOTH, ends=True),
    Row(SEND, "close", BOTH, ends=True),
    Row(SEND, "reset", BOTH, ends=True),
    Row(RECEIVE, "writes", NOTHING, ends=False),
    Row(RECEIVE, "close", BOTH, ends=True),
    Row(RECEIVE, "reset", BOTH, ends=True),
    Row(BOTH, "writes", BOTH, ends=True),
    Row(BOTH, "close", BOTH, ends=True),
    Row(BOTH, "reset", BOTH, ends=True),
]
"""TCP: a peer that reads no more and stays doesn't tell anybody."""


def cases(rows):
    """Return parameters, one a row."""
    return [pytest.param(row, id=row.id) for row in rows]


def act(sock, what):
    """Do to the host's socket what a row says."""
    with contextlib.suppress(OSError):  # the other end may be gone
        if what == "writes":
            sock.shutdown(socket.SHUT_WR)
        elif what == "reads":
            sock.shutdown(socket.SHUT_RD)
        elif what == "close":
            sock.close()
        else:
            links.reset(sock)


class Told:
    """What a guest has been told of the end of a connection."""

    def __init__(self, guest, conn):
        self.flags = NOTHING
        self.reset = False
        self._guest = guest
        self._conn = conn

    def note(self, packets):
        for packet in packets:
            if packet.op == Op.SHUTDOWN:
                self.flags |= Shutdown(packet.header.flags)
            self.reset |= packet.op == Op.RST
        if self.reset:
            self.flags = BOTH

    def until(self, flags, *, writes):
        """Take packets until `flags` are told.

        Args:
            flags: what is awaited.
            writes: send payload, so that the host's socket may say what it takes.
        """
        for _ in range(64):
            if self.flags & flags == flags:
                return
            if writes:
                links.say(self._conn, b"x")
            self.note(self._guest.fence())
        raise AssertionError(f"told {self.flags!r}, not {flags!r}")


def unread(guest, conn, sock, row):
    """Leave the host a byte to read, so that closing a unix socket is a reset."""
    if row.host == "reset" and sock.family == socket.AF_UNIX:
        links.say(conn, b"unread")
        guest.fence()


def check(host, guest, conn, sock, row, *, host_first=False):
    """Do what a row says, in one order or the other, and check what it says.

    A unix socket tells of a close at once, TCP's FIN doesn't say that nobody reads;
    that a socket's other end reads no more shows at the next write only.
    """
    writes = row.host == "reads" or sock.family != socket.AF_UNIX
    told = Told(guest, conn)
    unread(guest, conn, sock, row)
    if host_first:
        act(sock, row.host)
        told.note(guest.fence())
    if row.guest and not told.reset:
        conn.shutdown(row.guest)
        told.note(guest.fence())
    if not host_first:
        act(sock, row.host)
    told.until(row.told, writes=writes and not row.guest & SEND)
    told.note(guest.fence())
    assert told.flags == row.told
    if row.ends:
        if not told.reset:
            conn.say(Op.RST)
        wait_for(lambda: host.stats().conns == 0, "the end of the connection")
    else:
        assert host.stats().conns == 1


SHUTDOWN = pytest.mark.spec(
    "virtio-1.2:5.10.6.5/shutdown-receive",
    "virtio-1.2:5.10.6.5/shutdown-send",
    "virtio-1.2:5.10.6.5/clean-disconnect",
)
EVERY_UNIX = pytest.mark.parametrize("pair", links.pairs(unix=True), ids=links.pair_id)


@SHUTDOWN
@EVERY_UNIX
@pytest.mark.parametrize("row", cases(TABLE))
def test_the_guest_is_told_what_the_host_then_ended(host, guest, link, row, pair):
    way, kind = pair
    conn, sock = link(way, kind=kind)
    check(host, guest, conn, sock, row)


@SHUTDOWN
@pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("row", cases(HOST_FIRST))
def test_the_order_in_which_both_end_makes_no_difference(host, guest, link, row, kind):
    conn, sock = link(UNIX, kind=kind)
    check(host, guest, conn, sock, row, host_first=True)


@SHUTDOWN
@pytest.mark.parametrize("row", cases(TCP_TABLE))
def test_a_tcp_peer_says_with_a_rst_that_it_reads_no_more(host, guest, link, row):
    conn, sock = link(TCP)
    check(host, guest, conn, sock, row)


@SHUTDOWN
@EVERY_UNIX
def test_the_hosts_writer_hears_that_the_guest_receives_no_more(link, guest, pair):
    way, kind = pair
    conn, sock = link(way, kind=kind)
    conn.shutdown(RECEIVE)
    guest.fence()
    links.write_until_refused(guest, sock)
    links.say(conn, b"still here")
    assert sock.recv(100) == b"still here"


@SHUTDOWN
@EVERY_UNIX
@pytest.mark.parametrize("flags", [SEND, BOTH], ids=lambda flags: flags.name.lower())
def test_the_host_reads_all_that_was_sent_and_then_the_end(link, guest, pair, flags):
    way, kind = pair
    conn, sock = link(way, kind=kind)
    links.fill(guest, conn)
    conn.shutdown(flags)
    guest.fence()
    came = 0
    while more := sock.recv(1 << 20):
        came += len(more)
    assert came == conn.tx_cnt


@SHUTDOWN
@EVERY_UNIX
@pytest.mark.parametrize(
    ("guest_ends", "host_ends", "told"),
    [
        pytest.param(NOTHING, "writes", SEND, id="guest-nothing-host-writes"),
        pytest.param(NOTHING, "close", BOTH, id="guest-nothing-host-close"),
        pytest.param(SEND, "writes", BOTH, id="guest-send-host-writes"),
        pytest.param(SEND, "close", BOTH, id="guest-send-host-close"),
    ],
)
def test_the_guest_gets_all_that_was_sent_and_then_the_end(
    link, guest, pair, guest_ends, host_ends, told
):
    """The guest has no credit when both ends say what they do not do any more."""
    way, kind = pair
    conn, sock = link(way, kind=kind, buf_alloc=0)
    sock.send(b"y" * 1000)
    if guest_ends:
        conn.shutdown(guest_ends)
    act(sock, host_ends)
    guest.fence()
    conn.buf_alloc = 4096
    conn.say(Op.CREDIT_UPDATE)
    came, seen = b"", Told(guest, conn)
    for _ in range(64):
        packets = guest.fence()
        came += b"".join(packet.payload for packet in packets)
        seen.note(packets)
        if seen.flags == told:
            break
    assert (came, seen.flags) == (b"y" * 1000, told)
