"""A thousand VMs of one `vhost-user-vsock`, on two engines."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support.limits import LIMIT_S as TIMEOUT_S
from tests.support.ports import free_port
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op

VMS, GROUP = 1000, 10
CIDS = range(3, 3 + VMS)
ECHO = 7
COMMAND = Path(sys.executable).with_name("vhost-user-vsock")


def config(directory):
    """VMs in groups of GROUP; the first has a host side, too."""
    lines = ["vms:"]
    for at, cid in enumerate(CIDS):
        lines += [
            f"- guest_cid: {cid}",
            f"  socket: {directory}/{cid}",
            f"  groups: g{at // GROUP}",
        ]
    lines.append(f"  uds_path: {directory}/host")
    return "\n".join(lines)


class Process:
    """The command; its files are in `directory`, its log is beside it."""

    def __init__(self, directory, log):
        self.directory = directory
        self.metrics = f"127.0.0.1:{free_port()}"
        file = log.with_name("vms.yaml")
        file.write_text(config(directory))
        argv = [str(COMMAND), f"--config={file}", "--threads=2", "--poll-us=0"]
        argv += [f"--echo-port={ECHO}", f"--stats-socket={directory}/stats"]
        argv.append(f"--metrics={self.metrics}")
        with log.open("w") as stderr:
            self.child = subprocess.Popen(argv, stderr=stderr)
        self._log = log
        while f"ready: CID {CIDS[-1]} " not in log.read_text():
            assert self.child.poll() is None, log.read_text()
            time.sleep(0.05)

    def log(self):
        return self._log.read_text()

    def stats(self):
        with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as file:
            sock.settimeout(TIMEOUT_S)
            sock.connect(f"{self.directory}/stats")
            return json.load(file)

    def scrape(self):
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as page:
            return page.read().decode().splitlines()

    def end(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        return self.child.wait(TIMEOUT_S)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vms")
    process = Process(directory, tmp_path_factory.mktemp("log") / "log")
    yield process
    assert process.end() == 0, process.log()
    assert list(directory.iterdir()) == []
    assert "Traceback" not in process.log()


@pytest.fixture
def guest(process):
    with contextlib.ExitStack() as stack:

        def make(cid):
            path = process.directory / str(cid)
            return stack.enter_context(VsockGuest(path, cid=cid))

        yield make


def echoes(conn, far=None):
    """Check that bytes come back: by the echo, or by a far end that we play."""
    conn.say(Op.RW, b"ping")
    if far is not None:
        far.say(Op.RW, far.receive_bytes(4))
    assert conn.receive_bytes(4) == b"ping"


def test_groups_are_on_one_engine_and_engines_have_as_many_vms(process):
    stats = process.stats()
    engines = [vm["engine"] for vm in stats["vms"]]
    assert [vm["guest_cid"] for vm in stats["vms"]] == list(CIDS)
    assert [engine["vms"] for engine in stats["engines"]] == [VMS // 2] * 2
    assert engines == [engines[at // GROUP * GROUP] for at in range(VMS)]


def test_guests_on_either_engine_reach_the_host_and_each_other(process, guest):
    stats = process.stats()
    first = [next(vm for vm in stats["vms"] if vm["engine"] == i) for i in (0, 1)]
    for vm in first:
        a, b = guest(vm["guest_cid"]), guest(vm["guest_cid"] + GROUP - 1)
        echoes(a.connect(ECHO))
        near = a.request(5000, cid=b.cid)
        far = b.accept()
        near.expect(Op.RESPONSE)
        echoes(near, far)
    stats = process.stats()
    conns = [engine["conns"] for engine in stats["engines"]]
    assert conns == [3, 3]  # a sibling's connection is one at each end
    assert stats["engine"]["conns"] == sum(conns)


@pytest.mark.parametrize("engine", [0, 1], ids=["on-its-engine", "on-the-other"])
def test_another_group_is_out_of_reach(process, guest, engine):
    vms = process.stats()["vms"]
    last = vms[-1]
    there = last["engine"] ^ engine
    other = next(vm["guest_cid"] for vm in vms if vm["engine"] == there)
    a, _b = guest(last["guest_cid"]), guest(other)
    a.request(5000, cid=other).expect(Op.RST)


def test_a_host_program_reaches_one_of_them(process, guest):
    a = guest(CIDS[-1])
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(f"{process.directory}/host")
        client.sendall(b"CONNECT 5000\n")
        conn = a.accept()
        assert client.recv(64).startswith(b"OK ")
        client.sendall(b"ping")
        assert conn.receive_bytes(4) == b"ping"


def test_a_scrape_has_every_vm_and_every_engine(process):
    """A page of a thousand VMs is larger than what a socket takes at once."""
    lines = process.scrape()
    cids = [f'vhost_user_vsock_message_errors_total{{cid="{cid}"}} 0' for cid in CIDS]
    assert set(cids) <= set(lines)
    for engine in (0, 1):
        assert f'vhost_user_vsock_engine_vms{{engine="{engine}"}} {VMS // 2}' in lines
