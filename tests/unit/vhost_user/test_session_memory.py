"""Session: what comes of the file descriptors and the memory of a front-end."""

from __future__ import annotations

import os

import pytest

from vhost_user.errors import FrontendError, StateError
from vhost_user.message import (
    MemoryRegion,
    Request,
    VringFd,
    encode_mem_table,
)

PAGE = 4096
UVA = 0x7F00_0000_0000

pytestmark = pytest.mark.usefixtures("no_fd_leak")


# ---- file descriptors and memory ----


@pytest.mark.spec(
    "vhost-user:SET_VRING_KICK",
    "vhost-user:communication/fds",
)
@pytest.mark.parametrize(
    ("has_fd", "fds"),
    [
        pytest.param(True, 0, id="none"),
        pytest.param(False, 1, id="one-with-NOFD"),
        pytest.param(True, 2, id="two"),
    ],
)
def test_rejects_a_kick_with_the_wrong_fds(vmm, has_fd, fds):
    with pytest.raises(FrontendError, match="fd"):
        vmm.send(
            Request.SET_VRING_KICK,
            VringFd(0, has_fd=has_fd).encode(),
            *(os.eventfd(0) for _ in range(fds)),
        )


def test_rejects_fds_with_a_message_that_has_none(vmm):
    with pytest.raises(FrontendError, match="1 fds, at most 0"):
        vmm.send(Request.GET_FEATURES, b"", os.eventfd(0))


def test_rejects_fds_with_an_unknown_message(vmm):
    with pytest.raises(FrontendError):
        vmm.send(99, b"", os.eventfd(0))


@pytest.mark.spec("vhost-user:SET_MEM_TABLE")
@pytest.mark.parametrize("fds", [0, 2])
def test_rejects_another_number_of_fds_than_regions(vmm, fds):
    table = encode_mem_table([MemoryRegion(gpa=0, size=PAGE, uva=UVA)])
    with pytest.raises(FrontendError, match=f"{fds} fds for 1 regions"):
        vmm.send(Request.SET_MEM_TABLE, table, *(os.eventfd(0) for _ in range(fds)))


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        pytest.param(0, 0, id="empty"),
        pytest.param(2 * PAGE, 0, id="longer-than-its-file"),
        pytest.param(2**63, 0, id="2**63-bytes"),
        pytest.param(2**64 - PAGE, PAGE, id="end-wraps"),
        pytest.param(PAGE, PAGE, id="behind-its-file"),
        pytest.param(PAGE, 2**64 - PAGE, id="offset-2**64"),
    ],
)
def test_rejects_memory_that_cannot_be_mapped(vmm, size, offset):
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    table = encode_mem_table([MemoryRegion(gpa=0, size=size, uva=UVA, offset=offset)])
    with pytest.raises(FrontendError):
        vmm.send(Request.SET_MEM_TABLE, table, fd)


def test_rejects_memory_whose_fd_cannot_be_mapped(vmm):
    table = encode_mem_table([MemoryRegion(gpa=0, size=PAGE, uva=UVA)])
    with pytest.raises(FrontendError, match="can't be mapped"):
        vmm.send(Request.SET_MEM_TABLE, table, os.eventfd(0))


def test_a_received_eventfd_never_blocks_us(vmm):
    ours = os.eventfd(0)
    vmm.send(Request.SET_VRING_CALL, VringFd(0, has_fd=True).encode(), os.dup(ours))
    assert not os.get_blocking(ours)
    os.close(ours)


def test_replaced_eventfds_are_closed(vmm, open_fds):
    for request in (
        Request.SET_VRING_KICK,
        Request.SET_VRING_CALL,
        Request.SET_VRING_ERR,
    ):
        vmm.set_fd(request, 0)
        before = open_fds()
        vmm.set_fd(request, 0)
        assert open_fds() == before
        vmm.send(request, VringFd(0, has_fd=False).encode())
        assert open_fds() == before - 1


@pytest.mark.spec("vhost-user:SET_VRING_ERR")
def test_a_broken_ring_signals_the_error_eventfd(running, session):
    ours = os.eventfd(0, os.EFD_NONBLOCK)
    running.send(Request.SET_VRING_ERR, VringFd(1, has_fd=True).encode(), os.dup(ours))
    session.ring_broke(0)  # has none: nothing happens
    session.ring_broke(1)
    assert os.eventfd_read(ours) == 1
    os.close(ours)


def test_close_takes_everything_back_in_order(running, session, device):
    session.close()
    assert device.calls == ["stop 1", "stop 0", "reset", "drop_memory"]


def test_close_goes_on_after_a_step_that_fails(running, session, device, monkeypatch):
    def fail():
        raise StateError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(device, "reset", fail)
        with pytest.raises(StateError, match="a bug"):
            session.close()
    assert device.calls == ["stop 1", "stop 0", "drop_memory"]
