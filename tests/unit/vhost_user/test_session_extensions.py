"""Session: messages that a protocol feature brings along."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from tests.support.limits import LIMIT_S
from vhost_user.errors import FrontendError
from vhost_user.message import (
    BackendRequest,
    ConfigSpace,
    Feature,
    InflightArea,
    LogArea,
    MemoryRegion,
    Message,
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

PAGE = 4096
GPA = 0x4000_0000
UVA = 0x7F00_0000_0000

pytestmark = pytest.mark.usefixtures("no_fd_leak")

NEEDS = {
    Request.RESET_DEVICE: (b"", ProtocolFeature.RESET_DEVICE),
    Request.GET_STATUS: (b"", ProtocolFeature.STATUS),
    Request.SET_STATUS: (bytes(8), ProtocolFeature.STATUS),
    Request.GET_MAX_MEM_SLOTS: (b"", ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Request.ADD_MEM_REG: (bytes(40), ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Request.REM_MEM_REG: (bytes(40), ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Request.SET_LOG_BASE: (bytes(16), ProtocolFeature.LOG_SHMFD),
    Request.GET_INFLIGHT_FD: (bytes(20), ProtocolFeature.INFLIGHT_SHMFD),
    Request.SET_INFLIGHT_FD: (bytes(24), ProtocolFeature.INFLIGHT_SHMFD),
    Request.SET_BACKEND_REQ_FD: (b"", ProtocolFeature.BACKEND_REQ),
    Request.GET_CONFIG: (bytes(12), ProtocolFeature.CONFIG),
    Request.SET_CONFIG: (bytes(12), ProtocolFeature.CONFIG),
}


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(
            request,
            id=request.name,
            marks=pytest.mark.spec(f"vhost-user:feature/{feature.name}"),
        )
        for request, (_, feature) in NEEDS.items()
    ],
)
def test_a_message_needs_its_protocol_feature(vmm, device, request_):
    payload, feature = NEEDS[request_]
    vmm.negotiate(0, device.protocol_features & ~feature)
    with pytest.raises(FrontendError, match=f"{feature.name} was not negotiated"):
        vmm.send(request_, payload)


@pytest.mark.parametrize("request_", NEEDS, ids=lambda request: request.name)
def test_a_message_has_a_payload_of_its_size(vmm, request_):
    payload, _ = NEEDS[request_]
    vmm.negotiate(0)
    with pytest.raises(FrontendError, match=r"payload of|config of"):
        vmm.send(request_, payload + b"\0")


# ---- RESET_DEVICE ----


@pytest.mark.spec("vhost-user:RESET_DEVICE")
def test_reset_device_stops_all_rings_and_forgets_the_driver(running, device):
    running.send(Request.RESET_DEVICE)
    assert device.calls == ["stop 0", "stop 1", "reset"]
    assert device.acked == 0
    assert running.session.acked_features == Feature.PROTOCOL_FEATURES


@pytest.mark.spec("vhost-user:RESET_DEVICE")
def test_a_reset_device_is_set_up_again_from_the_start(running, device):
    device.progress = 5
    running.send(Request.RESET_DEVICE)
    running.enable(0)
    assert device.running == {}
    running.send(
        Request.SET_FEATURES, encode_u64(Feature.VERSION_1 | Feature.PROTOCOL_FEATURES)
    )
    running.set_ring(0, base=0)
    assert list(device.running) == [0]
    assert device.running[0].base == 0
    assert device.memory is not None


def test_a_reset_device_without_enable_messages_has_its_rings_enabled(vmm, device):
    vmm.negotiate(Feature.VERSION_1)
    vmm.set_memory()
    vmm.set_ring(0)
    vmm.send(Request.RESET_DEVICE)
    vmm.set_ring(0)
    assert list(device.running) == [0]


# ---- STATUS ----


@pytest.mark.spec("vhost-user:SET_STATUS")
@pytest.mark.spec("vhost-user:GET_STATUS")
def test_the_status_is_what_the_driver_said(vmm):
    vmm.negotiate(0)
    assert vmm.status == 0
    for status in (1, 3, 11, 15, 128 | 15):
        vmm.status = status
        assert vmm.status == status


@pytest.mark.parametrize("value", [0x100, 1 << 63])
def test_rejects_a_status_of_more_than_8_bits(vmm, value):
    vmm.negotiate(0)
    with pytest.raises(FrontendError, match="8 bits"):
        vmm.status = value


@pytest.mark.spec(
    "virtio-1.2:2.4.1/status-0",
    "virtio-1.2:2.4.1/silent",
    "vhost-user:SET_STATUS",
)
def test_status_0_resets_a_running_device(running, device):
    running.status = 15
    running.status = 0
    assert device.calls == ["stop 0", "stop 1", "reset"]
    assert running.status == 0


def test_status_0_after_the_rings_were_stopped_only_pauses(running, device):
    """QEMU says so for `stop` and `cont`, and goes on with the bases it took."""
    device.progress = 5
    running.status = 15
    bases = [running.get_base(index) for index in (0, 1)]
    running.status = 0
    for index, base in enumerate(bases):
        running.set_ring(index, base=base)
    assert "reset" not in device.calls
    assert running.status == 0


def test_status_0_of_a_driver_that_starts_over_is_a_reset(running, device):
    device.progress = 5
    for index in (0, 1):
        running.get_base(index)
    running.status = 0
    running.set_ring(0, base=0)
    assert "reset" in device.calls


@pytest.mark.spec("virtio-1.2:2.1.2/needs-reset")
def test_a_broken_ring_sets_needs_reset_until_the_reset(running, session):
    running.status = 15
    session.ring_broke(0)
    assert running.status == 15 | Status.NEEDS_RESET
    running.status = 15
    assert running.status == 15 | Status.NEEDS_RESET
    running.status = 0
    assert running.status == 0


# ---- CONFIGURE_MEM_SLOTS ----


@pytest.mark.spec("vhost-user:GET_MAX_MEM_SLOTS")
def test_has_32_memory_slots(vmm):
    vmm.negotiate(0)
    assert decode_u64(vmm.send(Request.GET_MAX_MEM_SLOTS)) == 32


@pytest.fixture
def slots(vmm, device):
    """A session that gets its memory region by region, with one ring running."""
    vmm.negotiate(Feature.VERSION_1 | Feature.PROTOCOL_FEATURES)
    vmm.add_region()
    vmm.set_ring(0)
    vmm.enable(0)
    assert list(device.running) == [0]
    device.calls.clear()
    device.progress = 3
    return vmm


HOT = {"gpa": 0x8000_0000, "uva": 0x6F00_0000_0000, "size": PAGE}


@pytest.mark.spec("vhost-user:ADD_MEM_REG")
def test_a_region_is_added_under_a_ring_that_goes_on(slots, device):
    assert slots.add_region(**HOT, need_reply=True) == bytes(8)
    assert device.calls == ["stop 0", "drop_memory", "set_memory", "start 0 at 3"]
    assert device.memory.read(HOT["gpa"], 4) == bytes(4)


@pytest.mark.spec("vhost-user:REM_MEM_REG")
def test_a_region_is_removed_under_a_ring_that_goes_on(slots, device):
    slots.add_region(**HOT)
    device.calls.clear()
    slots.remove_region(**HOT)
    assert device.calls == ["stop 0", "drop_memory", "set_memory", "start 0 at 6"]
    assert [region.gpa for region in device.memory.regions] == [GPA]


@pytest.mark.spec("vhost-user:REM_MEM_REG/fd")
def test_an_fd_that_comes_with_a_removal_is_closed_unused(slots):
    slots.add_region(**HOT)
    slots.remove_region(os.eventfd(0), **HOT)


def test_a_ring_whose_memory_is_away_waits_for_it(slots, device):
    """A front-end that changes its layout removes a region and adds a larger one."""
    slots.remove_region()
    assert device.running == {}
    slots.add_region(**HOT)
    assert device.running == {}
    slots.add_region(size=32 * PAGE)
    assert device.running[0].base == 3


def test_the_slots_are_32(slots):
    for i in range(1, 32):
        slots.add_region(gpa=i << 32, uva=i << 32, size=PAGE)
    with pytest.raises(FrontendError, match="full"):
        slots.add_region(gpa=32 << 32, uva=32 << 32, size=PAGE)


@pytest.mark.spec("vhost-user:memory/overlap")
@pytest.mark.parametrize(
    "region",
    [
        pytest.param({"gpa": GPA}, id="same"),
        pytest.param({"gpa": GPA + 15 * PAGE}, id="its-end"),
        pytest.param({"gpa": GPA - PAGE, "size": 18 * PAGE}, id="around"),
    ],
)
def test_rejects_a_region_that_overlaps_another(slots, region):
    with pytest.raises(FrontendError, match="overlaps another"):
        slots.add_region(**{"uva": 1 << 32} | region)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"gpa": GPA + PAGE}, id="guest-address"),
        pytest.param({"uva": UVA + PAGE}, id="user-address"),
        pytest.param({"size": PAGE}, id="size"),
    ],
)
def test_rejects_the_removal_of_a_region_that_is_not_there(slots, other):
    with pytest.raises(FrontendError, match="no region"):
        slots.remove_region(**other)


def test_rejects_a_removal_without_memory(vmm):
    vmm.negotiate(0)
    with pytest.raises(FrontendError, match="no memory yet"):
        vmm.remove_region()


@pytest.mark.parametrize("size", [0, 2**63, 2**64 - PAGE])
def test_rejects_a_region_that_cannot_be_mapped(vmm, size):
    vmm.negotiate(0)
    payload = b"".join(map(encode_u64, (0, GPA, size, UVA, 0)))
    with pytest.raises(FrontendError, match=r"map|empty|end"):
        vmm.send(Request.ADD_MEM_REG, payload, os.memfd_create("guest"))


def test_rejects_a_region_without_its_fd(vmm):
    vmm.negotiate(0)
    payload = b"".join(map(encode_u64, (0, GPA, PAGE, UVA, 0)))
    with pytest.raises(FrontendError, match="0 fds for a region"):
        vmm.send(Request.ADD_MEM_REG, payload)


# ---- LOG_SHMFD ----

LOG_ALL = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.LOG_ALL
RAM_END = GPA + 16 * PAGE


def log_area(size=RAM_END // PAGE // 8, offset=100):
    return LogArea(size, offset).encode()


def log_fd(size=RAM_END // PAGE // 8 + 100):
    fd = os.memfd_create("log")
    os.ftruncate(fd, size)
    return fd


def set_log(vmm, **area):
    return vmm.send(Request.SET_LOG_BASE, log_area(**area), log_fd())


def log_ring(vmm, index, gpa):
    """Have the used ring logged as QEMU does: the same address with the flag."""
    desc = UVA + index * 4 * PAGE
    address = VringAddress(
        index=index,
        flags=VringAddress.LOG,
        desc=desc,
        avail=desc + PAGE,
        used=desc + 2 * PAGE,
        log=gpa,
    )
    vmm.send(Request.SET_VRING_ADDR, address.encode())


@pytest.mark.spec("vhost-user:SET_LOG_BASE", "vhost-user:communication/replies")
def test_set_log_base_is_answered_unasked(running):
    assert set_log(running) == encode_u64(0)
    assert set_log(running) == encode_u64(0)  # another one, the first is unmapped


@pytest.mark.spec("vhost-user:migration/start-stop")
def test_logging_of_a_used_ring_starts_and_stops_with_its_flag(running, device):
    set_log(running)
    addresses = [[c.log_used_gpa for c in device.running.values()]]
    log_ring(running, 0, 0x1234)
    addresses.append([device.running[i].log_used_gpa for i in (0, 1)])
    running.set_address(0)
    addresses.append([device.running[i].log_used_gpa for i in (0, 1)])
    assert addresses == [[None, None], [0x1234, None], [None, None]]


def test_logging_turns_on_and_off_without_disabling_a_ring(running, device):
    device.progress = 3
    set_log(running)
    running.send(Request.SET_FEATURES, encode_u64(LOG_ALL))
    running.send(Request.SET_FEATURES, encode_u64(LOG_ALL & ~Feature.LOG_ALL))
    assert [config.base for config in device.running.values()] == [9, 9]
    assert "reset" not in device.calls


def test_a_log_may_come_after_the_features_that_ask_for_it(running):
    """QEMU sets it last when it starts a device during a migration."""
    running.send(Request.SET_FEATURES, encode_u64(LOG_ALL))
    log_ring(running, 0, 0)
    set_log(running)


@pytest.mark.spec("vhost-user:SET_LOG_FD")
def test_the_logs_eventfd_is_signalled_when_a_logged_ring_has_stopped(running):
    ours = os.eventfd(0, os.EFD_NONBLOCK)
    running.send(Request.SET_LOG_FD, b"", os.eventfd(0))
    running.send(Request.SET_LOG_FD, b"", os.dup(ours))
    running.get_base(0)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(ours)
    set_log(running)
    running.send(Request.SET_FEATURES, encode_u64(LOG_ALL))
    running.get_base(1)
    assert os.eventfd_read(ours) == 1
    os.close(ours)


def test_rejects_a_log_that_ends_before_guest_memory(running):
    running.send(Request.SET_FEATURES, encode_u64(LOG_ALL))
    with pytest.raises(FrontendError, match=r"dirty log of .* bytes, .* pages"):
        set_log(running, size=RAM_END // PAGE // 8 - 2)


@pytest.mark.spec("vhost-user:migration/log-guest-addr")
def test_rejects_a_used_ring_that_is_logged_behind_the_logs_end(running):
    set_log(running)
    last = log_end = RAM_END // PAGE // 8 * 8 * PAGE
    last -= 6 + 8 * 256
    log_ring(running, 0, last)
    with pytest.raises(FrontendError, match=f"ends before {log_end:#x}"):
        log_ring(running, 0, last + 1)


@pytest.mark.parametrize(
    ("size", "offset"),
    [(0, 0), (RAM_END, 0), (PAGE, 2**64 - PAGE), (2**63, 2**63)],
)
def test_rejects_a_log_that_cannot_be_mapped(running, size, offset):
    with pytest.raises(FrontendError, match=r"dirty log|empty"):
        set_log(running, size=size, offset=offset)


@pytest.mark.parametrize("request_", [Request.SET_LOG_BASE, Request.SET_LOG_FD])
@pytest.mark.parametrize("fds", [0, 2])
def test_rejects_a_log_with_the_wrong_fds(running, request_, fds):
    payload = log_area() if request_ == Request.SET_LOG_BASE else b""
    with pytest.raises(FrontendError, match="fds"):
        running.send(request_, payload, *(log_fd() for _ in range(fds)))


# ---- RING_RESET ----


def test_one_ring_that_is_reset_leaves_the_others_alone(running, device):
    running.send(
        Request.SET_FEATURES,
        encode_u64(Feature.RING_RESET | Feature.PROTOCOL_FEATURES),
    )
    device.progress = 5
    device.calls.clear()
    running.get_base(0)
    running.set_ring(0, base=0)
    assert device.calls == ["stop 0", "start 0 at 0"]


def test_one_ring_that_starts_over_without_ring_reset_is_a_new_driver(running, device):
    device.progress = 5
    running.get_base(0)
    running.set_ring(0, base=0)
    assert "reset" in device.calls


# ---- RING_PACKED ----

PACKED = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.RING_PACKED


@pytest.fixture
def packed(vmm, device):
    device.features |= Feature.RING_PACKED
    vmm.negotiate(PACKED)
    vmm.set_memory()
    for index in (0, 1):
        vmm.enable(index)
    return vmm


@pytest.mark.spec("vhost-user:payload/packed-indices")
@pytest.mark.parametrize("base", [0x8000_8000, 0x0005_8007, 0x7FFF_FFFF])
def test_a_packed_ring_has_a_base_of_32_bits(packed, device, base):
    packed.set_ring(0, base=base)
    assert device.running[0].base == base
    assert packed.get_base(0) == base


AVAIL, USED = 1 << 7, 1 << 15


@pytest.mark.parametrize(
    ("flags", "base"),
    [
        pytest.param([0, 0], 0x8000_8000, id="new"),
        pytest.param([AVAIL, AVAIL], 0x8000_8000, id="first-chains-there"),
        pytest.param([AVAIL | USED, AVAIL | USED], 0, id="once-round"),
        pytest.param([USED, AVAIL | USED], 0, id="once-round-and-available"),
        pytest.param([AVAIL, AVAIL | USED], 0, id="once-round-by-a-chain"),
    ],
)
def test_base_0_of_a_packed_ring_is_read_by_its_descriptors(
    packed, device, flags, base
):
    """User-mode Linux says 0 for a new ring."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 16 * PAGE)
    for i, each in enumerate(flags):
        os.pwrite(fd, each.to_bytes(2, "little"), 16 * i + 14)
    region = MemoryRegion(gpa=GPA, size=16 * PAGE, uva=UVA)
    packed.send(Request.SET_MEM_TABLE, encode_mem_table([region]), fd)
    packed.set_ring(0, base=0, num=2)
    assert device.running[0].base == base


@pytest.mark.spec("vhost-user:migration/log-guest-addr")
def test_a_packed_ring_has_4_bytes_to_log_outside_its_descriptors(packed):
    set_log(packed)
    packed.set_ring(0, num=1024)
    log_end = RAM_END // PAGE // 8 * 8 * PAGE
    log_ring(packed, 0, log_end - 4)
    with pytest.raises(FrontendError, match=f"ends before {log_end:#x}"):
        log_ring(packed, 0, log_end - 3)


@pytest.mark.parametrize("num", [1, 3, 1000, 1024])
def test_a_packed_ring_has_any_number_of_entries(packed, device, num):
    packed.set_ring(0, num=num)
    assert device.running[0].num == num


@pytest.mark.parametrize("num", [0, 1025, 2**32 - 1])
def test_rejects_the_size_of_a_packed_ring(packed, num):
    with pytest.raises(FrontendError, match="entries, need up to 1024"):
        packed.set_ring(0, num=num)


def test_rejects_to_go_on_as_a_split_ring_of_an_odd_size(packed):
    packed.set_ring(0, num=3)
    with pytest.raises(FrontendError, match="3 entries, a split one needs a power"):
        packed.negotiate(PACKED & ~Feature.RING_PACKED)


def test_rejects_event_suppression_that_is_not_aligned(packed):
    address = VringAddress(index=0, desc=UVA, avail=UVA + PAGE + 2, used=UVA + 2 * PAGE)
    with pytest.raises(FrontendError, match="not aligned"):
        packed.send(Request.SET_VRING_ADDR, address.encode())


# ---- INFLIGHT_SHMFD ----


def area(size=0, queues=2, queue_size=256):
    return InflightArea(size=size, queues=queues, queue_size=queue_size)


@pytest.fixture
def get_inflight(running):
    """Return a function that asks for a log; the test's copy of its fd is closed."""
    fds = []

    def get(asked):
        message = Message(Request.GET_INFLIGHT_FD, asked.encode())
        reply = running.session.receive(message)
        fds.append(os.dup(reply.fds[0]))
        return InflightArea.decode(reply.data[12:]), fds[-1]

    yield get
    for fd in fds:
        os.close(fd)


@pytest.mark.spec(
    "vhost-user:GET_INFLIGHT_FD",
    "vhost-user:payload/inflight",
    "vhost-user:communication/replies",
)
def test_makes_a_log_with_a_part_for_each_queue(get_inflight, device):
    got, fd = get_inflight(area())
    assert (got.queues, got.queue_size, got.offset) == (2, 256, 0)
    assert got.size == 2 * (16 + 16 * 256 + 48)  # QueueRegionSplit, a cache line
    assert os.fstat(fd).st_size == got.size
    parts = [
        (config.inflight, config.inflight_size) for config in device.running.values()
    ]
    assert parts[1][0] - parts[0][0] == parts[0][1] == got.size // 2


@pytest.mark.spec("vhost-user:SET_INFLIGHT_FD")
def test_takes_a_log_back(running, device, get_inflight):
    got, fd = get_inflight(area(queues=1))
    os.pwrite(fd, b"\x2a", 20)
    running.send(Request.SET_INFLIGHT_FD, got.encode(), os.dup(fd))
    assert device.running[0].inflight
    assert (device.running[1].inflight, device.running[1].inflight_size) == (0, 0)
    running.send(Request.RESET_DEVICE)
    running.set_ring(0)
    running.enable(0)
    assert device.running[0].inflight == 0


@pytest.mark.parametrize(
    "asked", [area(queues=0), area(queues=3), area(queue_size=0), area(queue_size=1025)]
)
def test_rejects_a_log_for_queues_that_are_not_there(running, asked):
    with pytest.raises(FrontendError, match="in-flight log"):
        running.send(Request.GET_INFLIGHT_FD, asked.encode())


def test_rejects_a_log_that_is_too_short_for_a_ring(running):
    with pytest.raises(FrontendError, match="has 256 entries, the in-flight log 128"):
        running.send(Request.GET_INFLIGHT_FD, area(queue_size=128).encode())


def test_rejects_a_log_that_was_laid_out_for_the_other_kind_of_rings(running, device):
    running.send(Request.GET_INFLIGHT_FD, area().encode())
    device.features |= Feature.RING_PACKED
    with pytest.raises(FrontendError, match="in-flight log is for the other kind"):
        running.negotiate(PACKED)


@pytest.mark.parametrize("size", [0, 8319, 2**63])
def test_rejects_a_log_of_the_wrong_size(running, size):
    with pytest.raises(FrontendError, match="in-flight log"):
        running.send(Request.SET_INFLIGHT_FD, area(size).encode(), os.memfd_create("x"))


@pytest.mark.parametrize("fds", [0, 2])
def test_rejects_an_inflight_log_with_the_wrong_fds(running, fds):
    with pytest.raises(FrontendError, match="fds"):
        running.send(
            Request.SET_INFLIGHT_FD,
            area(1 << 20).encode(),
            *(os.memfd_create("x") for _ in range(fds)),
        )


# ---- BACKEND_REQ ----


@contextlib.contextmanager
def channel(vmm):
    ours, theirs = socket.socketpair()
    ours.settimeout(LIMIT_S)
    with ours:
        vmm.send(Request.SET_BACKEND_REQ_FD, b"", theirs.detach())
        yield ours


def in_loop(steps, *args):
    async def run():
        async with asyncio.timeout(LIMIT_S):
            await steps(*args)

    asyncio.run(run())


CHANGE = encode(BackendRequest.CONFIG_CHANGE_MSG)
CHANGE_NEED_REPLY = encode(BackendRequest.CONFIG_CHANGE_MSG, need_reply=True)


def reply(status=0, request=BackendRequest.CONFIG_CHANGE_MSG):
    return encode(request, encode_u64(status), reply=True)


async def turn():
    """Let the event loop see what came on the channel."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.spec(
    "vhost-user:BACKEND_CONFIG_CHANGE_MSG",
    "vhost-user:backend-communication/channel",
    "vhost-user:SET_BACKEND_REQ_FD",
)
def test_tells_of_a_changed_configuration_and_takes_the_answer(vmm, session):
    async def steps():
        vmm.negotiate(0)
        vmm.set_fd(Request.SET_VRING_KICK, 0)  # not suspended
        with channel(vmm) as ours:
            for _ in range(3):
                session.config_changed()
                assert ours.recv(100) == CHANGE_NEED_REPLY
                ours.send(reply())
                await turn()
            session.close()

    in_loop(steps)


@pytest.mark.spec("vhost-user:BACKEND_CONFIG_CHANGE_MSG")
def test_asks_for_no_answer_without_reply_ack(vmm, session, device):
    async def steps():
        vmm.negotiate(0, device.protocol_features & ~ProtocolFeature.REPLY_ACK)
        vmm.set_fd(Request.SET_VRING_KICK, 0)  # not suspended
        with channel(vmm) as ours:
            session.config_changed()
            session.config_changed()
            assert ours.recv(100) == CHANGE * 2
            session.close()

    in_loop(steps)


def test_changes_before_the_answer_are_told_once_more(vmm, session):
    async def steps():
        vmm.negotiate(0)
        vmm.set_fd(Request.SET_VRING_KICK, 0)  # not suspended
        with channel(vmm) as ours:
            for _ in range(5):
                session.config_changed()
            assert ours.recv(100) == CHANGE_NEED_REPLY
            for byte in reply():  # an answer may come in pieces
                ours.send(bytes([byte]))
                await turn()
            assert ours.recv(100) == CHANGE_NEED_REPLY
            ours.send(reply())
            await turn()
            ours.setblocking(False)
            with pytest.raises(BlockingIOError):
                ours.recv(100)
            session.close()

    in_loop(steps)


def test_a_refused_change_is_logged(vmm, session, caplog):
    async def steps():
        vmm.negotiate(0)
        vmm.set_fd(Request.SET_VRING_KICK, 0)  # not suspended
        with channel(vmm) as ours:
            session.config_changed()
            ours.send(reply(status=1))
            await turn()
            session.close()

    in_loop(steps)
    assert "refuses CONFIG_CHANGE_MSG: 1" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(reply(request=77), id="another-request"),
        pytest.param(CHANGE + bytes(8), id="no-reply"),
        pytest.param(b"\xff" * 20, id="garbage"),
        pytest.param(None, id="hang-up"),
    ],
)
def test_a_channel_that_breaks_is_closed_alone(vmm, session, answer):
    async def steps():
        vmm.negotiate(0)
        vmm.set_fd(Request.SET_VRING_KICK, 0)  # not suspended
        with channel(vmm) as ours:
            session.config_changed()
            ours.recv(100)
            ours.shutdown(socket.SHUT_WR) if answer is None else ours.send(answer)
            await turn()
            with contextlib.suppress(ConnectionResetError):
                assert ours.recv(100) == b""
            session.config_changed()
            assert vmm.status == 0
            session.close()

    in_loop(steps)


def test_a_channel_that_nobody_reads_is_closed(vmm, session, device):
    async def steps():
        vmm.negotiate(0, device.protocol_features & ~ProtocolFeature.REPLY_ACK)
        vmm.set_fd(Request.SET_VRING_KICK, 0)
        with channel(vmm):
            for _ in range(100_000):
                session.config_changed()
            assert vmm.session._channel._sock is None
            session.close()

    in_loop(steps)


def test_a_second_channel_replaces_the_first(vmm, session):
    async def steps():
        vmm.negotiate(0)
        vmm.set_fd(Request.SET_VRING_KICK, 0)  # not suspended
        with channel(vmm) as first, channel(vmm) as second:
            assert first.recv(1) == b""
            session.config_changed()
            assert second.recv(100) == CHANGE_NEED_REPLY
            session.close()
            assert second.recv(1) == b""

    in_loop(steps)


@pytest.mark.parametrize("fds", [0, 2])
def test_rejects_a_channel_with_the_wrong_fds(vmm, fds):
    vmm.negotiate(0)
    with pytest.raises(FrontendError, match="fds"):
        vmm.send(Request.SET_BACKEND_REQ_FD, b"", *(os.eventfd(0) for _ in range(fds)))


def test_rejects_a_channel_that_is_no_socket(vmm):
    vmm.negotiate(0)
    with pytest.raises(FrontendError, match="not a socket"):
        vmm.send(Request.SET_BACKEND_REQ_FD, b"", os.eventfd(0))


@pytest.mark.spec("vhost-user:suspended/messages")
def test_a_change_while_all_rings_are_stopped_is_told_when_one_starts(vmm, session):
    async def steps():
        vmm.negotiate(0)
        with channel(vmm) as ours:
            ours.setblocking(False)
            vmm.set_fd(Request.SET_VRING_KICK, 0)
            vmm.get_base(0)
            session.config_changed()
            with pytest.raises(BlockingIOError):
                ours.recv(100)
            vmm.set_fd(Request.SET_VRING_KICK, 1)
            assert ours.recv(100) == CHANGE_NEED_REPLY
            session.close()

    in_loop(steps)


def test_without_a_channel_a_change_is_told_to_nobody(vmm, session):
    vmm.negotiate(0)
    session.config_changed()
    vmm.send(Request.GET_CONFIG, ConfigSpace(0, bytes(4)).encode())


@pytest.mark.spec("virtio-1.2:2.1.2/needs-reset-notification")
def test_a_broken_ring_is_told_as_a_change_once_the_driver_is_there(vmm, session):
    async def steps():
        vmm.negotiate(0)
        vmm.set_fd(Request.SET_VRING_KICK, 0)
        with channel(vmm) as ours:
            session.ring_broke(0)
            vmm.status = 15
            session.ring_broke(0)
            assert ours.recv(100) == CHANGE_NEED_REPLY
            session.close()

    in_loop(steps)


# ---- RESET_OWNER, SET_FEATURES, SET_VRING_ENABLE ----


@pytest.mark.spec("vhost-user:ring-states/tracked")
def test_a_ring_enabled_while_stopped_is_enabled_once_it_starts(running, device):
    running.get_base(0)
    running.enable(0, 0)
    running.set_fd(Request.SET_VRING_KICK, 0)
    assert list(device.running) == [1]
    running.get_base(0)
    running.enable(0)
    running.set_fd(Request.SET_VRING_KICK, 0)
    assert sorted(device.running) == [0, 1]


@pytest.mark.spec("vhost-user:ring-states/enable-without-features")
def test_features_without_protocol_features_enable_all_rings(running, device):
    running.send(Request.RESET_OWNER)
    running.send(Request.SET_FEATURES, encode_u64(Feature.VERSION_1))
    assert sorted(device.running) == [0, 1]


def test_features_set_again_leave_enabled_rings_enabled(running, device):
    """A migration does so under way, to turn logging on and off."""
    features = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
    running.send(Request.SET_VRING_ENABLE, VringState(1, 0).encode())
    running.send(Request.SET_FEATURES, encode_u64(features))
    assert sorted(device.running) == [0]
