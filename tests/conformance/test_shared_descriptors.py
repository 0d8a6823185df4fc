"""A front-end that makes its descriptors block stops nobody but itself.

It keeps the open file description of what it sends: it may clear O_NONBLOCK, fill a
counter, or send a file on which even close() waits.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from pathlib import Path

import pytest

from tests.conformance.conftest import ECHO
from tests.conformance.test_rng import Guest, RngProcess
from tests.conformance.threads import TIMEOUT_S
from vhost_user.driver import Virtqueue
from vhost_user.errors import StateError
from vhost_user.frontend import Frontend
from vhost_user.message import MemoryRegion, Request, encode, encode_mem_table
from vhost_user.vsock.driver import RX, TX, VsockGuest
from vhost_user.vsock.packet import Op

FULL = 2**64 - 2
TABLE = encode_mem_table([MemoryRegion(gpa=0, uva=0, size=4096)])


def full(fd):
    os.set_blocking(fd, True)
    os.eventfd_write(fd, FULL)


@contextlib.contextmanager
def lingering():
    """Yield a socket whose last close() waits until the block is left."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    linger = b"\1\0\0\0" + (3600).to_bytes(4, "little")
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(1 << 20))
    with ours, peer:
        yield ours


def echo(guest):
    conn = guest.connect(ECHO)
    conn.say(Op.RW, b"hi")
    assert conn.receive_bytes(2) == b"hi"


def test_a_full_error_eventfd_stops_no_other_vm(make_host):
    host = make_host(neighbour=True)
    with VsockGuest(host.path) as bad, VsockGuest(host.neighbour_path, cid=4) as good:
        err = os.eventfd(0)
        bad.vmm.set_fd(Request.SET_VRING_ERR, TX, err)
        full(err)
        assert isinstance(bad.tx, Virtqueue)
        bad.tx.publish(0xFFFF)
        bad.tx.kick(force=True)
        echo(good)
        assert host.stats().conns == 0
        assert good.vmm.queue_num() == 3
        os.close(err)


def test_a_full_pipe_for_interrupts_stops_no_other_vm(make_host):
    host = make_host(neighbour=True)
    ours, theirs = os.pipe()
    with VsockGuest(host.path) as bad, VsockGuest(host.neighbour_path, cid=4) as good:
        bad.vmm.set_fd(Request.SET_VRING_CALL, RX, theirs)
        os.set_blocking(theirs, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(theirs, bytes(4096))
        os.set_blocking(theirs, True)
        bad.rx.want_calls()
        bad.request(ECHO)  # the answer is worth an interrupt
        echo(good)
        assert bad.vmm.queue_num() == 3
    os.close(ours)
    os.close(theirs)


def test_a_file_on_which_close_waits_stops_no_other_vm(make_host):
    """...and no other front-end follows on that socket until it is closed."""
    host = make_host(neighbour=True)
    with VsockGuest(host.neighbour_path, cid=4) as good:
        with lingering() as sock:
            with Frontend(host.path) as bad:

                def send(bad=bad, sock=sock):  # the back-end has none of it before
                    bad.send(encode(Request.SET_OWNER), [sock.fileno()] * 3)
                    sock.close()  # not the last one: else it would wait here

                host.call(send)
                assert bad.hung_up()
            echo(good)
            assert good.vmm.queue_num() == 3
            with Frontend(host.path) as early:
                early.send(encode(Request.GET_QUEUE_NUM))
                echo(good)
                assert not select.select([early._sock], [], [], 0)[0]
        with VsockGuest(host.path) as guest:
            echo(guest)


def test_files_that_nobody_read_stop_no_other_vm(make_host):
    """They are in the socket when the session ends."""
    host = make_host(neighbour=True)
    with VsockGuest(host.neighbour_path, cid=4) as good, lingering() as sock:
        with Frontend(host.path) as bad:

            def send():  # on the back-end's thread: it reads none of it before
                bad.send(encode(99) + b"rest")
                bad.send(b"x", [sock.fileno()])
                sock.close()

            host.call(send)
            assert bad.hung_up()
        echo(good)
        assert good.vmm.queue_num() == 3


def test_a_device_in_python_is_not_stopped_by_a_full_call_eventfd(tmp_path):
    process = RngProcess(str(tmp_path / "rng"))
    guest = Guest(process.path)
    full(guest.queue.call_fd)
    guest.queue.want_calls()
    guest.ask(64)
    guest.queue.kick(force=True)
    for _ in range(3):
        assert guest.vmm.queue_num() == 1
    while guest.queue.pop_used() is None:
        guest.vmm.queue_num()
    guest.close()
    status, said = process.stop()
    assert status == 0, said


def test_memory_that_others_serve_is_refused(host, caplog):
    with Frontend(host.path) as vmm:
        vmm.negotiate()
        served = os.open("/proc/version", os.O_RDONLY)
        with pytest.raises(StateError, match="back-end refuses"):
            vmm.tell(Request.SET_MEM_TABLE, TABLE, [served])
        os.close(served)
        assert vmm.hung_up()
    assert "memory can't be mapped: its file is not in memory" in caplog.text


def test_a_call_that_comes_by_a_pipe_arrives(host):
    ours, theirs = os.pipe()
    with VsockGuest(host.path) as guest:
        guest.vmm.set_fd(Request.SET_VRING_CALL, RX, theirs)
        os.close(theirs)
        guest.rx.want_calls()
        guest.request(ECHO)
        assert select.select([ours], [], [], TIMEOUT_S)[0]
        assert os.read(ours, 8) == (1).to_bytes(8, "little")
    os.close(ours)


def test_no_child_of_the_process_inherits_what_a_front_end_sent(host, guest):
    """Nor what the engine made of it: it has descriptors of its own for kicks."""
    assert guest.vmm.queue_num() == 3  # all that came before is done
    fds = []
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the listing's own
            if str(entry.readlink()).startswith(("anon_inode:[eventfd]", "/memfd:")):
                fds.append(int(entry.name))
    assert len(fds) > 12
    inherited = [fd for fd in fds if os.get_inheritable(fd)]
    assert inherited == []
