"""The real vhost-user-vsock: what it serves, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.limits import LIMIT_S as TIMEOUT_S
from vhost_user.vsock.cli import main
from vhost_user.vsock.config import VmConfig
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op

ROOT = Path(__file__).parents[3]


def vm(**fields):
    return VmConfig(socket=Path("/run/a"), **fields)


class Process:
    def __init__(self, *argv):
        self._child: Any = subprocess.Popen(
            [sys.executable, "-m", "vhost_user.vsock.cli", *map(str, argv)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.pid = self._child.pid

    def line(self):
        return self._child.stderr.readline()

    def end(self, signo=signal.SIGTERM):
        self._child.send_signal(signo)
        _, rest = self._child.communicate(timeout=TIMEOUT_S)
        return self._child.returncode, rest

    def rss_mib(self):
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (s for s in status.splitlines() if s.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait(TIMEOUT_S)
        self._child.stderr.close()


@pytest.mark.spec(
    "vhost-user:conventions/sigterm",
    "vhost-user:conventions/no-daemon",
)
@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_serves_a_guest_and_ends_clean(tmp_path, signo):
    paths = [tmp_path / name for name in ("vhost", "vsock", "stats")]
    options = ["--socket", "--uds-path", "--stats-socket"]
    argv = [str(x) for pair in zip(options, paths, strict=True) for x in pair]
    with Process(*argv, "--echo-port", "7") as process:
        assert process.line() == (
            f"vhost-user-vsock: ready: CID 3 on {paths[0]}, host side {paths[1]}\n"
        )
        assert all(path.is_socket() for path in paths)
        with VsockGuest(paths[0]) as guest:
            conn = guest.connect(7)
            conn.say(Op.RW, b"ping")
            assert conn.receive_bytes(4) == b"ping"
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(TIMEOUT_S)
                client.connect(str(paths[2]))
                stats = json.loads(client.recv(1 << 16))
        assert stats["vms"][0]["opened"] == 1
        assert stats["vms"][0]["connected"] is True
        status, _ = process.end(signo)
        assert status == 0
        assert not any(path.exists() for path in paths)


def test_one_idle_vm_takes_less_than_60_mib(tmp_path):
    socket_path = tmp_path / "vhost"
    argv = ["--socket", str(socket_path), "--uds-path", str(tmp_path / "vsock")]
    with Process(*argv, "--echo-port", "7") as process:
        process.line()
        with VsockGuest(socket_path) as guest:
            guest.connect(7)
            assert process.rss_mib() < 60


def test_serves_several_vms(tmp_path):
    vms = [
        f"guest-cid={cid},socket={tmp_path}/{cid}.vhost,uds-path={tmp_path}/{cid}.vsock"
        for cid in (3, 4)
    ]
    with Process("--vm", vms[0], "--vm", vms[1], "--poll-us", "0") as process:
        assert "CID 3" in process.line()
        assert "CID 4" in process.line()
        for cid in (3, 4):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"{tmp_path}/{cid}.vsock_5000")
                listener.listen()
                with VsockGuest(tmp_path / f"{cid}.vhost", cid=cid) as guest:
                    assert guest.vmm.config() == cid.to_bytes(8, "little")
                    conn = guest.connect(5000)
                    far, _ = listener.accept()
                    far.settimeout(TIMEOUT_S)
                    conn.say(Op.RW, b"%d" % cid)
                    assert far.recv(10) == b"%d" % cid
                    far.close()
        assert process.end()[0] == 0


def test_vms_of_a_group_reach_each_other(tmp_path):
    vms = [
        f"--vm=guest-cid={cid},socket={tmp_path}/{cid},groups={groups}"
        for cid, groups in ((3, "x"), (4, "x+y"), (5, "y"))
    ]
    with Process(*vms) as process, contextlib.ExitStack() as stack:
        for _ in vms:
            assert "ready" in process.line()
        a, b, c = (
            stack.enter_context(VsockGuest(tmp_path / str(cid), cid=cid))
            for cid in (3, 4, 5)
        )
        for guest in (a, c):
            near = guest.request(5000, cid=4)
            far = b.accept()
            near.expect(Op.RESPONSE)
            near.say(Op.RW, b"ping")
            assert far.receive_bytes(4) == b"ping"
        a.request(5000, cid=5).expect(Op.RST)


def test_a_vsock_address_that_is_not_there_refuses(tmp_path):
    # tests/vm/test_vsock_forward.py has one that is
    argv = ["--socket", tmp_path / "vhost", "--forward-cid", "4000000000"]
    with Process(*argv, "--forward-listen", "34567") as process:
        assert process.line() == (
            f"vhost-user-vsock: ready: CID 3 on {tmp_path}/vhost, "
            "host side CID 4000000000\n"
        )
        with VsockGuest(tmp_path / "vhost") as guest, pytest.raises(ConnectionError):
            guest.connect(9000)
        argv = ["--socket", tmp_path / "other", "--forward-cid", "1"]
        with Process(*argv, "--forward-listen", "34567") as second:
            assert "vsock port 34567: Address already in use" in second.line()
            assert second._child.wait(TIMEOUT_S) == 2
        assert process.end()[0] == 0


def test_a_killed_process_leaves_sockets_that_the_next_replaces(tmp_path):
    argv = ["--socket", tmp_path / "vhost", "--uds-path", tmp_path / "vsock"]
    with Process(*argv) as process:
        assert "ready" in process.line()
        process.end(signal.SIGKILL)
    assert (tmp_path / "vhost").exists()
    with Process(*argv) as process:
        assert "ready" in process.line()
        with Process(*argv) as second:
            assert second.line() == (
                f"vhost-user-vsock: {tmp_path}/vsock: a live process listens there\n"
            )
            assert second._child.wait(TIMEOUT_S) == 2
        with VsockGuest(tmp_path / "vhost") as guest:  # the live one goes on
            assert guest.vmm.queue_num() == 3
        assert process.end()[0] == 0


@pytest.mark.spec("vhost-user:conventions/fail-early")
def test_a_socket_that_cannot_be_made_leaves_nothing_behind(tmp_path, capsys):
    status = main(
        ["--socket", "/nonexistent/vhost", "--uds-path", str(tmp_path / "vsock")]
    )
    assert status == 2
    assert "/nonexistent/vhost" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_metrics_address_in_use_is_one_line_and_status_2(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        argv = ["--socket", str(tmp_path / "vhost"), "--metrics", address]
        assert main(argv) == 2
    error = capsys.readouterr().err
    assert error == f"vhost-user-vsock: {address}: Address already in use\n"
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_no_socket_is_never_replaced(tmp_path, kind, capsys):
    path = tmp_path / "vhost"
    path.write_text("mine") if kind == "file" else path.mkdir()
    assert main(["--socket", str(path)]) == 2
    error = capsys.readouterr().err
    assert error == (f"vhost-user-vsock: {path}: exists and is not a socket\n")
    assert path.exists()


def test_the_command_itself_says_one_line_and_2(tmp_path):
    unreadable = tmp_path / "vms.yaml"
    unreadable.mkdir()
    for argv in (
        ["--bogus"],
        ["--bogus=two\nlines"],
        ["--socket=/a", "--vm=socket=/b"],
        [f"--config={unreadable}"],
        [f"--config={tmp_path}/none"],
    ):
        with Process(*argv) as process:
            status, error = process.end(0)
        assert status == 2
        assert error.startswith("vhost-user-vsock: ")
        assert error.count("\n") == 1
