"""Descriptors of a front-end: which are taken, and that none can make us wait.

A front-end keeps the open file description of what it sends: here it makes it blocking
and full, and whatever then waits fails the test instead of hanging it.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time

import pytest

from tests.hostile_fds import FULL, fill, full, lingering
from tests.support.limits import LIMIT_S
from tests.unit.vhost_user.conftest import Vmm, offloaded
from vhost_user import notify
from vhost_user.descriptors import (
    MAX_OFFLOADED,
    Kind,
    MemoryFiles,
    Offload,
    kind_of,
)
from vhost_user.errors import FrontendError
from vhost_user.message import (
    Feature,
    InflightArea,
    LogArea,
    MemoryRegion,
    Request,
    VringFd,
    encode_mem_region,
    encode_mem_table,
    encode_u64,
)
from vhost_user.session import Session

PAGE = 4096

pytestmark = pytest.mark.usefixtures("no_fd_leak")


def does_not_wait(call):
    """Make `call` in a thread and return what it returns."""
    result = []
    thread = threading.Thread(target=lambda: result.append(call()), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive(), "it waits"
    return result[0]


def a_file(tmp_path):
    path = tmp_path / "memory"
    path.write_bytes(bytes(16 * PAGE))
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


# ---- kinds ----


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        pytest.param(lambda: os.eventfd(0), Kind.EVENTFD, id="eventfd"),
        pytest.param(lambda: os.memfd_create("x"), Kind.RAM, id="memfd"),
        pytest.param(
            lambda: os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR),
            Kind.RAM,
            id="tmpfs",
        ),
        pytest.param(lambda: os.open("/dev/shm", 0), Kind.OTHER, id="directory"),
        pytest.param(lambda: os.open("/dev/null", 0), Kind.OTHER, id="device"),
        pytest.param(lambda: os.open("/proc/version", 0), Kind.OTHER, id="proc"),
        pytest.param(lambda: os.pidfd_open(os.getpid()), Kind.OTHER, id="pidfd"),
        pytest.param(lambda: socket.socket().detach(), Kind.SOCKET, id="socket"),
    ],
)
def test_kinds_of_descriptors(make, kind):
    fd = make()
    assert kind_of(fd) is kind
    os.close(fd)


@pytest.mark.parametrize("name", ["pipe:[1]", "anon_inode:[eventfd]", "socket:[1]"])
def test_a_files_name_does_not_make_it_another_kind(tmp_path, name):
    fd = os.open(tmp_path / name, os.O_CREAT | os.O_RDWR)
    assert kind_of(fd) is not Kind.EVENTFD
    assert kind_of(fd) in {Kind.OTHER, Kind.RAM}
    os.close(fd)


def test_hugetlbfs_is_memory():
    try:
        fd = os.memfd_create("huge", os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no huge pages: {error}")
    assert kind_of(fd) is Kind.RAM
    os.close(fd)


# ---- notify ----


def test_a_signal_adds_one():
    fd = os.eventfd(5)
    notify.signal(fd)
    assert os.eventfd_read(fd) == 6
    os.close(fd)


def test_many_signals_all_count():
    fd = os.eventfd(0)
    for _ in range(1000):
        notify.signal(fd)
    assert os.eventfd_read(fd) == 1000
    os.close(fd)


def test_a_signal_does_not_wait_for_room_in_the_counter():
    fd = full(os.eventfd(0))
    for _ in range(3):
        does_not_wait(lambda: notify.signal(fd))
    assert os.eventfd_read(fd) >= FULL
    os.close(fd)


def test_what_is_no_eventfd_is_not_signalled():
    fd = os.memfd_create("x")
    with pytest.raises(OSError, match="asynchronous I/O: Invalid argument"):
        notify.signal(fd)
    os.close(fd)


def test_taking_a_signal_does_not_wait_for_one():
    fd = os.eventfd(3)
    assert does_not_wait(lambda: notify.take(fd))
    assert not does_not_wait(lambda: notify.take(fd))  # blocking, and empty
    os.close(fd)


# ---- what a session takes ----

RINGS_FDS = {
    "kick": Request.SET_VRING_KICK,
    "call": Request.SET_VRING_CALL,
    "err": Request.SET_VRING_ERR,
}
NO_EVENTFD = {
    "memfd": lambda: os.memfd_create("x"),
    "socket": lambda: socket.socket().detach(),
    "device": lambda: os.open("/dev/null", os.O_RDWR),
    "pidfd": lambda: os.pidfd_open(os.getpid()),
}


@pytest.mark.parametrize("request_", RINGS_FDS.values(), ids=RINGS_FDS.keys())
@pytest.mark.parametrize("make", NO_EVENTFD.values(), ids=NO_EVENTFD.keys())
def test_a_rings_descriptors_are_eventfds(vmm, request_, make):
    with pytest.raises(FrontendError, match=r"ring 0: the fd is .*, need an eventfd"):
        vmm.send(request_, VringFd(0, has_fd=True).encode(), make())


@pytest.mark.parametrize("make", NO_EVENTFD.values(), ids=NO_EVENTFD.keys())
def test_the_logs_descriptor_is_an_eventfd(vmm, make):
    with pytest.raises(FrontendError, match=r"the log's fd is .*, need an eventfd"):
        vmm.send(Request.SET_LOG_FD, b"", make())


MAPPED = {
    "table": (
        Request.SET_MEM_TABLE,
        encode_mem_table([MemoryRegion(gpa=0, uva=0, size=PAGE)]),
    ),
    "region": (
        Request.ADD_MEM_REG,
        encode_mem_region(MemoryRegion(gpa=0, uva=0, size=PAGE)),
    ),
    "dirty-log": (Request.SET_LOG_BASE, LogArea(PAGE, 0).encode()),
    "in-flight-log": (
        Request.SET_INFLIGHT_FD,
        InflightArea(size=16 * PAGE, queues=1, queue_size=8).encode(),
    ),
}


@pytest.mark.parametrize(("request_", "payload"), MAPPED.values(), ids=MAPPED.keys())
def test_what_is_mapped_is_memory(vmm, request_, payload):
    vmm.negotiate(0)
    served = os.open("/proc/version", os.O_RDONLY)
    with pytest.raises(FrontendError, match=r"not in memory .*hint: .*--memory-files"):
        vmm.send(request_, payload, served)


@pytest.mark.parametrize(("request_", "payload"), MAPPED.values(), ids=MAPPED.keys())
def test_any_file_is_mapped_where_the_user_allows_it(
    tmp_path, device, request_, payload
):
    session = Session(device, memory_files=MemoryFiles.ANY)
    vmm = Vmm(session)
    vmm.negotiate(0)
    vmm.send(request_, payload, a_file(tmp_path))
    session.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: socket.create_server(("127.0.0.1", 0)).detach(),
        lambda: socket.socketpair(type=socket.SOCK_DGRAM)[0].detach(),
    ],
    ids=["tcp", "datagrams"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_channel_is_a_unix_stream(vmm, make):
    vmm.negotiate(0)
    with pytest.raises(FrontendError, match="not a unix stream socket"):
        vmm.send(Request.SET_BACKEND_REQ_FD, b"", make())


# ---- what a session signals ----


def test_a_full_error_eventfd_stops_nobody(running, session):
    fd = os.eventfd(0)
    payload = VringFd(1, has_fd=True).encode()
    running.send(Request.SET_VRING_ERR, payload, os.dup(fd))
    full(fd)
    does_not_wait(lambda: session.ring_broke(1))
    assert os.eventfd_read(fd) >= FULL
    os.close(fd)


def test_a_full_log_eventfd_stops_nobody(running):
    fd = os.eventfd(0)
    running.send(Request.SET_LOG_FD, b"", os.dup(fd))
    running.send(
        Request.SET_LOG_BASE, LogArea(1 << 20, 0).encode(), memory_file(1 << 20)
    )
    features = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.LOG_ALL
    running.send(Request.SET_FEATURES, encode_u64(features))
    full(fd)
    assert does_not_wait(lambda: running.get_base(0)) == 0
    assert os.eventfd_read(fd) >= FULL
    os.close(fd)


def memory_file(size):
    fd = os.memfd_create("log")
    os.ftruncate(fd, size)
    return fd


def test_a_full_channel_stops_nobody(vmm, session, device, caplog):
    async def steps():
        ours, theirs = socket.socketpair()
        with ours:
            vmm.send(Request.SET_BACKEND_REQ_FD, b"", os.dup(theirs.fileno()))
            theirs.setblocking(True)
            for _ in range(10_000):
                session.config_changed()
        theirs.close()
        session.close()

    vmm.negotiate(0, device.protocol_features & ~8)  # no REPLY_ACK: no answers
    vmm.set_fd(Request.SET_VRING_KICK, 0)
    does_not_wait(lambda: asyncio.run(steps()))
    assert "back-end channel closed" in caplog.text


# ---- calls through a pipe ----


def test_a_pipe_gets_what_the_device_signals(vmm, session):
    ours, theirs = os.pipe()
    vmm.send(Request.SET_VRING_CALL, VringFd(0, has_fd=True).encode(), theirs)
    call_fd = session._rings.all[0].call_fd
    assert kind_of(call_fd) is Kind.EVENTFD
    for _ in range(3):
        os.eventfd_write(call_fd, 1)
        assert does_not_wait(lambda: os.read(ours, 100)) == (1).to_bytes(8, "little")
    session.close()
    assert does_not_wait(lambda: os.read(ours, 100)) == b""  # nobody can write
    os.close(ours)


def test_a_full_pipe_stops_nobody(vmm, session):
    ours, theirs = os.pipe()
    fill(theirs)
    vmm.send(Request.SET_VRING_CALL, VringFd(0, has_fd=True).encode(), theirs)
    call_fd = session._rings.all[0].call_fd
    os.eventfd_write(call_fd, 1)
    while select.select([call_fd], [], [], 0)[0]:  # until the thread has taken it
        time.sleep(0.001)
    for _ in range(3):
        does_not_wait(lambda: os.eventfd_write(call_fd, 1))
    does_not_wait(session.close)
    assert offloaded()  # they wait, and hurt nobody
    os.close(ours)


# ---- closing ----


def test_a_descriptor_that_nobody_takes_stops_nobody(vmm):
    with lingering() as sock:
        fd = sock.detach()
        error = does_not_wait(lambda: refusal(vmm, fd))
        assert "1 fds, at most 0" in str(error)
        assert offloaded()


def refusal(vmm, fd):
    with pytest.raises(FrontendError) as info:
        vmm.send(Request.GET_FEATURES, b"", fd)
    return info.value


def test_a_front_end_whose_files_keep_many_calls_waiting_is_ended():
    offload = Offload()
    let_go = threading.Event()
    for _ in range(MAX_OFFLOADED + 1):
        offload.check()
        offload.run(let_go.wait)
    with pytest.raises(FrontendError, match="65 calls wait"):
        offload.check()
    idle = threading.Event()
    offload.when_idle(idle.set)
    assert not idle.is_set()
    let_go.set()
    assert idle.wait(LIMIT_S)
    offload.check()


def test_an_idle_offload_calls_back_at_once():
    called = []
    Offload().when_idle(lambda: called.append(1))
    assert called == [1]
