"""What one guest's turn costs another one: how long a neighbour's answer is put off.

A turn is bounded by the work that it does, so that is `TURN_US` at most. The neighbour
is C and spins, the engine has a core: on a quiet machine it is CPU time of the engine.
What idle VMs cost is in bench_fleet.py.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import tempfile
from pathlib import Path

import pytest

from bench.harness import Guest
from bench.report import Target
from tests.conformance.threads import InThread
from vhost_user.backend import Backend
from vhost_user.engine import Dial, Echo, Engine, Unix
from vhost_user.vsock.device import VsockDevice
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import HDR_SIZE, Op

GROUP = "A turn: the engine's CPU"
ECHO = 7
SINK = 5000
RING = 1024
CONNS = 900
WINDOW = 64 * 1024
ROUNDS = 60
TURN_US = 200
"""Most that a neighbour's turn may be put off by another guest."""


class Site(InThread):
    """An engine that doesn't poll, with some VMs: CID 3 and up.

    Args:
        directory: where their sockets go.
        vms: how many.
    """

    def __init__(self, directory, vms):
        super().__init__()
        self._directory = directory
        self._vms = vms

    async def _serve(self):
        async with contextlib.AsyncExitStack() as stack:
            engine = await stack.enter_async_context(Engine(poll_us=0))
            self.devices = []
            for cid in range(3, 3 + self._vms):
                device = VsockDevice(engine, guest_cid=cid, buf_alloc=WINDOW)
                stack.callback(device.close)
                device.handle.route(ECHO, Echo())
                device.handle.route(None, Unix(str(self._directory / f"{cid}")))
                self.devices.append(device)
                backend = Backend(self.path(cid), device, name=f"CID {cid}")
                await backend.start()
                stack.push_async_callback(backend.close)
            await self._until_left()

    def path(self, cid):
        return self._directory / f"{cid}.vhost"


@contextlib.contextmanager
def site(vms):
    with (
        tempfile.TemporaryDirectory(prefix="vsock-bench-") as name,
        Site(Path(name), vms) as running,
    ):
        yield running


class Byte:
    """A guest with many echoes, their windows full; it takes a byte of each at a time.

    Its own window is one byte; what it takes of a connection makes room for as much.
    """

    def __init__(self, path):
        self._guest = VsockGuest(
            path,
            queue_size=RING,
            rx_buffers=0,
            rx_layout=(HDR_SIZE + 1,),
            ram_size=256 << 20,
            timeout_s=30,
        )
        self.close = self._guest.close
        self._conns = {}
        for _ in range(CONNS):
            conn = self._guest.request(ECHO, buf_alloc=1)
            self._conns[conn.guest_port] = conn
            self._guest.post_rx()
            self._take(1)
        for conn in self._conns.values():
            while conn.credit > 0:
                conn.say(Op.RW, b"x" * min(conn.credit, 32768))
            self._guest.drain()

    def _take(self, count):
        for _ in range(count):
            header = self._guest.receive(repost=False).header
            conn = self._conns[header.dst_port]
            conn.take_credit(header)
            conn.fwd_cnt += header.len

    def prepare(self):
        """Put a byte for each connection on the ring, and a buffer for a byte."""
        for conn in self._conns.values():
            if conn.credit > 0:
                conn.say(Op.RW, b"y", kick=False)
            else:
                conn.say(Op.CREDIT_UPDATE, kick=False)
        for _ in range(CONNS):
            self._guest._offer_rx([(self._guest.ram.alloc(HDR_SIZE + 1), HDR_SIZE + 1)])

    def go(self):
        """Let the device see it."""
        self._guest.rx.kick(force=True)
        self._guest.tx.kick(force=True)

    def take(self):
        """Take what came."""
        self._guest.drain()
        self._take(CONNS)


class Small:
    """A guest that sends a byte at a time over some connections in turn."""

    def __init__(self, path, connect):
        self._guest = VsockGuest(path, queue_size=RING, timeout_s=30)
        self._ends = [connect(self._guest) for _ in range(64)]

    def close(self):
        """Hang up at both ends."""
        self._guest.close()
        for _, sock in self._ends:
            sock.close()

    def prepare(self):
        """Fill the ring with packets of one byte each."""
        self._guest.drain()
        for at in range(RING):
            conn, _ = self._ends[at % len(self._ends)]
            conn.say(Op.RW, b"y", kick=False)

    def go(self):
        """Let the device see it."""
        self._guest.tx.kick(force=True)

    def take(self):
        """Take what came, at both ends."""
        self._guest.drain()
        for packet in self._guest.fence():
            for conn, _ in self._ends:
                if packet.header.dst_port == conn.guest_port:
                    conn.take_credit(packet.header)
        for _, sock in self._ends:
            with contextlib.suppress(BlockingIOError):
                while sock.recv(1 << 16):
                    pass


def rounds(running, guest, count):
    """Return what each of some rounds puts a neighbour's round trip off by, us.

    The neighbour is C and spins: Python would take longer than a turn to send, and to
    see the answer.
    """
    with contextlib.closing(Guest(running.path(4), cid=4, spin=True)) as neighbour:
        conn = neighbour.connect(ECHO)

        def answer_us():
            return neighbour.rtt_ns(conn, 64, 1)[0] / 1e3

        alone = statistics.median(answer_us() for _ in range(count))
        took = []
        for _ in range(count):
            guest.prepare()
            guest.go()
            took.append(answer_us() - alone)
            guest.take()
        return took[count // 6 :]  # the first ones warm up


def note(bench, figures, key, title):
    """Note what a neighbour is put off by, and hold it to the limit."""
    bench.note(
        ours=tuple(figures),
        key=key,
        group=GROUP,
        title=title,
        unit="us",
        less=True,
        target=Target(TURN_US, "ours"),
    )
    assert statistics.median(figures) <= TURN_US


@pytest.mark.long
def bench_turn_of_a_guest_with_full_echoes(bench):
    def sitting():
        with site(2) as running, contextlib.closing(Byte(running.path(3))) as guest:
            return rounds(running, guest, ROUNDS)

    (figures,) = bench.each(sitting, rounds=1)
    note(bench, figures, "turn-echo", f"beside {CONNS} full echoes, a byte each")


def _unix(running, guest):
    name = running.path(3).with_name(f"3_{SINK}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(name))
        listener.listen()
        conn = guest.connect(SINK)
        sock, _ = listener.accept()
    name.unlink()
    sock.setblocking(False)
    return conn, sock


def _tcp(running, guest):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = Dial(listener.getsockname())
        running.call(running.devices[0].handle.route, SINK, target)
        conn = guest.connect(SINK)
        sock, _ = listener.accept()
    sock.setblocking(False)
    return conn, sock


@pytest.mark.long
@pytest.mark.parametrize("connect", [_unix, _tcp], ids=["unix", "tcp"])
def bench_turn_of_a_guest_with_small_packets(bench, connect):
    def sitting():
        with (
            site(2) as running,
            contextlib.closing(
                Small(running.path(3), lambda guest: connect(running, guest))
            ) as guest,
        ):
            return rounds(running, guest, ROUNDS)

    (figures,) = bench.each(sitting, rounds=1)
    name = connect.__name__.strip("_")
    title = f"beside {RING} packets of a byte, 64 connections, {name}"
    note(bench, figures, f"turn-{name}", title)
