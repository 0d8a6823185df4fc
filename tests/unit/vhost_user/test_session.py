"""Session: what each message does to the rings, the memory and the device."""

from __future__ import annotations

import os

import pytest

from vhost_user.errors import FrontendError, GuestError, StateError
from vhost_user.message import (
    ConfigFlag,
    ConfigSpace,
    Feature,
    ProtocolFeature,
    Request,
    VringAddress,
    VringFd,
    VringState,
    decode_u64,
    encode_u64,
)

PAGE = 4096
UVA = 0x7F00_0000_0000

pytestmark = pytest.mark.usefixtures("no_fd_leak")


# ---- negotiation ----


@pytest.mark.spec("vhost-user:GET_FEATURES")
def test_offers_the_devices_features_and_the_protocol_features_bit(vmm):
    offered = decode_u64(vmm.send(Request.GET_FEATURES))
    assert offered == 1 << 40 | 1 << 26 | 1 << 32 | 1 << 29 | 1 << 28 | 1 << 30


@pytest.mark.spec("vhost-user:SET_FEATURES")
def test_the_device_never_sees_the_protocol_features_bit(vmm, device):
    vmm.send(Request.SET_FEATURES, encode_u64(1 << 32 | 1 << 30))
    assert device.acked == 1 << 32


@pytest.mark.spec(
    "vhost-user:SET_FEATURES",
    "vhost-user:communication/error",
)
@pytest.mark.parametrize("bit", [0, 33, 41, 63])
def test_rejects_a_feature_that_was_not_offered(vmm, bit):
    reason = f"SET_FEATURES: features {1 << bit:#x} were not"
    with pytest.raises(FrontendError, match=reason):
        vmm.send(Request.SET_FEATURES, encode_u64(1 << bit))


@pytest.mark.spec(
    "vhost-user:GET_PROTOCOL_FEATURES",
    "vhost-user:GET_PROTOCOL_FEATURES/before",
)
def test_tells_protocol_features_before_features_are_set(vmm):
    offered = decode_u64(vmm.send(Request.GET_PROTOCOL_FEATURES))
    assert {bit for bit in range(64) if offered >> bit & 1} == {
        0,
        1,
        3,
        5,
        9,
        12,
        13,
        15,
        16,
    }


@pytest.mark.spec(
    "vhost-user:SET_PROTOCOL_FEATURES",
    "vhost-user:in-band/alone",
)
@pytest.mark.parametrize(
    "bit",
    [
        pytest.param(14, marks=pytest.mark.spec("vhost-user:in-band/alone")),
        19,
        63,
    ],
)
def test_rejects_a_protocol_feature_that_was_not_offered(vmm, bit):
    with pytest.raises(FrontendError, match="were not offered"):
        vmm.send(Request.SET_PROTOCOL_FEATURES, encode_u64(1 << bit))


@pytest.mark.spec(
    "vhost-user:GET_QUEUE_NUM",
    "vhost-user:feature/MQ",
    "vhost-user:multiple-queues/mq",
)
def test_tells_the_number_of_queues(vmm, device):
    assert decode_u64(vmm.send(Request.GET_QUEUE_NUM)) == 2
    device.protocol_features = ProtocolFeature.CONFIG
    with pytest.raises(FrontendError, match="MQ"):
        vmm.send(Request.GET_QUEUE_NUM)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        pytest.param(Request.SEND_RARP, "RARP", id="SEND_RARP"),
        pytest.param(Request.NET_SET_MTU, "NET_MTU", id="NET_SET_MTU"),
        pytest.param(Request.IOTLB_MSG, "ACCESS_PLATFORM", id="IOTLB_MSG"),
        pytest.param(Request.SET_VRING_ENDIAN, "CROSS_ENDIAN", id="SET_VRING_ENDIAN"),
        pytest.param(Request.CREATE_CRYPTO_SESSION, "CRYPTO", id="CREATE_CRYPTO"),
        pytest.param(Request.CLOSE_CRYPTO_SESSION, "CRYPTO", id="CLOSE_CRYPTO"),
        pytest.param(Request.POSTCOPY_ADVISE, "PAGEFAULT", id="POSTCOPY_ADVISE"),
        pytest.param(Request.POSTCOPY_LISTEN, "PAGEFAULT", id="POSTCOPY_LISTEN"),
        pytest.param(Request.POSTCOPY_END, "PAGEFAULT", id="POSTCOPY_END"),
        pytest.param(Request.GPU_SET_SOCKET, "GPU", id="GPU_SET_SOCKET"),
        pytest.param(Request.VRING_KICK, "INBAND_NOTIFICATIONS", id="VRING_KICK"),
        pytest.param(Request.GET_SHARED_OBJECT, "SHARED", id="GET_SHARED_OBJECT"),
        pytest.param(Request.SET_DEVICE_STATE_FD, "DEVICE_STATE", id="SET_STATE_FD"),
        pytest.param(Request.CHECK_DEVICE_STATE, "DEVICE_STATE", id="CHECK_STATE"),
        pytest.param(Request.GET_SHMEM_CONFIG, "SHMEM", id="GET_SHMEM_CONFIG"),
        pytest.param(Request.GET_VRING_BASE_SKIP_DRAIN, "DRAIN", id="SKIP_DRAIN"),
    ],
)
def test_says_what_a_refused_request_belongs_to(vmm, request_, reason):
    with pytest.raises(FrontendError, match=f"{reason}.* is not offered"):
        vmm.send(request_, bytes(8))


@pytest.mark.spec("vhost-user:unknown")
@pytest.mark.parametrize("number", [0, 46, 99, 2**32 - 1])
def test_rejects_an_unknown_request(vmm, number):
    with pytest.raises(FrontendError, match="not known here"):
        vmm.send(number)


def test_a_closed_session_takes_no_message(session, vmm):
    session.close()
    with pytest.raises(StateError):
        vmm.send(Request.GET_FEATURES)


# ---- REPLY_ACK ----


@pytest.mark.spec(
    "vhost-user:reply-ack/respond",
    "vhost-user:feature/REPLY_ACK",
    "vhost-user:SET_OWNER",
    "vhost-user:SET_PROTOCOL_FEATURES/before",
)
def test_acknowledges_only_when_negotiated_and_asked_for(vmm):
    owner = (Request.SET_OWNER, b"")
    assert vmm.send(*owner, need_reply=True) is None
    vmm.negotiate(0)
    assert vmm.send(*owner) is None
    assert vmm.send(*owner, need_reply=True) == bytes(8)


@pytest.mark.spec("vhost-user:reply-ack/own-reply")
def test_a_message_with_a_reply_is_not_acknowledged_as_well(vmm):
    vmm.negotiate(0)
    assert vmm.send(Request.GET_QUEUE_NUM, need_reply=True) == encode_u64(2)


# ---- configuration space ----


@pytest.mark.spec(
    "vhost-user:GET_CONFIG",
    "vhost-user:GET_CONFIG/size",
)
def test_reads_part_of_the_configuration(vmm):
    vmm.negotiate(0)
    reply = vmm.send(Request.GET_CONFIG, ConfigSpace(0, bytes(4)).encode())
    assert ConfigSpace.decode(reply) == ConfigSpace(0, b"\3\0\0\0")


@pytest.mark.spec("vhost-user:GET_CONFIG/size")
@pytest.mark.parametrize("offset", [1, 8, 2**32 - 1])
def test_an_empty_payload_says_that_the_configuration_is_not_there(vmm, offset):
    vmm.negotiate(0)
    assert vmm.send(Request.GET_CONFIG, ConfigSpace(offset, bytes(8)).encode()) == b""


@pytest.mark.spec(
    "vhost-user:SET_CONFIG",
    "vhost-user:SET_CONFIG/flags",
    "vhost-user:reply-ack/status",
)
@pytest.mark.parametrize(
    ("flags", "data", "status"),
    [
        pytest.param(ConfigFlag.WRITABLE, b"\3" + bytes(7), 1, id="driver-write"),
        pytest.param(ConfigFlag.MIGRATION, b"\3" + bytes(7), 0, id="migration"),
        pytest.param(ConfigFlag.MIGRATION, b"\4" + bytes(7), 1, id="other-guest-cid"),
        pytest.param(ConfigFlag.MIGRATION, bytes(9), 1, id="too-long"),
        pytest.param(7, b"\3" + bytes(7), 1, id="unknown-flag"),
    ],
)
def test_read_only_configuration_is_not_written(vmm, flags, data, status):
    vmm.negotiate(0)
    payload = ConfigSpace(0, data, flags).encode()
    reply = vmm.send(Request.SET_CONFIG, payload, need_reply=True)
    assert decode_u64(reply) == status
    assert vmm.send(Request.SET_CONFIG, payload) is None


@pytest.mark.spec(
    "vhost-user:feature/CONFIG",
    "vhost-user:communication/gated",
    "vhost-user:unknown",
)
@pytest.mark.parametrize("request_", [Request.GET_CONFIG, Request.SET_CONFIG])
def test_config_needs_its_protocol_feature(vmm, request_):
    vmm.negotiate(0, ProtocolFeature.MQ)
    with pytest.raises(FrontendError, match="CONFIG was not negotiated"):
        vmm.send(request_, ConfigSpace(0, bytes(8)).encode())


# ---- ring states ----


@pytest.mark.spec("vhost-user:ring-states/enable-without-features")
def test_rings_start_enabled_without_protocol_features(vmm, device):
    vmm.send(Request.SET_OWNER)
    vmm.send(Request.SET_FEATURES, encode_u64(Feature.VERSION_1))
    vmm.set_memory()
    vmm.set_ring(0)
    assert list(device.running) == [0]


@pytest.mark.spec(
    "vhost-user:ring-states/initial",
    "vhost-user:ring-states/enabled",
    "vhost-user:SET_VRING_ENABLE",
)
def test_rings_start_disabled_with_protocol_features(vmm, device):
    vmm.negotiate(Feature.PROTOCOL_FEATURES)
    vmm.set_memory()
    vmm.set_ring(0)
    assert device.running == {}
    vmm.enable(0)
    assert list(device.running) == [0]
    vmm.enable(0, 0)
    assert device.running == {}


@pytest.mark.spec("vhost-user:SET_VRING_ENABLE")
def test_enable_needs_protocol_features(vmm):
    vmm.negotiate(Feature.VERSION_1)
    with pytest.raises(FrontendError, match="not negotiated"):
        vmm.enable(0)


@pytest.mark.spec("vhost-user:SET_VRING_ENABLE")
def test_enable_is_0_or_1(running):
    with pytest.raises(FrontendError, match="need 0 or 1"):
        running.enable(0, 2)


@pytest.mark.spec(
    "vhost-user:SET_VRING_NUM",
    "vhost-user:SET_VRING_ADDR",
    "vhost-user:SET_VRING_KICK",
    "vhost-user:SET_VRING_CALL",
)
def test_the_device_gets_the_ring_as_it_was_described(running, device):
    config = device.running[1]
    assert (config.desc_uva, config.avail_uva, config.used_uva, config.num) == (
        UVA + 4 * PAGE,
        UVA + 5 * PAGE,
        UVA + 6 * PAGE,
        256,
    )
    assert config.features & Feature.VERSION_1
    os.fstat(config.kick_fd)
    os.fstat(config.call_fd)


@pytest.mark.spec(
    "vhost-user:GET_VRING_BASE",
    "vhost-user:ring-states/stop",
    "vhost-user:ring-states/start",
)
def test_get_vring_base_stops_the_ring_until_the_next_kick(running, device):
    device.progress = 5
    assert running.get_base(0) == 5
    assert list(device.running) == [1]
    running.set_fd(Request.SET_VRING_KICK, 0)
    assert device.calls == ["stop 0", "start 0 at 5"]


@pytest.mark.spec(
    "vhost-user:GET_VRING_BASE",
    "vhost-user:SET_VRING_BASE",
)
def test_get_vring_base_of_a_stopped_ring_is_its_base(vmm):
    vmm.send(Request.SET_VRING_BASE, VringState(1, 77).encode())
    assert vmm.get_base(1) == 77


@pytest.mark.spec("vhost-user:RESET_OWNER")
def test_reset_owner_disables_the_rings(running, device):
    running.send(Request.RESET_OWNER)
    assert device.running == {}


@pytest.mark.spec(
    "vhost-user:ring-states/initial",
    "vhost-user:ring-states/start",
)
@pytest.mark.parametrize(
    "missing",
    [
        Request.SET_MEM_TABLE,
        Request.SET_VRING_NUM,
        Request.SET_VRING_ADDR,
        Request.SET_VRING_KICK,
    ],
)
def test_a_ring_starts_when_the_last_thing_it_needs_is_there(vmm, device, missing):
    steps = {
        Request.SET_MEM_TABLE: vmm.set_memory,
        Request.SET_VRING_NUM: lambda: vmm.send(
            Request.SET_VRING_NUM, VringState(0, 128).encode()
        ),
        Request.SET_VRING_ADDR: lambda: vmm.set_address(0),
        Request.SET_VRING_KICK: lambda: vmm.set_fd(Request.SET_VRING_KICK, 0),
    }
    for step, do in steps.items():
        if step != missing:
            do()
    assert device.running == {}
    steps[missing]()
    assert list(device.running) == [0]


@pytest.mark.spec("vhost-user:SET_VRING_KICK/polling")
def test_a_ring_without_a_kick_fd_is_polled(vmm, device):
    vmm.set_memory()
    vmm.send(Request.SET_VRING_NUM, VringState(0, 128).encode())
    vmm.set_address(0)
    vmm.send(Request.SET_VRING_KICK, VringFd(0, has_fd=False).encode())
    assert (device.running[0].kick_fd, device.running[0].call_fd) == (-1, -1)


@pytest.mark.spec("vhost-user:SET_VRING_NUM")
@pytest.mark.parametrize("num", [0, 3, 255, 2048, 2**31, 2**32 - 1])
def test_rejects_a_ring_size(vmm, num):
    with pytest.raises(FrontendError, match="power of two"):
        vmm.send(Request.SET_VRING_NUM, VringState(0, num).encode())


@pytest.mark.parametrize("index", [2, 255, 2**32 - 1])
@pytest.mark.parametrize(
    "request_",
    [
        Request.SET_VRING_NUM,
        Request.SET_VRING_BASE,
        Request.GET_VRING_BASE,
        Request.SET_VRING_ENABLE,
    ],
)
def test_rejects_a_ring_that_is_not_there(vmm, request_, index):
    vmm.negotiate(Feature.PROTOCOL_FEATURES)
    with pytest.raises(FrontendError, match=f"ring {index}, there are 2"):
        vmm.send(request_, VringState(index, 1).encode())


@pytest.mark.parametrize(
    "request_",
    [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR],
)
def test_rejects_an_eventfd_for_a_ring_that_is_not_there(vmm, request_):
    with pytest.raises(FrontendError, match="ring 2"):
        vmm.set_fd(request_, 2)


@pytest.mark.parametrize("request_", [Request.SET_VRING_NUM, Request.SET_VRING_BASE])
def test_size_and_base_of_a_running_ring_stay(running, request_):
    with pytest.raises(FrontendError, match="ring 0 is running"):
        running.send(request_, VringState(0, 128).encode())


@pytest.mark.spec("vhost-user:payload/split-index")
def test_rejects_a_base_of_more_than_16_bits(vmm):
    with pytest.raises(FrontendError, match="16 bits"):
        vmm.send(Request.SET_VRING_BASE, VringState(0, 0x10000).encode())


@pytest.mark.spec("vhost-user:SET_VRING_ADDR")
@pytest.mark.parametrize(
    "delta",
    [{"desc": 8}, {"avail": 1}, {"used": 2}],
    ids=["descriptors", "available", "used"],
)
def test_rejects_a_ring_that_is_not_aligned(vmm, delta):
    base = {"desc": UVA, "avail": UVA + PAGE, "used": UVA + 2 * PAGE}
    ((part, off),) = delta.items()
    base[part] += off
    with pytest.raises(FrontendError, match="not aligned"):
        vmm.send(Request.SET_VRING_ADDR, VringAddress(index=0, **base).encode())


@pytest.mark.parametrize(
    "error",
    [GuestError("address outside guest memory"), PermissionError(1, "not pollable")],
    ids=["addresses", "kick-fd"],
)
def test_a_ring_that_the_device_cannot_use_ends_the_session(vmm, device, error):
    device.start_error = error
    vmm.set_memory()
    with pytest.raises(FrontendError, match="ring 0"):
        vmm.set_ring(0)


# ---- changes on the fly ----


@pytest.mark.spec(
    "vhost-user:SET_MEM_TABLE",
    "vhost-user:ring-states/change",
)
def test_memory_changes_under_stopped_rings_that_go_on_where_they_were(running, device):
    device.progress = 3
    running.set_memory(32 * PAGE)
    assert device.calls == [
        "stop 0",
        "stop 1",
        "drop_memory",
        "set_memory",
        "start 0 at 3",
        "start 1 at 3",
    ]


@pytest.mark.spec("vhost-user:ring-states/change")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda vmm: vmm.set_address(0),
            id="addr",
        ),
        pytest.param(lambda vmm: vmm.set_fd(Request.SET_VRING_KICK, 0), id="kick"),
    ],
)
def test_a_running_ring_restarts_where_it_was(running, device, change):
    device.progress = 9
    change(running)
    assert device.calls == ["stop 0", "start 0 at 9"]


@pytest.mark.spec(
    "vhost-user:SET_VRING_CALL",
    "vhost-user:ring-states/change",
)
def test_the_call_fd_changes_without_a_restart(running, device):
    running.set_fd(Request.SET_VRING_CALL, 1)
    assert device.calls == ["call 1"]


@pytest.mark.spec(
    "vhost-user:SET_FEATURES",
    "vhost-user:ring-states/change",
)
def test_features_change_with_the_rings_stopped(running, device):
    running.send(
        Request.SET_FEATURES, encode_u64(Feature.PROTOCOL_FEATURES | Feature.EVENT_IDX)
    )
    assert device.running[0].features & Feature.EVENT_IDX
    assert device.calls == ["stop 0", "stop 1", "start 0 at 0", "start 1 at 0"]


def test_a_driver_that_goes_on_keeps_its_connections(running, device):
    device.progress = 5
    for index in (0, 1):
        running.set_ring(index, base=running.get_base(index))
    assert "reset" not in device.calls


def test_a_driver_that_starts_over_loses_its_connections(running, device):
    device.progress = 5
    for index in (0, 1):
        running.get_base(index)
    device.calls.clear()
    running.set_ring(0, base=0)
    assert device.calls == ["reset", "start 0 at 0"]
