"""The messages of real front-ends, in the order in which each of them sends them.

Taken from their sources: QEMU 7.2 and 10.0 (hw/virtio/vhost.c, vhost-user.c,
vhost-user-vsock.c), Linux 7.2 (arch/um/drivers/virtio_uml.c) and Cloud Hypervisor
(virtio-devices/src/vhost_user/vu_common_ctrl.rs). docs/frontends.md has what booted.
"""

from __future__ import annotations

import os
import select
from typing import Any

import pytest

from tests.support.limits import LIMIT_S
from vhost_user.driver import Ram, Virtqueue
from vhost_user.frontend import DirtyLog
from vhost_user.message import (
    Feature,
    ProtocolFeature,
    Request,
    Status,
    VringAddress,
    VringState,
    decode_u64,
    encode,
    encode_mem_table,
    encode_u64,
)
from vhost_user.vsock.driver import RX, TX, VsockGuest
from vhost_user.vsock.packet import F_SEQPACKET, Op

ECHO = 7
DRIVER = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC | F_SEQPACKET
RINGS = (RX, TX)


def echo(conn, data=b"ping" * 1000):
    conn.send(data)
    assert conn.receive_bytes(len(data)) == data


def new_driver(guest):
    """Lay out both rings anew, as a driver does that knows nothing of the old ones."""
    for queue in (guest.rx, guest.tx):
        queue.close()
    guest.rx = Virtqueue(guest.ram, 64, features=guest.vmm.features)
    guest.tx = Virtqueue(guest.ram, 64, features=guest.vmm.features)


class FrontendGuest(VsockGuest):
    """A guest whose front-end says a message with and without need_reply."""

    def quick(self, request, payload=b"", fds=()):
        """Send it as most messages are sent: nobody waits for an answer."""
        self.vmm.send(encode(request, payload), fds)

    def ask_u64(self, request):
        return decode_u64(self.vmm.ask(request))

    def queue(self, index):
        return (self.rx, self.tx)[index]

    def describe(self, index, request, num=0):
        self.quick(request, VringState(index, num).encode())

    def address(self, index, log=0, flags=0):
        queue = self.queue(index)
        return VringAddress(
            index=index,
            flags=flags,
            desc=self.ram.to_uva(queue.desc),
            avail=self.ram.to_uva(queue.avail),
            used=self.ram.to_uva(queue.used),
            log=log,
        ).encode()


class Qemu(FrontendGuest):
    """QEMU: masked call fds first; bases, memory and features at each start.

    Args:
        wanted: protocol features that this QEMU knows.
    """

    def __init__(self, path, *, wanted, err=False, **options):
        self.wanted = wanted
        self.err = err
        self.channel = None
        self.masked = [os.eventfd(0, os.EFD_NONBLOCK) for _ in RINGS]
        super().__init__(path, **options)

    def _introduce(self):
        vmm = self.vmm
        offered = self.ask_u64(Request.GET_FEATURES)
        taken = ProtocolFeature(
            self.wanted & self.ask_u64(Request.GET_PROTOCOL_FEATURES)
        )
        self.quick(Request.SET_PROTOCOL_FEATURES, encode_u64(taken))
        if taken & ProtocolFeature.MQ:
            assert vmm.queue_num() == 3
        if taken & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            assert vmm.max_mem_slots() == 32
        vmm.protocol_features = taken
        if taken & ProtocolFeature.BACKEND_REQ:
            self.channel = vmm.open_channel()
        self.quick(Request.SET_OWNER)
        assert self.ask_u64(Request.GET_FEATURES) == offered
        for index in RINGS:
            self.set_fd(Request.SET_VRING_CALL, index, self.masked[index])
            if self.err:
                self.set_fd(Request.SET_VRING_ERR, index, self.masked[index])
        assert vmm.config() == b"\x03\0\0\0\0\0\0\0"
        vmm.features = offered & (DRIVER | Feature.PROTOCOL_FEATURES)
        self.slots = []
        return vmm.features

    def set_fd(self, request, index, fd):
        self.quick(request, encode_u64(index), [fd])

    def start(self):
        self.quick(Request.SET_FEATURES, encode_u64(self.vmm.features))
        self.set_memory()
        for index in RINGS:
            self.describe(index, Request.SET_VRING_NUM, self.queue(index).num)
            self.describe(index, Request.SET_VRING_BASE, self._bases[index])
            self.quick(Request.SET_VRING_ADDR, self.address(index))
            self.set_fd(Request.SET_VRING_KICK, index, self.queue(index).kick_fd)
        self.mask(on=False)
        for index in RINGS:
            self.describe(index, Request.SET_VRING_ENABLE, 1)
        self.add_status(Status.ACKNOWLEDGE, Status.DRIVER, Status.DRIVER_OK)

    def set_memory(self):
        vmm = self.vmm
        if not vmm.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            vmm.set_memory(self.ram)
        elif not self.slots:
            vmm.add_memory(self.ram)
            self.slots.append(self.ram)

    def add_status(self, *bits):
        if self.vmm.protocol_features & ProtocolFeature.STATUS:
            for bit in bits:
                self.vmm.status = self.vmm.status | bit

    def mask(self, *, on):
        """Take interrupts away from the guest, or give them back, under way."""
        for index in RINGS:
            fd = self.masked[index] if on else self.queue(index).call_fd
            self.set_fd(Request.SET_VRING_CALL, index, fd)
        if not on:  # what came meanwhile is injected
            for index in RINGS:
                os.eventfd_write(self.queue(index).call_fd, 1)

    def stop(self):
        for index in RINGS:
            self.describe(index, Request.SET_VRING_ENABLE, 0)
        self._bases = (self.vmm.stop(RX), self.vmm.stop(TX))
        if self.vmm.protocol_features & ProtocolFeature.STATUS:
            self.vmm.status = 0
        return self._bases

    def log(self, *, on):
        """Switch the dirty log on or off, as a migration does."""
        features = self.vmm.features | (Feature.LOG_ALL if on else 0)
        self.vmm.tell(Request.SET_FEATURES, encode_u64(features))
        for index in RINGS:
            flags, used = (VringAddress.LOG, self.queue(index).used) if on else (0, 0)
            self.vmm.tell(Request.SET_VRING_ADDR, self.address(index, used, flags))

    def close(self):
        super().close()
        for fd in self.masked:
            os.close(fd)
        if self.channel is not None:
            self.channel.close()


QEMU: dict[str, dict[str, Any]] = {
    "7.2": {
        "wanted": ProtocolFeature.MQ
        | ProtocolFeature.LOG_SHMFD
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.CONFIG
        | ProtocolFeature.RESET_DEVICE
        | ProtocolFeature.CONFIGURE_MEM_SLOTS
    },
    "10.0": {
        "wanted": ProtocolFeature.MQ
        | ProtocolFeature.LOG_SHMFD
        | ProtocolFeature.REPLY_ACK
        | ProtocolFeature.BACKEND_REQ
        | ProtocolFeature.CONFIG
        | ProtocolFeature.RESET_DEVICE
        | ProtocolFeature.CONFIGURE_MEM_SLOTS
        | ProtocolFeature.STATUS,
        "err": True,
    },
    "without-slots": {"wanted": ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG},
}


@pytest.fixture(params=QEMU.values(), ids=list(QEMU))
def qemu(host, request):
    with Qemu(host.path, **request.param) as guest:
        yield guest


@pytest.mark.spec(
    "vhost-user:SET_OWNER",
    "vhost-user:SET_VRING_CALL",
    "vhost-user:ring-states/initial",
    "vhost-user:ring-states/start",
)
def test_qemu_starts_stops_and_goes_on(qemu):
    conn = qemu.connect(ECHO)
    for _ in range(3):
        echo(conn)
        qemu.drain()
        qemu.stop()
        conn.say(Op.RW, b"patience", kick=False)
        qemu.start()
        assert conn.receive_bytes(8) == b"patience"


@pytest.mark.spec("vhost-user:SET_VRING_CALL", "vhost-user:ring-states/change")
def test_qemu_masks_interrupts_under_way(qemu):
    conn = qemu.connect(ECHO)
    for _ in range(3):
        qemu.mask(on=True)
        qemu.ask_u64(Request.GET_FEATURES)  # the device has them now
        qemu.rx.want_calls()
        conn.say(Op.RW, b"masked")
        assert select.select([qemu.masked[RX]], [], [], LIMIT_S)[0]
        os.eventfd_read(qemu.masked[RX])
        qemu.mask(on=False)
        assert conn.receive_bytes(6) == b"masked"


def test_qemu_resets_its_machine(host, qemu):
    """The guest reboots: rings stop, and start at 0 for a driver that is new."""
    old = qemu.connect(ECHO)
    qemu.drain()
    qemu.stop()
    bases = qemu._bases
    assert bases != (0, 0)
    new_driver(qemu)
    qemu._bases = (0, 0)
    qemu.post_rx(16)
    qemu.start()
    echo(qemu.connect(ECHO))
    assert host.stats().conns == 1
    old.say(Op.RW, b"?")
    old.expect(Op.RST)


@pytest.mark.spec(
    "vhost-user:migration/start-stop",
    "vhost-user:SET_LOG_BASE",
    "vhost-user:feature/LOG_SHMFD",
)
@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_qemu_migrates(host, version):
    with Qemu(host.path, **QEMU[version]) as guest:
        conn = guest.connect(ECHO)
        with DirtyLog(guest.ram.gpa + guest.ram.size) as log:
            guest.vmm.set_log(log)
            guest.log(on=True)
            echo(conn)
            assert guest.rx.used // 4096 in log.pages()
            guest.drain()
            guest.stop()
            marked = log.pages()
            conn.say(Op.RW, b"while stopped", kick=False)
            guest.vmm.queue_num()
            assert log.pages() == marked
        guest.start()  # the migration failed: go on here
        guest.log(on=False)
        assert conn.receive_bytes(13) == b"while stopped"
        echo(conn)


class Uml(FrontendGuest):
    """User-mode Linux: calls through a pipe; rings are disabled, never stopped."""

    def __init__(self, path, **options):
        self.pipes = {}
        super().__init__(path, **options)

    def _introduce(self):
        vmm = self.vmm
        self.quick(Request.SET_OWNER)
        offered = self.ask_u64(Request.GET_FEATURES)
        taken = self.ask_u64(Request.GET_PROTOCOL_FEATURES) & (
            ProtocolFeature.REPLY_ACK
            | ProtocolFeature.BACKEND_REQ
            | ProtocolFeature.CONFIG
        )
        self.quick(Request.SET_PROTOCOL_FEATURES, encode_u64(taken))
        vmm.protocol_features = ProtocolFeature(taken)
        self.channel = vmm.open_channel()
        vmm.features = offered & (DRIVER | Feature.PROTOCOL_FEATURES)
        assert vmm.config() == b"\x03\0\0\0\0\0\0\0"
        vmm.tell(Request.SET_FEATURES, encode_u64(vmm.features))
        return vmm.features

    def start(self):
        vmm = self.vmm
        table = encode_mem_table([self.ram.region]).ljust(8 + 2 * 32, b"\0")
        vmm.tell(Request.SET_MEM_TABLE, table, [self.ram.fd])
        for index in RINGS:
            queue = self.queue(index)
            os.close(queue.call_fd)
            queue.call_fd, theirs = os.pipe2(os.O_NONBLOCK)
            vmm.tell(Request.SET_VRING_CALL, encode_u64(index), [theirs])
            os.close(theirs)
            vmm.tell(Request.SET_VRING_NUM, VringState(index, queue.num).encode())
            vmm.tell(Request.SET_VRING_BASE, VringState(index, 0).encode())
            vmm.tell(Request.SET_VRING_ADDR, self.address(index, log=2**64 - 1))
        for index in RINGS:
            vmm.tell(
                Request.SET_VRING_KICK, encode_u64(index), [self.queue(index).kick_fd]
            )
            vmm.enable(index)

    def unbind(self):
        """The driver goes: rings off in reverse, and one question to be sure."""
        for index in reversed(RINGS):
            self.vmm.enable(index, on=False)
        self.ask_u64(Request.GET_FEATURES)

    def close(self):
        super().close()
        self.channel.close()


@pytest.mark.spec(
    "vhost-user:SET_VRING_CALL",
    "vhost-user:SET_VRING_ENABLE",
    "vhost-user:payload/memory-regions",
)
def test_user_mode_linux_binds_its_driver_again_and_again(host):
    with Uml(host.path) as guest:
        for _ in range(3):
            echo(guest.connect(ECHO), b"ping")
            guest.drain()
            guest.unbind()
            new_driver(guest)
            guest.vmm.tell(Request.SET_FEATURES, encode_u64(guest.vmm.features))
            guest.start()
            guest.post_rx(32)
            assert host.stats().conns == 0


class CloudHypervisor(FrontendGuest):
    """Cloud Hypervisor: need_reply on all once it may; a pause disables the rings."""

    def _introduce(self):
        vmm = self.vmm
        self.quick(Request.SET_OWNER)
        offered = self.ask_u64(Request.GET_FEATURES)
        taken = self.ask_u64(Request.GET_PROTOCOL_FEATURES) & (
            ProtocolFeature.MQ
            | ProtocolFeature.CONFIGURE_MEM_SLOTS
            | ProtocolFeature.REPLY_ACK
            | ProtocolFeature.LOG_SHMFD
            | ProtocolFeature.BACKEND_REQ
            | ProtocolFeature.CONFIG
        )
        self.quick(Request.SET_PROTOCOL_FEATURES, encode_u64(taken))
        vmm.protocol_features = ProtocolFeature(taken)
        vmm.features = offered & (DRIVER | Feature.PROTOCOL_FEATURES | Feature.LOG_ALL)
        vmm.features &= ~Feature.LOG_ALL
        return vmm.features

    def start(self):
        vmm = self.vmm
        vmm.tell(Request.SET_FEATURES, encode_u64(vmm.features))
        vmm.set_memory(self.ram)
        for index in RINGS:
            num = self.queue(index).num
            vmm.tell(Request.SET_VRING_NUM, VringState(index, num).encode())
        for index in RINGS:
            queue = self.queue(index)
            base = VringState(index, self._bases[index]).encode()
            vmm.tell(Request.SET_VRING_ADDR, self.address(index))
            vmm.tell(Request.SET_VRING_BASE, base)
            vmm.set_fd(Request.SET_VRING_CALL, index, queue.call_fd)
            vmm.set_fd(Request.SET_VRING_KICK, index, queue.kick_fd)
        self.resume()
        self.channel = vmm.open_channel()

    def resume(self):
        for index in RINGS:
            self.vmm.enable(index)

    def pause(self):
        for index in RINGS:
            self.vmm.enable(index, on=False)

    def close(self):
        super().close()
        self.channel.close()


@pytest.mark.spec("vhost-user:ring-states/disabled", "vhost-user:SET_VRING_ENABLE")
def test_cloud_hypervisor_pauses_and_nothing_is_lost(host):
    with CloudHypervisor(host.path) as guest, host.listen(5000) as listener:
        conn = guest.connect(5000)
        sock, _ = listener.accept()
        with sock:
            for _ in range(3):
                guest.pause()
                conn.say(Op.RW, b"paused")
                sock.sendall(b"paused, too")
                before = guest.rx.base
                guest.vmm.queue_num()
                assert guest.ram.load16(guest.rx.used + 2) == before
                guest.resume()
                assert sock.recv(100) == b"paused"
                assert conn.receive_bytes(11) == b"paused, too"


@pytest.mark.spec("vhost-user:ADD_MEM_REG")
def test_cloud_hypervisor_plugs_memory_in(host):
    with (
        CloudHypervisor(host.path) as guest,
        Ram(1 << 20, gpa=0x1_0000_0000, uva=0x6F00_0000_0000) as more,
    ):
        conn = guest.connect(ECHO)
        echo(conn)
        guest.vmm.add_memory(more)
        echo(conn)


def test_cloud_hypervisor_resets_a_device(host):
    """It disables the rings and sets them up once more, from 0."""
    with CloudHypervisor(host.path) as guest:
        for _ in range(3):
            echo(guest.connect(ECHO))
            guest.drain()
            guest.pause()
            guest.channel.close()
            new_driver(guest)
            guest.start()
            guest.post_rx(32)
            assert host.stats().conns == 0
