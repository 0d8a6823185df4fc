"""The command `vhost-user-vsock` as a whole: shortages, lost memory, host clients.

A process of its own for each test, whose guests are in user space. What ends one
connection or one session must not reach a second VM of the same process.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.support.limits import LIMIT_S as TIMEOUT_S
from tests.support.limits import wait_until
from tests.support.ports import free_port
from vhost_user.message import Request
from vhost_user.vsock.driver import TX, VsockGuest
from vhost_user.vsock.packet import Op

ECHO = 7
COMMAND = Path(sys.executable).with_name("vhost-user-vsock")


def after(shell, argv):
    """`argv`, started by a shell that runs `shell` before.

    Nothing of Python's runs between fork and exec: other threads may hold its locks.
    """
    return ["sh", "-c", f'{shell}; exec "$@"', "sh", *argv]


class Command:
    """Two VMs, CIDs 3 and 4, whose port 7 echoes; its log in a file."""

    def __init__(self, directory, *options, keys="", shell=":"):
        self.directory = directory
        vms = [
            f"--vm=guest-cid={cid},socket={directory}/{cid},"
            f"uds-path={directory}/u{cid}{keys}"
            for cid in (3, 4)
        ]
        self._log = directory / "log"
        with self._log.open("w") as log:
            self._child = subprocess.Popen(
                after(
                    shell,
                    [COMMAND, *vms, f"--echo-port={ECHO}", "--poll-us=0", *options],
                ),
                stderr=log,
            )
        self.pid = self._child.pid
        while self.logged("ready: CID 4") == 0:
            assert self._child.poll() is None, self.log()

    def log(self):
        return self._log.read_text()

    def logged(self, text):
        """Return how many lines of the log have it."""
        return sum(text in line for line in self.log().splitlines())

    def limit(self, which, value):
        """Limit it from now on; None: not any more."""
        hard = resource.prlimit(self.pid, which)[1]
        resource.prlimit(self.pid, which, (hard if value is None else value, hard))

    def size(self):
        """Return its address space, bytes."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[0])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208

    def guest(self, cid, **options):
        return VsockGuest(self.directory / str(cid), cid=cid, **options)

    def listen(self, cid, port):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT_S)
        sock.bind(f"{self.directory}/u{cid}_{port}")
        sock.listen(1024)
        return sock

    def dial(self, cid, sent=b""):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{self.directory}/u{cid}")  # waits while the backlog is full
        sock.settimeout(TIMEOUT_S)
        sock.sendall(sent)
        return sock

    def stats(self):
        """Return the counters that the stats socket gives."""
        with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as file:
            sock.settimeout(TIMEOUT_S)
            sock.connect(str(self.directory / "stats"))
            return json.load(file)

    def close(self):
        """End it, which it does by itself and in good order."""
        if self._child.poll() is None:
            self._child.terminate()
        assert self._child.wait(TIMEOUT_S) == 0, self.log()


@pytest.fixture
def run(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(*options, **more):
            stats = f"--stats-socket={tmp_path}/stats"
            command = Command(tmp_path, stats, *options, **more)
            return stack.enter_context(contextlib.closing(command))

        yield start


@contextlib.contextmanager
def traffic(conn):
    """Echo all the time; fails if one answer is wrong or late."""
    stop = threading.Event()
    rounds: list[bytes] = []
    errors: list[Exception] = []

    def echo():
        while not stop.is_set() or not rounds:
            try:
                conn.say(Op.RW, b"%d" % len(rounds))
                word = b"%d" % len(rounds)
                assert conn.receive_bytes(len(word)) == word
            except Exception as error:
                errors.append(error)
                return
            rounds.append(word)

    thread = threading.Thread(target=echo)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not errors


def answers(conns):
    return [conn.receive().op for conn in conns]


# ---- shortages ----


def keeps_64_kib(guest):
    """Send so much that is on its way back, but never taken; False: that failed."""
    try:
        conn = guest.connect(ECHO, buf_alloc=0)
    except ConnectionRefusedError:
        return False
    while conn.credit:
        conn.say(Op.RW, bytes(min(conn.credit, 32768)))
    return Op.RST not in [packet.op for packet in guest.fence()]


def test_out_of_memory_ends_single_connections_and_is_recovered_from(run):
    command = run()
    with command.guest(3, ram_size=64 << 20) as guest, command.guest(4) as other:
        conn = other.connect(ECHO)
        conn.say(Op.RW, b"ping")
        assert conn.receive_bytes(4) == b"ping"
        command.limit(resource.RLIMIT_AS, command.size())
        with traffic(conn):
            kept = [keeps_64_kib(guest) for _ in range(1200)]
            assert kept[:100] == 100 * [True]
            ended = kept.count(False)
            assert ended >= 20
            # Python's side lives on the same memory.
            clients = [command.dial(3, b"CONNECT 9\n") for _ in range(50)]
            stats = command.stats()["vms"][0]
            assert stats["no_memory"] >= ended
            assert stats["queued_bytes"] <= stats["window_bytes"] <= 256 << 20
            for client in clients:
                client.close()
        assert command.logged("CID 3: a connection failed: out of memory") == 1
        before = stats["queued_bytes"]
    with command.guest(3, ram_size=64 << 20) as guest:  # still as little memory
        conns = [guest.connect(ECHO, buf_alloc=0) for _ in range(50)]
        for one in conns:
            one.say(Op.RW, bytes(32768))
        guest.drain()
        stats = command.stats()["vms"][0]
        assert stats["queued_bytes"] == 50 * 32768 < before
    assert command.logged("CID 3: a connection failed: out of memory") == 1
    assert command.logged("Traceback") == 0


def test_out_of_descriptors_fails_single_connections_and_is_recovered_from(run):
    command = run()
    with (
        command.guest(3) as guest,
        command.guest(4) as other,
        command.listen(3, 5000) as listener,
    ):
        conn = other.connect(ECHO)
        command.limit(resource.RLIMIT_NOFILE, command.fds() + 8)
        with traffic(conn):
            conns = [guest.request(5000) for _ in range(40)]
            came = answers(conns)
            assert came.count(Op.RESPONSE) == 8
            assert came.count(Op.RST) == 32
            clients = [command.dial(3, b"CONNECT 5001\n") for _ in range(20)]
            for _ in range(8):
                listener.accept()[0].close()
            for one, answer in zip(conns, came, strict=True):
                if answer == Op.RESPONSE:
                    one.expect(Op.SHUTDOWN)
                    one.say(Op.RST)
            for client in clients:  # they waited, and now there is room for each
                guest.accept().say(Op.RST)
                assert client.recv(3) == b"OK "
                client.close()
            assert answers([guest.request(5000) for _ in range(4)]) == 4 * [Op.RESPONSE]
        command.limit(resource.RLIMIT_NOFILE, None)
        assert command.stats()["vms"][0]["no_fds"] == 32
    assert command.logged("CID 3: a connection failed: out of file descriptors") == 1
    assert command.logged("can't accept") <= 1


def test_no_vm_takes_the_descriptors_of_another(run):
    command = run(shell="ulimit -Sn 256; ulimit -Hn 1024", keys=",max-conns=1000")
    assert command.logged("CID 3: max_conns is 160: open files are limited to 10") == 1
    with command.listen(3, 5000), command.listen(4, 5000):
        for cid in (3, 4):
            guest = command.guest(cid)
            came = answers([guest.request(5000) for _ in range(200)])
            assert came == 160 * [Op.RESPONSE] + 40 * [Op.RST]
            guest.close()
    for stats in command.stats()["vms"]:
        assert (stats["limit_conns"], stats["no_fds"]) == (40, 0)


def test_the_counters_are_there_without_a_descriptor_to_look_with(run):
    command = run()
    command.limit(resource.RLIMIT_NOFILE, command.fds() + 1)
    process = command.stats()["process"]
    assert process["open_fds"] == command.fds() + 1
    assert process["resident_bytes"] > 1 << 20


def test_a_guest_that_breaks_its_rings_again_and_again_fills_no_log(run):
    command = run()
    broken = os.eventfd(0, os.EFD_CLOEXEC)
    with (
        command.guest(3) as guest,
        command.guest(4) as other,
        traffic(other.connect(ECHO)),
    ):
        guest.vmm.set_fd(Request.SET_VRING_ERR, TX, broken)
        for _ in range(64):
            guest.tx.set_avail_idx(guest.tx.avail_idx + 2 * guest.tx.num)
            guest.tx.kick(force=True)
            assert select.select([broken], [], [], TIMEOUT_S)[0]
            os.eventfd_read(broken)
            guest.vmm.stop(TX)
            guest.start_over(TX)
        guest.connect(ECHO)
    os.close(broken)
    assert command.logged("the guest broke ring 1") == 7  # 1, 2, 4, ... 64


# ---- memory that goes away ----


def test_truncated_memory_ends_that_session_and_no_other(run):
    command = run()
    with command.guest(4) as other, traffic(other.connect(ECHO)):
        for _ in range(3):
            with command.guest(3) as guest:
                guest.connect(ECHO)
                os.ftruncate(guest.ram.fd, guest.ram.offset)
                os.eventfd_write(guest.tx.kick_fd, 1)
                assert guest.vmm.hung_up()
        with command.guest(3) as guest:
            guest.connect(ECHO)
    assert command.logged("CID 3: session ended: guest memory is gone") == 3
    assert command.logged("CID 4: session ended") == 0


def test_a_guest_that_leaves_many_connections_leaves_none(run):
    command = run()
    with (
        command.guest(4) as other,
        command.listen(3, 5000) as listener,
        traffic(other.connect(ECHO)),
    ):
        fds = command.fds()
        with command.guest(3) as guest:
            socks = []
            for _ in range(300):
                guest.connect(5000)
                socks.append(listener.accept()[0])
        for sock in socks:
            sock.settimeout(TIMEOUT_S)
            assert sock.recv(1) == b""
            sock.close()
        stats = command.stats()
        assert stats["vms"][0]["conns"] == 0
        assert stats["engine"]["conns"] == 1
        wait_until(lambda: command.fds() == fds, what="the end of its descriptors")


def test_a_driver_that_outlives_its_front_end_hears_of_the_reset(run):
    command = run()
    with command.guest(3, event_buffers=4) as guest:
        conn = guest.connect(ECHO)
        guest.drain()
        guest.stop()
        guest.reconnect(command.directory / "3")
        guest.start()
        assert guest.receive_event() == b"\0\0\0\0"  # TRANSPORT_RESET
        conn.say(Op.RW, b"are you there?")
        conn.expect(Op.RST)
        guest.connect(ECHO)


# ---- host clients ----


def test_a_host_clients_early_bytes_and_split_line_reach_the_guest(run):
    command = run()
    with command.guest(3) as guest, command.dial(3) as client:
        for byte in b"CONNECT 5001\nearly":
            client.send(bytes([byte]))
        client.sendall(b" bytes")
        conn = guest.accept()
        assert conn.receive_bytes(11) == b"early bytes"
        assert client.recv(3) == b"OK "


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"CONNECT\n", b"ERROR b'' is not a port\n"),
        (b"HELLO\n", b"ERROR b'HELLO\\n' is not CONNECT and a port\n"),
        (b"x" * 100, b"ERROR no newline in the first 32 bytes\n"),
        (b"CONNECT 5001\n", b"ERROR the guest refused\n"),
    ],
    ids=["no-port", "no-connect", "no-line", "refused"],
)
def test_a_host_client_is_told_why_it_is_refused(run, sent, answer):
    command = run()
    with command.guest(3) as guest, command.dial(3, sent) as client:
        if answer == b"ERROR the guest refused\n":
            header = guest.receive().header
            guest.send(guest.header(Op.RST, header.dst_port, header.src_port))
        with contextlib.suppress(ConnectionResetError), client.makefile("rb") as file:
            assert file.readline() == answer
            assert file.read() == b""


def test_a_host_client_is_told_that_the_guest_has_gone(run):
    command = run()
    with command.guest(3) as guest, command.dial(3, b"CONNECT 5001\n") as client:
        assert guest.receive().op == Op.REQUEST
        guest.vmm.close()
        assert client.recv(100) == b"ERROR the guest is gone\n"


def test_host_clients_without_end_are_bounded_and_fill_no_log(run):
    command = run(keys=",max-conns=50")
    with (
        command.guest(3) as guest,
        command.guest(4) as other,
        traffic(other.connect(ECHO)),
    ):
        clients = [command.dial(3, b"CONNECT 5001\n") for _ in range(600)]
        refused = clients[50:]
        for client in refused:
            assert client.recv(100).startswith(b"ERROR guest CID 3")
        stats = command.stats()["vms"][0]
        assert (stats["conns"], stats["limit_conns"]) == (50, len(refused))
        assert stats["clients_refused"] == len(refused)
        for client in clients:
            client.close()
        guest.fence()
        guest.connect(ECHO)
    assert command.logged("refused") < 20


# ---- its log ----


@pytest.mark.parametrize("stderr", ["closed", "unread"])
def test_it_serves_without_anyone_who_reads_its_log(tmp_path, stderr):
    path = tmp_path / "vhost"
    read, write = os.pipe()
    os.close(read)
    child = subprocess.Popen(
        after(
            "exec 2>&-" if stderr == "closed" else ":",
            [COMMAND, f"--socket={path}", f"--echo-port={ECHO}"],
        ),
        stderr=write,
    )
    os.close(write)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            while probe.connect_ex(str(path)):
                assert child.poll() is None
        for _ in range(2):
            with VsockGuest(path) as guest:
                guest.connect(ECHO)
    finally:
        child.terminate()
        status = child.wait(TIMEOUT_S)
    assert status == 0


# ---- counters ----


def test_each_counter_is_in_json_and_for_prometheus(run):
    address = f"127.0.0.1:{free_port()}"
    command = run(f"--metrics={address}")
    stats = command.stats()
    with urllib.request.urlopen(f"http://{address}/metrics") as page:
        names = {line.partition("{")[0] for line in page.read().decode().splitlines()}
    counters = {"limit_conns", "limit_bytes", "limit_rate", "no_fds", "no_memory"}
    for name in stats["vms"][0]:
        full = f"vhost_user_vsock_{name}"
        assert name == "guest_cid" or {full, f"{full}_total"} & names, name
    assert counters | {"backlog_full", "clients_refused"} <= set(stats["vms"][0])


def test_a_hangup_ends_nothing_that_nohup_started(run):
    command = run(shell="trap '' HUP")
    os.kill(command.pid, signal.SIGHUP)
    with command.guest(3) as guest:
        conn = guest.connect(ECHO)
        conn.say(Op.RW, b"ping")
        assert conn.receive_bytes(4) == b"ping"


def test_who_may_connect_is_a_key_of_each_vm(run, tmp_path):
    run(keys=",socket-mode=0660")
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    for cid in (3, 4):
        for name in (f"{cid}", f"u{cid}", f"u{cid}_seqpacket"):
            assert modes[name] == 0o660
    assert modes["stats"] == 0o600
