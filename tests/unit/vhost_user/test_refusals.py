"""What is refused is answered first, where the front-end asked for an answer."""

from __future__ import annotations

import os

import pytest

from vhost_user.errors import FrontendError
from vhost_user.message import (
    Feature,
    InflightArea,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    VringFd,
    VringState,
    decode_reply,
    decode_u64,
    encode_mem_region,
    encode_u64,
)
from vhost_user.requests import RefusedError

PAGE = 4096

pytestmark = pytest.mark.usefixtures("no_fd_leak")


def memory():
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 16 * PAGE)
    return fd


REGION = encode_mem_region(MemoryRegion(gpa=0, uva=0, size=16 * PAGE))
REFUSED = {
    "a-region-twice": (Request.ADD_MEM_REG, REGION, memory),
    "removing-what-is-not-there": (
        Request.REM_MEM_REG,
        encode_mem_region(MemoryRegion(gpa=1 << 40, uva=0, size=PAGE)),
        None,
    ),
    "in-flight-log-of-no-queue": (
        Request.GET_INFLIGHT_FD,
        InflightArea(queues=0, queue_size=256).encode(),
        None,
    ),
    "in-flight-log-of-a-huge-ring": (
        Request.GET_INFLIGHT_FD,
        InflightArea(queues=1, queue_size=65535).encode(),
        None,
    ),
    "ring-that-is-not-there": (
        Request.SET_VRING_NUM,
        VringState(9, 256).encode(),
        None,
    ),
    "ring-size": (Request.SET_VRING_NUM, VringState(0, 3).encode(), None),
    "feature-not-offered": (Request.SET_FEATURES, encode_u64(1 << 63), None),
    "kick-that-is-none": (
        Request.SET_VRING_KICK,
        VringFd(0, has_fd=True).encode(),
        lambda: os.memfd_create("x"),
    ),
    "wrong-size": (Request.SET_OWNER, b"x", None),
    "unknown": (99, b"", None),
    "not-offered": (Request.SEND_RARP, bytes(8), None),
}


def refuse(session, request, payload, make_fd, *, need_reply):
    fds = [] if make_fd is None else [make_fd()]
    with pytest.raises(FrontendError) as info:
        session.receive(Message(request, payload, fds, need_reply))
    return info.value


@pytest.fixture
def negotiated(vmm):
    vmm.negotiate(Feature.VERSION_1 | Feature.PROTOCOL_FEATURES)
    vmm.send(Request.ADD_MEM_REG, REGION, memory())
    return vmm


@pytest.mark.spec("vhost-user:reply-ack/respond", "vhost-user:reply-ack/status")
@pytest.mark.parametrize(
    ("request_", "payload", "make_fd"), REFUSED.values(), ids=REFUSED.keys()
)
def test_a_refusal_is_answered_with_a_status_that_is_not_zero(
    negotiated, session, request_, payload, make_fd
):
    error = refuse(session, request_, payload, make_fd, need_reply=True)
    assert isinstance(error, RefusedError)
    data = error.reply.data
    assert decode_reply(data[:12]) == (request_, 0x5, 8)
    assert decode_u64(data[12:]) != 0
    assert error.reply.fds == ()


@pytest.mark.parametrize(
    ("request_", "payload", "make_fd"), REFUSED.values(), ids=REFUSED.keys()
)
def test_a_refusal_that_nobody_asked_about_is_not_answered(
    negotiated, session, request_, payload, make_fd
):
    error = refuse(session, request_, payload, make_fd, need_reply=False)
    assert not isinstance(error, RefusedError)


def test_without_reply_ack_a_refusal_is_not_answered(vmm, session):
    vmm.negotiate(0, ProtocolFeature.CONFIGURE_MEM_SLOTS)
    error = refuse(session, Request.REM_MEM_REG, REGION, None, need_reply=True)
    assert not isinstance(error, RefusedError)


# ---- numbers that are checked before anything depends on them ----


@pytest.mark.parametrize("offset", [1, 4, 4100, 2**63 + 4])
def test_an_in_flight_log_that_is_not_aligned_is_refused(vmm, session, offset):
    vmm.negotiate(0)
    area = InflightArea(size=PAGE, offset=offset, queues=1, queue_size=8)
    with pytest.raises(FrontendError, match="need a multiple of 8"):
        vmm.send(Request.SET_INFLIGHT_FD, area.encode(), memory())
