"""A front-end that does anything, against sessions and the engine behind them.

libFuzzer's bytes, through Atheris, are a program of small steps: a message of any
request, well formed or not, with file descriptors of any kind; the messages that set
a device up as a VMM would; packets on the rings, kicks and a pause for the engine to
act on them. Python's byte code and the native module are both instrumented, and the
engine thread runs as ever, so what a message does to a ring under traffic is tried
as well.

What must hold: a message either works or ends its session with the front-end's own
error; no sanitizer report; no fd and no connection is left once the session is closed.

`run.py` builds the native module for it and starts it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading

import atheris

with atheris.instrument_imports(include=["vhost_user"]):
    from vhost_user.descriptors import THREAD_NAME
    from vhost_user.driver import DESC_WRITE, PAGE, Ram
    from vhost_user.engine import Chargen, Discard, Echo, Engine, Unix
    from vhost_user.errors import FrontendError
    from vhost_user.message import (
        Header,
        InflightArea,
        LogArea,
        MemoryRegion,
        Message,
        Request,
        VringAddress,
        VringFd,
        VringState,
        encode,
        encode_mem_region,
        encode_mem_table,
    )
    from vhost_user.session import Session
    from vhost_user.vsock.device import VsockDevice
    from vhost_user.vsock.packet import CID_HOST, Op
    from vhost_user.vsock.packet import Header as Packet

from tests.fuzz.input import Input, fuzz

CID = 3
RAM_SIZE = 1 << 20
NUM = 16
RINGS = 3
MAX_STEPS = 64
REQUESTS = [int(request) for request in Request]


class Ring:
    """A split ring at a fixed place, written raw; `driver.Virtqueue` minds its own."""

    def __init__(self, ram, index):
        self.ram = ram
        self.desc, self.avail, self.used = (
            ram.gpa + (3 * index + part) * PAGE for part in range(3)
        )
        self.idx = 0
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK)
        ram.write(self.desc, bytes(3 * PAGE))

    def offer(self, gpa, size, flags):
        slot = self.idx % NUM
        desc = struct.pack("<QIHH", gpa, size, flags, 0)
        self.ram.write(self.desc + 16 * slot, desc)
        self.ram.store16(self.avail + 4 + 2 * slot, slot)
        self.idx += 1
        self.ram.store16(self.avail + 2, self.idx)
        os.eventfd_write(self.kick_fd, 1)


class World:
    """One session with its device, and the guest that its front-end belongs to."""

    def __init__(self, device, ram):
        self.ram = ram
        self.rings = [Ring(ram, index) for index in range(RINGS)]
        self.session = Session(device)
        self.device = device
        self._packets = 0

    def close(self):
        self.session.close()
        for ring in self.rings:
            os.close(ring.kick_fd)

    def data(self, index):
        """Return where a packet or buffer goes: behind the rings, a page each."""
        return self.ram.gpa + (3 * RINGS + index % 8) * PAGE

    def tell(self, request, payload=b"", fds=(), *, need_reply=False):
        """Hand the session one message, as the socket would."""
        wire = encode(request, payload, need_reply=need_reply)
        header = Header.decode(wire[:12])
        self.session.receive(
            Message(header.request, payload, list(fds), header.need_reply)
        )

    # ---- steps ----

    def any_message(self, data):
        """Send any request with any payload and any fds."""
        request = REQUESTS[data.byte() % len(REQUESTS)]
        flags = data.byte()
        payload = data.take(data.byte())
        fds = [any_fd(data, self.ram) for _ in range(flags >> 6)]
        self.tell(request, payload, fds, need_reply=bool(flags & 1))

    def likely_message(self, data):
        """Send a message whose payload has the right shape."""
        which, ring = data.byte(), data.byte() & 3
        state = VringState(ring, data.byte()).encode()
        match which % 10:
            case 0:
                self.tell(Request.SET_FEATURES, struct.pack("=Q", data.u64()))
            case 1:
                self.tell(Request.SET_PROTOCOL_FEATURES, struct.pack("=Q", data.u32()))
            case 2:
                self.memory(data)
            case 3:
                self.tell(Request.SET_VRING_NUM, VringState(ring, NUM).encode())
            case 4:
                self.address(ring, data)
            case 5:
                self.tell(Request.SET_VRING_BASE, state)
            case 6:
                self.tell(Request.GET_VRING_BASE, state)
            case 7:
                on = VringState(ring, which >> 7).encode()
                self.tell(Request.SET_VRING_ENABLE, on)
            case _:
                request = (
                    Request.SET_VRING_KICK,
                    Request.SET_VRING_CALL,
                    Request.SET_VRING_ERR,
                )[which % 3]
                fds = [any_fd(data, self.ram)] if which & 128 else []
                self.tell(request, VringFd(ring, has_fd=bool(fds)).encode(), fds)

    def extension(self, data):
        """Send a message that a protocol feature brings along, in its right shape."""
        which, value = data.byte(), data.byte()
        request, payload = (
            (Request.RESET_DEVICE, b""),
            (Request.SET_STATUS, struct.pack("=Q", value)),
            (Request.ADD_MEM_REG, self.region(value)),
            (Request.REM_MEM_REG, self.region(value)),
            (Request.SET_LOG_BASE, LogArea(1 << (value & 31), value).encode()),
            (Request.SET_LOG_FD, b""),
            (Request.GET_INFLIGHT_FD, inflight(0, value)),
            (Request.SET_INFLIGHT_FD, inflight(1 << (value & 15), value)),
            (Request.SET_BACKEND_REQ_FD, b""),
        )[which % 9]
        fds = [any_fd(data, self.ram)] if which & 128 else []
        self.tell(request, payload, fds)

    def region(self, value):
        """Describe a memory region beside the guest's RAM, or all of that."""
        ram = self.ram
        if value & 1:
            return encode_mem_region(ram.region)
        at = RAM_SIZE + value * PAGE
        return encode_mem_region(
            MemoryRegion(gpa=ram.gpa + at, uva=ram.uva + at, size=PAGE)
        )

    def memory(self, data):
        """Replace the memory table: the guest's RAM in one piece or two."""
        cut = data.byte() * PAGE % RAM_SIZE
        ram = self.ram
        parts = [(0, cut), (cut, RAM_SIZE - cut)] if cut else [(0, RAM_SIZE)]
        table = [
            MemoryRegion(
                gpa=ram.gpa + at, uva=ram.uva + at, size=size, offset=ram.offset + at
            )
            for at, size in parts
        ]
        fds = [os.dup(ram.fd) for _ in table]
        self.tell(Request.SET_MEM_TABLE, encode_mem_table(table), fds)

    def address(self, ring, data):
        """Put a ring where it is, or a little off."""
        where = self.rings[ring % RINGS]
        off = data.byte() * PAGE if data.byte() & 128 else 0
        desc, avail, used = (
            self.ram.to_uva(gpa) + off for gpa in (where.desc, where.avail, where.used)
        )
        address = VringAddress(index=ring, desc=desc, avail=avail, used=used)
        self.tell(Request.SET_VRING_ADDR, address.encode())

    def set_up(self, data):
        """Do what a VMM does before its guest boots."""
        offered = self.device.features | 1 << 30
        self.tell(Request.SET_FEATURES, struct.pack("=Q", offered))
        features = struct.pack("=Q", int(self.device.protocol_features))
        self.tell(Request.SET_PROTOCOL_FEATURES, features)
        self.memory(data)
        for index in range(2):
            base = self.rings[index].idx & 0xFFFF
            self.tell(Request.SET_VRING_NUM, VringState(index, NUM).encode())
            self.tell(Request.SET_VRING_BASE, VringState(index, base).encode())
            self.address(index, Input(b""))
            which = VringFd(index, has_fd=True).encode()
            self.tell(Request.SET_VRING_CALL, which, [os.eventfd(0)])
            kick = os.dup(self.rings[index].kick_fd)
            self.tell(Request.SET_VRING_KICK, which, [kick])
            self.tell(Request.SET_VRING_ENABLE, VringState(index, 1).encode())

    def packet(self, data):
        """Put a packet on the TX ring and kick."""
        shape, size = data.byte(), data.byte() << 3
        gpa = self.data(self._packets)
        self._packets += 1
        header = Packet(
            src_cid=CID,
            dst_cid=CID_HOST,
            src_port=1024 + (shape & 3),
            dst_port=shape >> 2 & 7,
            op=data.byte() % (max(Op) + 2),
            len=size if shape & 64 else data.u32(),
            flags=data.byte() & 3,
            buf_alloc=1 << (data.byte() & 31),
            fwd_cnt=data.byte(),
        )
        self.ram.write(gpa, header.encode())
        self.rings[1].offer(gpa, 44 + size, 0)

    def buffers(self, data):
        """Offer RX buffers."""
        for i in range(data.byte() & 7):
            self.rings[0].offer(self.data(i), 16 * data.byte() + 1, DESC_WRITE)

    def scribble(self, data):
        """Write anything anywhere into memory, rings included."""
        at = data.u32() % (RAM_SIZE - 8)
        self.ram.write(self.ram.gpa + at, data.take(8))

    def settle(self, _):
        """Let the engine run: each call waits for the end of one of its turns."""
        for _ in range(4):
            self.device.handle.stats()


STEPS = (
    World.any_message,
    World.likely_message,
    World.likely_message,
    World.extension,
    World.set_up,
    World.packet,
    World.packet,
    World.buffers,
    World.scribble,
    World.settle,
)


def seeds():
    """Return inputs that reach each stage of a connection's life."""

    def packet(port, op, size=0, flags=0):
        return bytes([4, port << 2 | 64, size, op, flags, 18, 0])

    begin = bytes([1, 0])
    buffers = bytes([6, 7, *[255] * 7])
    settle = bytes([8])
    for port in range(5):
        stages = [
            packet(port, Op.REQUEST) + settle,
            packet(port, Op.RW, 200) + packet(port, Op.RW, 9) + settle,
            packet(port, Op.CREDIT_REQUEST) + buffers + settle,
            packet(port, Op.SHUTDOWN, 0, 2) + settle + packet(port, Op.SHUTDOWN, 0, 3),
            packet(port, Op.RST),
        ]
        for count in range(len(stages) + 1):
            yield begin + buffers + b"".join(stages[:count])


def inflight(size, value):
    """Return the payload of GET_INFLIGHT_FD and SET_INFLIGHT_FD."""
    return InflightArea(
        size=size, queues=value & 3, queue_size=value >> 2 << 2
    ).encode()


def any_fd(data, ram):
    """Return a new fd of some kind; most of them are wrong for most messages."""
    match data.byte() % 8:
        case 0 | 1:
            return os.eventfd(data.byte(), os.EFD_NONBLOCK)
        case 2:
            return os.dup(ram.fd)
        case 3:
            fd = os.memfd_create("small")
            os.ftruncate(fd, data.byte() * 64)
            return fd
        case 4:
            fd, other = os.pipe()
            os.close(other)
            return fd
        case 5:
            return socket.socket(socket.AF_UNIX).detach()
        case 6:
            return os.open("/dev/null", os.O_RDONLY)
        case _:
            return os.open("/", os.O_RDONLY)


def open_fds():
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD_NAME):  # it closes what nobody took
            thread.join(10)
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # a count, and fast


class Target:
    """The engine, its device and a guest's memory, for all inputs."""

    def __init__(self):
        self.engine = Engine(poll_us=0)
        self.engine._thread.start()
        self.device = VsockDevice(
            self.engine, guest_cid=CID, buf_alloc=8192, max_conns=8
        )
        route = self.device.handle.route
        route(0, Echo())
        route(1, Discard())
        route(2, Chargen())
        route(3, Unix("/nowhere"))
        self.ram = Ram(RAM_SIZE)

    def __call__(self, data):
        """Run one program of steps."""
        steps = Input(data)
        before = open_fds()
        world = World(self.device, self.ram)
        with contextlib.closing(world), contextlib.suppress(FrontendError, OSError):
            if steps.byte() & 1:  # most of what can go wrong needs rings that run
                world.set_up(steps)
            for _ in range(MAX_STEPS):
                if not steps:
                    break
                STEPS[steps.byte() % len(STEPS)](world, steps)
            world.settle(steps)
        self.engine.deliver()
        assert self.device.handle.stats().conns == 0, "connections are left"
        assert open_fds() == before, "file descriptors are left"


def main():
    logging.disable()
    fuzz(Target(), seeds())


if __name__ == "__main__":
    main()
