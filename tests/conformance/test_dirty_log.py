"""The dirty log during a migration: each page that the device wrote, and no other."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

from vhost_user.driver import PAGE, barrier
from vhost_user.frontend import DirtyLog
from vhost_user.message import Feature
from vhost_user.packed_driver import PackedVirtqueue
from vhost_user.vsock.driver import GUEST_FEATURES, PAYLOAD_OPS, RX, TX, VsockGuest
from vhost_user.vsock.packet import Op

ECHO = 7
TOTAL = 600_000
PACKED = GUEST_FEATURES | Feature.RING_PACKED


class Writes:
    """Notes which pages the device writes, by what the guest sees of it."""

    def __init__(self, guest, log_gpas):
        self.pages = set()
        self._guest = guest
        for queue, gpa in ((guest.rx, log_gpas[RX]), (guest.tx, log_gpas[TX])):
            self._watch(queue, gpa)

    def _watch(self, queue, log_gpa):
        pop_used = queue.pop_used

        def pop():
            index = queue.base & 0x7FFF
            used = pop_used()
            if used is not None:
                if isinstance(queue, PackedVirtqueue):
                    self._note(queue.desc + 16 * index, 16)
                else:
                    self._note(log_gpa, 4)  # flags, index
                    self._note(log_gpa + 4 + 8 * (index % queue.num), 8)
                if queue is self._guest.rx:
                    self._note_buffer(used)
            return used

        queue.pop_used = pop

    def _note_buffer(self, used):
        left = used.len
        for gpa, size in self._guest._rx_segments[used.head]:
            self._note(gpa, min(left, size))
            left -= min(left, size)

    def _note(self, gpa, size):
        if size:
            self.pages |= set(range(gpa // PAGE, (gpa + size - 1) // PAGE + 1))


@contextlib.contextmanager
def feeding(sock, data):
    thread = threading.Thread(target=sock.sendall, args=(data,))
    thread.start()
    try:
        yield
    except BaseException:
        sock.shutdown(socket.SHUT_RDWR)  # else the thread may send for ever
        raise
    finally:
        thread.join()


def take(conn, least):
    """Receive at least so many bytes and give the credit back."""
    data = b""
    while len(data) < least:
        data += conn.expect(*PAYLOAD_OPS).payload
        conn.say(Op.CREDIT_UPDATE)
    return data


def start_logging(guest, log, log_gpas):
    """Do what QEMU does when a migration starts, rings running."""
    guest.vmm.set_log(log)
    guest.vmm.renegotiate(Feature.LOG_ALL)
    for index, queue in ((RX, guest.rx), (TX, guest.tx)):
        guest.vmm.set_address(index, queue, log_gpa=log_gpas[index])


def stop_logging(guest):
    guest.vmm.renegotiate()
    for index, queue in ((RX, guest.rx), (TX, guest.tx)):
        guest.vmm.set_address(index, queue)


@pytest.mark.spec(
    "vhost-user:migration/data",
    "vhost-user:migration/used",
    "vhost-user:migration/page",
    "vhost-user:migration/log-guest-addr",
    "vhost-user:migration/atomic",
    "vhost-user:feature/LOG_SHMFD",
)
@pytest.mark.parametrize(
    ("features", "rx_layout"),
    [
        pytest.param(GUEST_FEATURES, (4096,), id="4-KiB"),
        pytest.param(GUEST_FEATURES, (44, 9000), id="header-and-9000"),
        pytest.param(PACKED, (4096,), id="4-KiB-packed"),
        pytest.param(PACKED, (44, 9000), id="header-and-9000-packed"),
    ],
)
def test_marks_what_the_device_writes_while_a_stream_goes_on(host, features, rx_layout):
    """As a VMM that copies memory in rounds, each with a log of its own.

    A page that no round's log has would be lost by a migration; a page too many costs
    it time. The used rings are logged at addresses that no memory has, each across
    two pages.
    """
    data = bytes(i * 7 % 251 for i in range(TOTAL))
    with contextlib.ExitStack() as stack:
        guest = stack.enter_context(
            VsockGuest(host.path, features=features, rx_layout=rx_layout)
        )
        listener = stack.enter_context(host.listen(5000))
        conn = guest.connect(5000, buf_alloc=64 * 1024)
        sock = stack.enter_context(listener.accept()[0])
        end = guest.ram.gpa + guest.ram.size
        log_gpas = (end + 7 * PAGE + 3000, end + 77 * PAGE + 3000)
        writes = Writes(guest, log_gpas)

        def new_log():
            return stack.enter_context(DirtyLog(end + 100 * PAGE))

        logs = [new_log()]
        start_logging(guest, logs[0], log_gpas)
        received = b""
        with feeding(sock, data):
            while len(received) < TOTAL:
                received += take(conn, min(20_000, TOTAL - len(received)))
                logs.append(new_log())
                guest.vmm.set_log(logs[-1])
        guest.drain()
        guest.stop()
        while guest.rx.pop_used() is not None:
            pass
        assert received == data
        marked = set().union(*(log.pages() for log in logs))
        assert writes.pages - marked == set(), "pages that a migration would lose"
        # the event index, which the guest doesn't see change
        event = 0 if features == PACKED else 4 + 8 * guest.rx.num
        kick_asked = {(gpa + event) // PAGE for gpa in log_gpas}
        assert marked - writes.pages - kick_asked == set(), "pages that nobody wrote"
        assert len(logs) > 10


@pytest.mark.spec("vhost-user:migration/start-stop", "vhost-user:migration/stopped")
def test_marks_nothing_before_the_start_and_after_the_stop(guest):
    conn = guest.connect(ECHO)
    end = guest.ram.gpa + guest.ram.size

    def ping():
        conn.say(Op.RW, b"ping")
        assert conn.receive_bytes(4) == b"ping"
        guest.drain()

    with DirtyLog(end) as log:
        guest.vmm.set_log(log)
        ping()
        assert log.pages() == set()
        start_logging(guest, log, (0, 0))
        ping()
        seen = log.pages()
        assert seen
        stop_logging(guest)
        ping()
        assert log.pages() == seen
        start_logging(guest, log, (0, 0))
        guest.stop()
        seen = log.pages()
        conn.say(Op.RW, b"late")
        guest.vmm.queue_num()
        assert log.pages() == seen


@pytest.mark.spec(
    "vhost-user:suspended/memory",
    "vhost-user:suspended/notifications",
    "vhost-user:suspended/replies",
)
def test_a_suspended_device_writes_nothing_and_calls_nobody(far, guest):
    conn, sock = far()
    guest.drain()
    guest.stop()
    guest.rx.calls()
    guest.tx.calls()
    before = guest.ram.read(guest.ram.gpa, guest.ram.size)
    sock.sendall(b"wait for it")
    for _ in range(3):
        assert guest.vmm.queue_num() == 3
    barrier()
    assert guest.ram.read(guest.ram.gpa, guest.ram.size) == before
    assert (guest.rx.calls(), guest.tx.calls()) == (0, 0)
    guest.start()
    assert conn.receive_bytes(11) == b"wait for it"


@pytest.mark.parametrize("ring_kind", ["split", "packed"], indirect=True)
def test_a_guest_goes_on_at_another_back_end(host, guest, tmp_path):
    """The bases and the memory move; connections don't, the new one resets them."""
    (tmp_path / "destination").mkdir()
    conn = guest.connect(ECHO)
    conn.say(Op.RW, b"ping")
    assert conn.receive_bytes(4) == b"ping"
    guest.drain()
    guest.stop()
    with type(host)(tmp_path / "destination") as destination:
        guest.reconnect(destination.path)
        guest.start()
        conn.say(Op.RW, b"ping")
        conn.expect(Op.RST)
        conn = guest.connect(ECHO)
        conn.say(Op.RW, b"pong")
        assert conn.receive_bytes(4) == b"pong"


def test_a_truncated_log_ends_that_session_only(host):
    with VsockGuest(host.path) as guest, DirtyLog(1 << 32) as log:
        conn = guest.connect(ECHO)
        start_logging(guest, log, (0, 0))
        os.ftruncate(log.fd, 0)
        conn.say(Op.RW, b"ping")
        assert guest.vmm.hung_up()
    with VsockGuest(host.path) as guest:
        conn = guest.connect(ECHO)
        conn.say(Op.RW, b"ping")
        assert conn.receive_bytes(4) == b"ping"
