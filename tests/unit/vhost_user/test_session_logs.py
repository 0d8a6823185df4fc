"""Session: packed rings, and the logs that a front-end keeps for a device."""

from __future__ import annotations

import os

import pytest

from vhost_user.errors import FrontendError
from vhost_user.message import (
    Feature,
    InflightArea,
    LogArea,
    MemoryRegion,
    Message,
    Request,
    VringAddress,
    encode_mem_table,
    encode_u64,
)

PAGE = 4096
GPA = 0x4000_0000
UVA = 0x7F00_0000_0000

pytestmark = pytest.mark.usefixtures("no_fd_leak")

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
