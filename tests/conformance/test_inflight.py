"""A back-end that is killed, and the next one that takes up what it left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.support.limits import LIMIT_S as TIMEOUT_S
from vhost_user.driver import Ram
from vhost_user.errors import StateError
from vhost_user.frontend import ALL_FEATURES, Frontend
from vhost_user.message import Feature
from vhost_user.packed_driver import make_queue
from vhost_user.vsock.driver import GUEST_FEATURES, PAYLOAD_OPS, VsockGuest
from vhost_user.vsock.packet import Op

both_kinds = pytest.mark.parametrize(
    "packed", [0, Feature.RING_PACKED], ids=["split", "packed"]
)

# The entropy device, killed by itself when it has the chain after so many.
DOOMED_RNG = """
import asyncio, os, signal, sys
from pathlib import Path
from vhost_user.backend import serve
from vhost_user.rng import RngDevice

class Doomed(RngDevice):
    left = int(sys.argv[2])

    def process(self, queue, chain):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return super().process(queue, chain)

asyncio.run(serve(Path(sys.argv[1]), Doomed(), name="doomed"))
"""


@contextlib.contextmanager
def process(*argv):
    """Run a back-end until it is killed, by us at the latest."""
    child = subprocess.Popen([sys.executable, *argv], stderr=subprocess.PIPE)
    assert child.stderr is not None
    try:
        assert b"ready" in child.stderr.readline()
        yield child
    finally:
        child.kill()
        child.communicate(timeout=TIMEOUT_S)


def rng(path, chains=1 << 30):
    return process("-c", DOOMED_RNG, str(path), str(chains))


def connect(path, ram, queue, features, inflight=None):
    vmm = Frontend(path)
    vmm.negotiate(features)
    vmm.set_memory(ram)
    if inflight is None:
        inflight = vmm.get_inflight(1, queue.num)
    vmm.set_inflight(inflight)
    vmm.start(0, queue, base=queue.crash_base)
    queue.kick(force=True)
    return vmm, inflight


@pytest.mark.spec(
    "vhost-user:GET_INFLIGHT_FD",
    "vhost-user:SET_INFLIGHT_FD",
    "vhost-user:feature/INFLIGHT_SHMFD",
    "vhost-user:communication/reconnect",
)
@both_kinds
@pytest.mark.parametrize("chains", [0, 5, 70])
def test_each_chain_comes_back_once_after_a_kill(tmp_path, chains, packed):
    """70: a first batch is seen by the guest, the second is in flight."""
    path = tmp_path / "rng"
    features = ALL_FEATURES | packed
    with Ram() as ram, contextlib.ExitStack() as stack:
        queue = make_queue(ram, 128, features=features)
        stack.callback(queue.close)
        buffers = {}
        for _ in range(100):
            gpa = ram.alloc(64)
            buffers[queue.add(writable=[(gpa, 64)])] = gpa
        with rng(path, chains) as child:
            vmm, inflight = connect(path, ram, queue, features)
            stack.callback(os.close, inflight.fd)
            assert child.wait(TIMEOUT_S) == -signal.SIGKILL
            vmm.close()
        for _ in range(2):  # again, with nothing more done than before
            with rng(path, 0) as child:
                vmm, _ = connect(path, ram, queue, features, inflight)
                assert child.wait(TIMEOUT_S) == -signal.SIGKILL
                vmm.close()
        with rng(path):
            vmm, _ = connect(path, ram, queue, features, inflight)
            used = [queue.wait_used(TIMEOUT_S) for _ in range(100)]
            assert queue.pop_used() is None
            assert {each.head for each in used} == set(buffers)
            assert all(any(ram.read(gpa, 64)) for gpa in buffers.values())
            head = queue.add(writable=[(buffers[0], 64)])
            queue.kick()
            assert queue.wait_used(TIMEOUT_S).head == head
            vmm.close()


@contextlib.contextmanager
def vsock(tmp_path):
    with process(
        *("-m", "vhost_user.vsock.cli", "--guest-cid", "3"),
        *("--socket", str(tmp_path / "vhost"), "--uds-path", str(tmp_path / "vsock")),
    ) as child:
        yield child


def listen(stack, path):
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.settimeout(TIMEOUT_S)
    sock.bind(str(path))
    sock.listen()
    return sock


@both_kinds
@pytest.mark.parametrize("packets", [1, 100])
def test_a_vsock_guest_loses_no_buffer_when_its_back_end_is_killed(
    tmp_path, packets, packed
):
    """Connections end with the process that had them; rings go on."""
    features = GUEST_FEATURES | packed
    with contextlib.ExitStack() as stack:
        before, after = (listen(stack, tmp_path / f"vsock_{p}") for p in (5000, 5001))
        with vsock(tmp_path) as child:
            guest = stack.enter_context(
                VsockGuest(tmp_path / "vhost", features=features)
            )
            inflight = guest.vmm.get_inflight(2, 256)
            stack.callback(os.close, inflight.fd)
            conn = guest.connect(5000)
            sock = stack.enter_context(before.accept()[0])
            sock.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while sent < 8 << 20:
                    sent += sock.send(bytes(65536))
            for _ in range(packets):
                conn.say(Op.RW, b"x" * 1000)
            child.kill()
            child.wait(TIMEOUT_S)
        with vsock(tmp_path):
            guest.reconnect(tmp_path / "vhost", crashed=True)
            guest.vmm.set_inflight(inflight)
            guest.start()
            guest.drain()
            assert guest.tx.free == guest.tx.num
            again = guest.connect(5001)
            sock = stack.enter_context(after.accept()[0])
            data = bytes(i % 251 for i in range(1_000_000))
            sock.setblocking(False)
            left = memoryview(data)
            received = b""
            while len(received) < len(data):
                with contextlib.suppress(BlockingIOError):
                    left = left[sock.send(left) :]
                packet = again.expect(*PAYLOAD_OPS)
                received += packet.payload
                again.say(Op.CREDIT_UPDATE)
            assert received == data


def test_a_truncated_log_ends_that_session_only(host):
    with VsockGuest(host.path) as guest:
        shared = os.memfd_create("unsealed")
        inflight = guest.vmm.get_inflight(2, 256)
        os.ftruncate(shared, inflight.area.size)
        guest.vmm.set_inflight(type(inflight)(inflight.area, shared))
        conn = guest.connect(7)
        os.ftruncate(shared, 0)
        conn.say(Op.RW, b"ping")
        assert guest.vmm.hung_up()
        os.close(shared)
        os.close(inflight.fd)
    with VsockGuest(host.path) as guest:
        conn = guest.connect(7)
        conn.say(Op.RW, b"ping")
        assert conn.receive_bytes(4) == b"ping"


def test_nobody_truncates_the_log_that_the_back_end_made(guest):
    inflight = guest.vmm.get_inflight(2, 256)
    with pytest.raises(PermissionError):
        os.ftruncate(inflight.fd, 0)
    os.close(inflight.fd)


def test_a_log_changes_under_running_rings(far, guest):
    conn, sock = far()
    for _ in range(10):
        inflight = guest.vmm.get_inflight(2, 256)
        os.close(inflight.fd)
        conn.send(b"up" * 500)
        sock.sendall(b"down" * 500)
        assert conn.receive_bytes(2000) == b"down" * 500
    with pytest.raises((ConnectionError, StateError)):
        guest.vmm.get_inflight(4, 256)
