"""Session: messages that a protocol feature brings along."""

from __future__ import annotations

import os

import pytest

from vhost_user.errors import FrontendError
from vhost_user.message import (
    Feature,
    ProtocolFeature,
    Request,
    Status,
    VringState,
    decode_u64,
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
