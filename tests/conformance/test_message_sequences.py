"""Whatever messages a front-end sends: each works or is its fault, never our bug.

The session is real, and so are device and engine; hypothesis finds the sequences. What
`tests/fuzz/fuzz_session.py` does for an hour, `make conformance` does in seconds.
"""

from __future__ import annotations

import os
import socket

import hypothesis
import pytest
from hypothesis import strategies as st

from vhost_user.errors import FrontendError
from vhost_user.message import (
    ConfigSpace,
    Feature,
    InflightArea,
    LogArea,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    VringAddress,
    VringFd,
    VringState,
    encode_mem_region,
    encode_mem_table,
    encode_u64,
)
from vhost_user.session import Session
from vhost_user.vsock.device import VsockDevice

PAGE = 4096
UVA = 0x7F00_0000_0000
SIZE = 64 * PAGE
OFFERED = VsockDevice.protocol_features

near = st.sampled_from([0, 1, 2, 4, 7, 8, 256, 1023, 1024, 1025, PAGE, SIZE])


def often(likely, other):
    """One of both, and mostly the first, however many branches they have."""
    return st.integers(0, 3).flatmap(lambda n: likely if n else other)


u16 = st.one_of(near.filter(lambda value: value < 1 << 16), st.integers(0, 2**16 - 1))
u32 = st.one_of(near, st.integers(0, 2**32 - 1))
u64 = st.one_of(
    near,
    near.map(lambda value: UVA + value),
    near.map(lambda value: 2**64 - 1 - value),
    st.integers(0, 2**64 - 1),
)
ring = st.sampled_from([0, 1, 2, 3, 255])


def eventfd():
    return os.eventfd(0, os.EFD_CLOEXEC)


def memory(size=SIZE):
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def pipe():
    ours, theirs = os.pipe()
    os.close(ours)
    return theirs


MAKE_FD = {
    "eventfd": eventfd,
    "memory": memory,
    "page": lambda: memory(PAGE),
    "empty": lambda: memory(0),
    "pipe": pipe,
    "socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "null": lambda: os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC),
}

region = st.builds(
    MemoryRegion, gpa=u64, uva=u64, size=u64, offset=st.one_of(st.just(0), u64)
).filter(lambda r: max(r.gpa, r.uva, r.offset) + r.size <= 1 << 64)
whole = st.just(MemoryRegion(gpa=0, uva=UVA, size=SIZE))
regions = st.one_of(whole, region)
slot = st.integers(0, SIZE // PAGE - 1).map(lambda page: UVA + page * PAGE)
place = st.one_of(slot, u64)

PAYLOADS = {
    Request.SET_FEATURES: st.one_of(
        st.sets(
            st.sampled_from([26, 28, 29, 30, 32, 34, 40]).map(lambda bit: 1 << bit)
        ).map(sum),
        u64,
    ).map(encode_u64),
    Request.SET_PROTOCOL_FEATURES: st.one_of(
        st.just(int(OFFERED)), st.just(OFFERED & ~ProtocolFeature.REPLY_ACK), u64
    ).map(encode_u64),
    Request.SET_STATUS: u64.map(encode_u64),
    Request.SET_MEM_TABLE: st.lists(regions, max_size=3).map(encode_mem_table),
    Request.ADD_MEM_REG: regions.map(encode_mem_region),
    Request.REM_MEM_REG: regions.map(encode_mem_region),
    Request.SET_LOG_BASE: st.builds(LogArea, u64, u64).map(LogArea.encode),
    Request.GET_INFLIGHT_FD: st.builds(
        InflightArea, size=u64, offset=u64, queues=u16, queue_size=u16
    ).map(InflightArea.encode),
    Request.SET_INFLIGHT_FD: st.builds(
        InflightArea,
        size=often(st.just(SIZE // 2), u64),
        offset=often(st.integers(0, 64), u64),
        queues=often(st.just(2), u16),
        queue_size=often(st.just(64), u16),
    ).map(InflightArea.encode),
    Request.SET_VRING_ADDR: st.builds(
        VringAddress,
        index=ring,
        flags=u32,
        desc=place,
        used=place,
        avail=place,
        log=u64,
    ).map(VringAddress.encode),
    Request.GET_CONFIG: st.builds(ConfigSpace, u32, st.binary(max_size=16), u32).map(
        ConfigSpace.encode
    ),
    Request.SET_CONFIG: st.builds(ConfigSpace, u32, st.binary(max_size=16), u32).map(
        ConfigSpace.encode
    ),
    **dict.fromkeys(
        (
            Request.SET_VRING_NUM,
            Request.SET_VRING_BASE,
            Request.GET_VRING_BASE,
            Request.SET_VRING_ENABLE,
        ),
        st.builds(VringState, ring, st.one_of(st.sampled_from([1, 64, 256]), u32)).map(
            VringState.encode
        ),
    ),
    **dict.fromkeys(
        (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR),
        st.builds(VringFd, ring, st.booleans()).map(VringFd.encode),
    ),
}


LIKELY_FDS = {
    Request.SET_MEM_TABLE: ["memory"],
    Request.ADD_MEM_REG: ["memory"],
    Request.SET_LOG_BASE: ["memory"],
    Request.SET_LOG_FD: ["eventfd"],
    Request.SET_INFLIGHT_FD: ["memory"],
    Request.SET_VRING_KICK: ["eventfd"],
    Request.SET_VRING_CALL: ["eventfd"],
    Request.SET_VRING_ERR: ["eventfd"],
    Request.SET_BACKEND_REQ_FD: ["socket"],
}


@st.composite
def message(draw):
    request = draw(
        often(st.sampled_from(sorted(PAYLOADS)), st.sampled_from([*Request, 0, 99]))
    )
    payload = draw(often(PAYLOADS.get(request, st.just(b"")), st.binary(max_size=40)))
    any_fds = st.lists(st.sampled_from(sorted(MAKE_FD)), max_size=2)
    fds = draw(often(st.just(LIKELY_FDS.get(request, [])), any_fds))
    return request, payload, fds, draw(st.booleans())


def setting_up(index):
    """What makes a ring run, for what comes then to meet one that does."""
    at = UVA + index * 4 * PAGE
    address = VringAddress(index=index, desc=at, avail=at + PAGE, used=at + 2 * PAGE)
    with_fd = VringFd(index, has_fd=True).encode()
    return [
        (Request.SET_VRING_NUM, VringState(index, 64).encode(), [], True),
        (Request.SET_VRING_ADDR, address.encode(), [], False),
        (Request.SET_VRING_CALL, with_fd, ["eventfd"], True),
        (Request.SET_VRING_KICK, with_fd, ["eventfd"], False),
        (Request.SET_VRING_ENABLE, VringState(index, 1).encode(), [], True),
    ]


SET_UP = [
    (Request.SET_PROTOCOL_FEATURES, encode_u64(OFFERED), [], False),
    (
        Request.SET_MEM_TABLE,
        encode_mem_table([MemoryRegion(gpa=0, uva=UVA, size=SIZE)]),
        ["memory"],
        True,
    ),
    *setting_up(0),
    *setting_up(1),
]
PACKED = Feature.RING_PACKED | Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
SPLIT = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
LOGGED = SPLIT | Feature.LOG_ALL


def feed(device, messages):
    """Send them as one front-end; its first mistake ends it, as for any other."""
    session = Session(device)
    try:
        for request, payload, fds, need_reply in messages:
            session.receive(
                Message(request, payload, [MAKE_FD[fd]() for fd in fds], need_reply)
            )
    except FrontendError:
        pass
    finally:
        session.close()


@pytest.mark.parametrize("features", [0, SPLIT, PACKED, LOGGED])
@pytest.mark.spec("vhost-user:communication/error")
def test_no_sequence_of_messages_is_our_bug(host, features):
    first = [(Request.SET_FEATURES, encode_u64(features), [], False), *SET_UP]

    @hypothesis.settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.lists(message(), max_size=12))
    def check(messages):
        host.call(feed, host.device, [*(first if features else []), *messages])

    check()


@pytest.mark.parametrize("features", [SPLIT, PACKED, LOGGED])
def test_any_one_message_to_a_running_device_is_no_bug(host, features):
    """One each, so that no earlier mistake keeps it from being looked at."""
    first = [(Request.SET_FEATURES, encode_u64(features), [], False), *SET_UP]

    @hypothesis.settings(
        max_examples=400,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(message(), message())
    def check(one, two):
        host.call(feed, host.device, [*first, one, two])

    check()
