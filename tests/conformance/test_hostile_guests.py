"""A guest that works the engine as hard as it can takes no other VM's turn.

Each test lets one guest do, on a CPU of its own, what costs the engine most, while
another VM of the same engine goes on.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from vhost_user.driver import DESC_NEXT, DESC_WRITE
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import HDR_SIZE, Op, Type

ECHO, CHARGEN = 7, 19
NUM = 1024


@pytest.fixture
def neighbours(make_host):
    host = make_host(neighbour=True)
    with contextlib.ExitStack() as stack:
        hostile = stack.enter_context(
            VsockGuest(host.path, rx_buffers=0, queue_size=NUM, ram_size=64 << 20)
        )
        good = stack.enter_context(VsockGuest(host.neighbour_path, cid=4))
        yield host, hostile, good


def chain_of(queue, layout, flags, data=b""):
    """Write one chain from descriptor 0 on, and have each entry of the ring name it."""
    gpa = queue.ram.alloc(max(sum(layout), 1))
    queue.ram.write(gpa, data)
    for i, size in enumerate(layout):
        more = DESC_NEXT if i + 1 < len(layout) else 0
        queue.write_desc(i, gpa, size, flags | more, i + 1)
        gpa += size
    for i in range(NUM):
        queue.ram.store16(queue.avail + 4 + 2 * i, 0)


FILL = """
import mmap, sys
fd, size, offset, avail, used, num = map(int, sys.argv[1:])
ram = memoryview(mmap.mmap(fd, size, offset=offset)).cast("H")
print(flush=True)
while True:
    ram[avail] = (ram[used] + num) & 0xFFFF
"""


@contextlib.contextmanager
def always_full(*queues):
    """Keep rings full, whatever the device takes from them."""
    with contextlib.ExitStack() as stack:
        for queue in queues:
            ram = queue.ram
            at = [(gpa + 2 - ram.gpa) // 2 for gpa in (queue.avail, queue.used)]
            argv = [ram.fd, ram.size, ram.offset, *at, NUM]
            child = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", FILL, *map(str, argv)],
                    pass_fds=[ram.fd],
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(child.kill)
            assert child.stdout is not None
            child.stdout.readline()
            queue.kick(force=True)
        yield


def echoes(conn):
    for i in range(20):
        conn.say(Op.RW, b"%d" % i)
        assert conn.receive_bytes(len(b"%d" % i)) == b"%d" % i


RX_LAYOUTS = {
    "no room": (HDR_SIZE,),
    "one byte": (HDR_SIZE + 1,),
    "one byte of a long chain": (HDR_SIZE, *(0,) * (NUM - 2), 1),
    "a lot": (1 << 20,),
}


@pytest.mark.parametrize("kind", [Type.STREAM, Type.SEQPACKET])
@pytest.mark.parametrize("layout", RX_LAYOUTS.values(), ids=RX_LAYOUTS.keys())
def test_an_rx_ring_that_is_always_full(neighbours, layout, kind):
    host, hostile, good = neighbours
    conn = good.connect(ECHO)
    for _ in range(8):
        hostile.request(CHARGEN, buf_alloc=1 << 30, kind=kind)
    hostile.drain()
    chain_of(hostile.rx, layout, DESC_WRITE)
    with always_full(hostile.rx):
        echoes(conn)
        assert host.stats().conns == 8


TX_LAYOUTS = {
    "long chains": (HDR_SIZE, *(0,) * (NUM - 1)),
    "requests": (HDR_SIZE,),
}


@pytest.mark.parametrize("layout", TX_LAYOUTS.values(), ids=TX_LAYOUTS.keys())
def test_a_tx_ring_that_is_always_full(neighbours, layout):
    host, hostile, good = neighbours
    conn = good.connect(ECHO)
    request = hostile.header(Op.REQUEST, 2000, ECHO).encode()
    chain_of(hostile.rx, (4096,), DESC_WRITE)
    chain_of(hostile.tx, layout, 0, request)
    with always_full(hostile.rx, hostile.tx):
        echoes(conn)
        assert host.stats().conns <= 1
