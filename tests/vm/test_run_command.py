"""`fastpath run` as a user meets it: a process of its own, a real microVM."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.commands import FASTPATH, said_ready
from tests.support.limits import GUEST_LIMIT_S as TIMEOUT_S
from tests.support.limits import wait_until
from tests.support.ports import free_port

pytestmark = pytest.mark.vm


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    """What a run leaves behind is seen in here, and nothing else is."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def run(*command, options=(), **kwargs):
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    if "input" in kwargs:
        del kwargs["stdin"]
    return subprocess.run(
        [*FASTPATH, "run", *options, "--", *command],
        check=False,
        capture_output=True,
        timeout=TIMEOUT_S,
        **kwargs,
    )


def left_behind(tmp_path):
    return sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.glob("fastpath-*/*")
    ) + [str(path) for path in tmp_path.glob("fastpath-*") if not any(path.iterdir())]


def started(*command):
    """A run whose program has said `ready`."""
    return said_ready("run", "--", *command)


def test_true_says_nothing_and_leaves_nothing(tmp_path):
    """How long it takes is bench/bench_run.py's."""
    run("true")  # whatever is built or probed at first use
    done = run("true")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert left_behind(tmp_path) == []


def test_the_summary_has_what_ran_in_what_and_how_it_ended(tmp_path, server):
    file = tmp_path / "run.json"
    assert run("wget", "-qO-", server, options=("--json", str(file))).returncode == 0
    found = json.loads(file.read_text())
    assert found["argv"] == ["wget", "-qO-", server]
    assert (found["image"], found["status"], found["error"]) == ("base", 0, None)
    assert found["accelerator"] in {"kvm", "tcg"}
    assert found["sockets"] == "module"
    assert re.match(r"\d+\.\d+", found["guest_kernel"])
    assert 0 < found["ready_s"] < found["seconds"]
    assert found["connections"] >= 1


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("nonsense", 127)],
)
def test_the_exit_status_is_the_programs(script, status):
    assert run("sh", "-c", script).returncode == status


def test_stdin_stdout_and_stderr_pass_every_byte():
    data = os.urandom(3_000_000)
    done = run("sh", "-c", "cat; echo oops >&2", input=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert done.stderr == b"oops\n"


def test_a_reader_that_goes_away_ends_the_program(tmp_path):
    line = " ".join([*FASTPATH, "run", "--", "sh", "-c", "'while :; do echo y; done'"])
    done = subprocess.run(
        ["bash", "-c", f"{line} | head -2; exit ${{PIPESTATUS[0]}}"],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGPIPE, b"y\ny\n")
    assert left_behind(tmp_path) == []


def test_a_reader_that_is_slow_does_not_make_us_grow():
    command = "sh", "-c", "head -c 50000000 /dev/zero; echo done"
    process = subprocess.Popen(
        [*FASTPATH, "run", "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.read(1) == b"\0"
        before = _anonymous_kib(process.pid)
        time.sleep(3)
        assert _anonymous_kib(process.pid) - before < 8192
        rest = process.stdout.read()
        assert len(rest) == 50_000_000 - 1 + len(b"done\n")
        assert process.wait(timeout=TIMEOUT_S) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def _anonymous_kib(pid):
    """Memory of its own; the guest's is shared and not counted."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise LookupError(pid)


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_the_program_does_not_catch_ends_it(signo, tmp_path):
    with started("sh", "-c", "echo ready; exec sleep 6000") as process:
        process.send_signal(signo)
        assert process.wait(timeout=TIMEOUT_S) == 128 + signo
    assert left_behind(tmp_path) == []


def test_a_signal_that_the_program_catches_is_the_programs():
    script = "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.1; done"
    with started("sh", "-c", script) as process:
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=TIMEOUT_S) == 5
        assert process.stdout is not None
        assert process.stdout.read() == "caught\n"


def test_a_signal_during_boot_ends_us_and_leaves_nothing(tmp_path):
    process = subprocess.Popen([*FASTPATH, "run", "--", "sleep", "6000"])
    wait_until(lambda: list(tmp_path.glob("fastpath-*/*")))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=TIMEOUT_S) == 128 + signal.SIGTERM
    assert left_behind(tmp_path) == []


def test_timeout_is_exit_status_124_and_a_line(tmp_path):
    limit_s = 2
    while True:  # until it is longer than a boot
        done = run("sleep", "6000", options=("--timeout", str(limit_s)))
        assert done.returncode == 124
        if b"has not booted" not in done.stderr:
            break
        assert limit_s < TIMEOUT_S
        limit_s *= 2
        shutil.rmtree(next(tmp_path.glob("fastpath-*")))  # the console's log
    assert done.stderr == f"fastpath: timed out: not done within {limit_s} s\n".encode()
    assert left_behind(tmp_path) == []


def test_env_and_file_are_the_programs(tmp_path):
    (tmp_path / "in").write_bytes(b"\0binary\xff")
    done = run(
        "sh",
        "-c",
        'printf %s "$GREETING"; cat /opt/x',
        options=("--env", "GREETING=hi = there", "--file", f"{tmp_path}/in:/opt/x"),
    )
    assert done.stdout == b"hi = there\0binary\xff"


AGENT = ("--sockets", "agent")
KILL_AGENTS = "while :; do kill -9 $(pidof tsi-agent) 2> /dev/null; done"
"""One after another: a single one is replaced."""


def test_names_are_searched_for_as_on_this_host(tmp_path):
    host = tmp_path / "resolv.conf"
    host.write_text(
        "nameserver 192.0.2.53\nsearch corp.example svc.example\n"
        "options ndots:3 edns0 timeout:4 attempts:1\n"
    )
    own_mounts = ["unshare", "-rm", "sh", "-ec"]
    script = 'mount --bind "$0" /etc/resolv.conf; exec "$@"'
    guest = [*FASTPATH, "run", "--", "sh", "-c", "cat /etc/resolv.conf; env"]
    done = subprocess.run(
        [*own_mounts, script, host, *guest],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:3] == [
        "nameserver 198.18.0.53",
        "search corp.example svc.example",
        "options ndots:3 timeout:4 attempts:1",
    ]
    assert "resolv_" not in done.stdout


def test_the_guests_name_is_its_own_address():
    done = run("sh", "-c", "hostname; hostname -i; grep guest_name /proc/self/environ")
    assert done.returncode == 1  # grep finds nothing
    name, *addresses = done.stdout.decode().split()
    assert name == "fastpath"
    assert "10.200.1.2" in addresses


def test_a_program_outlives_its_agent():
    done = run(
        *("sh", "-c", "kill -9 $PPID; sleep 1; echo still here; exit 7"),
        options=AGENT,
    )
    assert (done.returncode, done.stdout) == (7, b"still here\n")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo c > /proc/sysrq-trigger; sleep 9", b"the guest panicked"),
        (KILL_AGENTS, b"tsi-agent: killed by signal 9"),
    ],
    ids=["panic", "agent"],
)
def test_a_guest_that_dies_is_an_error_that_names_the_console_log(
    script, why, tmp_path
):
    done = run("sh", "-c", script, options=AGENT)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert why in done.stderr
    (left,) = left_behind(tmp_path)
    assert left.endswith("/console.log")
    assert str(tmp_path / left).encode() in done.stderr


def test_a_qemu_that_is_missing_is_an_error_with_its_hint(tmp_path):
    done = run("true", options=("--qemu", "/nonexistent/qemu", "--accel", "tcg"))
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"/nonexistent/qemu" in done.stderr
    assert b"hint: " in done.stderr
    assert left_behind(tmp_path) == []


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")

    def log_message(self, *_args):
        pass


@pytest.fixture
def server():
    """A server on an address of ours that the guest does not take for its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks for the route
        except OSError:
            pytest.skip("no address but loopback")
        host = probe.getsockname()[0]
    with ThreadingHTTPServer((host, 0), _Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{host}:{server.server_port}/"
        server.shutdown()


def test_destinations_are_dialled_from_where_we_are(server):
    done = run("wget", "-q", "-O", "-", server)
    assert (done.returncode, done.stdout) == (0, b"hello\n")


@pytest.fixture
def foreign(base_image, tmp_path):
    """Options for a guest whose tsi_inet was built for another kernel."""
    module = (base_image.initramfs.parent / "tsi_inet.ko").read_bytes()
    magic = f"vermagic={base_image.kernel_release} SMP".encode()
    assert module.count(magic) == 1
    (tmp_path / "ko").write_bytes(module.replace(magic, magic[:-3] + b"UP "))
    there = f"/lib/modules/{base_image.kernel_release}/tsi_inet.ko"
    return ("--file", f"{tmp_path}/ko:{there}")


@pytest.fixture
def without(base_image, tmp_path):
    """Options for a guest that has no tsi_inet: its kernel is as Debian has it."""
    order = f"/lib/modules/{base_image.kernel_release}/order"
    names = run("cat", order).stdout.splitlines(keepends=True)
    names.remove(b"tsi_inet.ko\n")
    (tmp_path / "order").write_bytes(b"".join(names))
    return ("--file", f"{tmp_path}/order:{order}")


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        ("foreign", "tsi_inet: Exec format error"),
        ("without", "no tsi_inet for this kernel"),
    ],
)
def test_an_agent_has_the_sockets_where_no_module_loads(request, server, guest, why):
    options = request.getfixturevalue(guest)
    done = run("wget", "-qO-", server, options=options)
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    assert done.stderr.decode() == f"fastpath: sockets by the agent: {why}\n"


def test_a_module_that_must_be_there_and_is_not_ends_the_run(foreign, tmp_path):
    done = run("true", options=("--sockets", "module", *foreign))
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"'init: tsi_inet: Exec format error'" in done.stderr
    (left,) = left_behind(tmp_path)
    console = (tmp_path / left).read_bytes()
    assert console.count(b"tsi_inet: Exec format error") == 1


def test_allow_opens_what_is_denied_and_closes_nothing(server):
    options = ("--allow", "169.254.1.1/32:80")
    done = run("wget", "-q", "-O", "-", server, options=options)
    assert (done.returncode, done.stdout) == (0, b"hello\n")


POLICY = "egress: {{allow: ['0.0.0.0/0'], deny: ['{}'], errno: EACCES}}\n"
AGAIN = """
url=$1
wget -q -O - $url && wget -q -O - $url
echo ready
while wget -q -O /dev/null $url; do sleep 0.1; done
wget -O - $url
echo denied
while ! wget -q -O - $url; do sleep 0.1; done
"""


def test_a_policy_that_changes_while_the_program_runs(server, tmp_path):
    policy, log = tmp_path / "policy.yaml", tmp_path / "access.log"
    policy.write_text("{}")
    address = server.removeprefix("http://").rstrip("/")
    options = ("--policy", policy, "--access-log", log, "--timeout", str(TIMEOUT_S))
    process = subprocess.Popen(
        [*FASTPATH, "run", *options, "--", "sh", "-c", AGAIN, "sh", server],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(3)]
            assert said == ["hello\n", "hello\n", "ready\n"]
            policy.write_text(POLICY.format(address))
            assert process.stdout.readline() == "denied\n"
            policy.write_text("udp: maybe\n")
            policy.write_text("{}\n")
            assert process.stdout.readline() == "hello\n"
            _, errors = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Permission denied" in errors
    assert f"run: new policy from {policy}" in errors
    denied = [line for line in log.read_text().splitlines() if "\twarn\t" in line]
    assert denied
    for line in denied:
        assert f"dst.addr={address} " in line
        assert 'src.identity="spiffe://cluster.local/ns/default/sa/default"' in line
        assert "denied by" in line


def test_a_policy_file_with_an_error_is_one_line_and_nothing_boots(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("egress:\n  allow: [10.0.0.0/33]\n")
    done = run("true", options=("--policy", str(policy)))
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert f"{policy}:2: egress.allow[0]: ".encode() in done.stderr
    assert b"; hint: write PREFIX or PREFIX:PORTS" in done.stderr


SERVE = "mkdir /www; echo hello > /www/index.html; exec httpd -f -p 80 -h /www"


def fetched(port):
    """What a client of this host gets; None: it is refused, or reset."""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return sock.makefile("rb").read().partition(b"\r\n\r\n")[2]
    except ConnectionError:
        return None


def eventually(process, port, wanted):
    def is_so():
        assert process.poll() is None
        return fetched(port) == wanted

    wait_until(is_so, limit_s=TIMEOUT_S)


@pytest.mark.parametrize("with_policy", [False, True], ids=["alone", "policy"])
def test_a_published_port_is_reachable(tmp_path, with_policy):
    port = free_port()
    policy = tmp_path / "policy.yaml"
    policy.write_text("published: [80]\n")
    options = ["--publish", f"{port}:80"]
    if with_policy:
        options += ["--policy", str(policy)]
    process = subprocess.Popen(
        [*FASTPATH, "run", *options, "--", "sh", "-c", SERVE],
        stdin=subprocess.DEVNULL,
    )
    with process:
        try:
            eventually(process, port, b"hello\n")
            if with_policy:
                policy.write_text("{}\n")
                eventually(process, port, None)
                policy.write_text("published: [80]\n")
                eventually(process, port, b"hello\n")
            process.terminate()
            process.wait(TIMEOUT_S)
        finally:
            process.kill()
    assert fetched(port) is None


def test_a_port_to_publish_that_the_policy_does_not_is_one_line(tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("published: [81]\n")
    done = run("true", options=("--policy", str(policy), "--publish", "8080:80"))
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"does not publish port 80; hint: add it to `published`" in done.stderr
