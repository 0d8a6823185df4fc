"""Session: the channel on which the back-end asks the front-end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from tests.support.limits import LIMIT_S
from tests.unit.vhost_user.conftest import offloaded
from vhost_user.errors import FrontendError
from vhost_user.message import (
    BackendRequest,
    ConfigSpace,
    ProtocolFeature,
    Request,
    encode,
    encode_u64,
)

pytestmark = pytest.mark.usefixtures("no_fd_leak")

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
    """Let the event loop see what came on the channel, by way of a thread."""
    for _ in range(3):
        await asyncio.sleep(0)
    while offloaded():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
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
