"""TSI, outbound: real programs in one microVM against servers on the host.

One VM for the module, over an engine and a `TsiService` of this process. All of the
host's side lives in a thread inside a network namespace of its own, where 192.0.2.1
and 2001:db8::1 are addresses of `lo`: the guest keeps 127.0.0.0/8 to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from fastpath.datapath import netns
from fastpath.datapath.netns import Namespace
from fastpath.errors import FastpathError
from fastpath.tsi.policy import EgressPolicy
from fastpath.tsi.service import Route, TsiService
from fastpath.vm import images
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec
from vhost_user.backend import Backend
from vhost_user.engine import ALL_EVENTS, Dial, Discard, Engine, EventKind, Reset, Unix
from vhost_user.vsock.device import VsockDevice

pytestmark = pytest.mark.vm

HERE = Path(__file__).parent
HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
POD4, POD6 = "10.0.0.5", "fd00::5"
ECHO, SLOW, HTTP, SILENT = 7007, 7500, 8080, 9999
DISCARD = ("198.18.0.1", 9)
SLOW_S = 0.5
C_CHECKS = re.findall(
    r"^    (?:CHECK|SANDBOX)\((\w+)\),",
    (HERE / "tsi_client.c").read_text(),
    re.MULTILINE,
)
NETWORK = f"""
ip link set lo up
ip addr add {HOST4}/32 dev lo
ip addr add {HOST6}/128 dev lo
ip route add unreachable 198.51.100.0/24
iptables -A INPUT -p tcp --dport {SILENT} -j DROP
"""


class Router:
    """Default policy; counts what it hears."""

    def __init__(self):
        self.policy = EgressPolicy()
        self.asked = []
        self.events = []

    def set_policy(self, policy):
        self.policy = policy.egress

    def route(self, destination, conn):
        self.asked.append(destination)
        if destination == DISCARD:
            return Route(Discard(), cacheable=True)
        denial = self.policy.check(destination)
        if denial is not None:
            return Route(Reset(denial.error), cacheable=False)
        return Route(Dial(destination), cacheable=destination[1] != SLOW)

    def opened(self, event, destination):
        self.events.append((EventKind.OPENED, destination))

    def failed(self, event, destination):
        self.events.append((EventKind.FAILED, destination))

    def closed(self, event, destination):
        self.events.append((EventKind.CLOSED, destination))


class SlowService(TsiService):
    """Takes its time to answer for one port: a host that is far away."""

    def _answer(self, conn, token, destination):
        answer = super()._answer
        if destination[1] == SLOW:
            loop = asyncio.get_running_loop()
            loop.call_later(SLOW_S, answer, conn, token, destination)
        else:
            answer(conn, token, destination)


async def echo(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def http(reader, writer):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
        await writer.drain()
    writer.close()


class World:
    """The VM, its host side, and the thread that they live in."""

    def __init__(self, spec, uds_path, namespace):
        self._spec = spec
        self._uds_path = uds_path
        self._namespace = namespace
        self._ready = threading.Event()
        self._error = None
        self.router = Router()
        self._thread = threading.Thread(target=self._main)

    def __enter__(self):
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *exc):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def run(self, *argv, tsi=True, timeout_s=60, **options):
        """Run a command in the guest; return its status and what it printed."""

        async def bounded():
            said = bytearray()
            async with asyncio.timeout(timeout_s):
                status = await self.machine.watch(
                    self.guest.run(
                        argv,
                        tsi=tsi,
                        stdout=said.extend,
                        stderr=said.extend,
                        **options,
                    )
                )
            return status, said.decode(errors="replace")

        return self.call(bounded())

    def sh(self, script, **options):
        return self.run("sh", "-c", script, **options)

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stats(self):
        async def read():
            return self.device.handle.stats(), self.service.stats()

        return self.call(read())

    def _main(self):
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            assert libc.setns(self._namespace.fileno(), 0x40000000) == 0
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self):
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            for host in (HOST4, HOST6):
                for handler, port in ((echo, ECHO), (echo, SLOW), (http, HTTP)):
                    server = await asyncio.start_server(
                        handler, host, port, backlog=4096
                    )
                    stack.callback(server.close)
            engine = await stack.enter_async_context(Engine())
            await self._start_device(engine, stack)
            self.guest = await stack.enter_async_context(
                Guest(self._uds_path, console=self._spec.console)
            )
            self.machine = await stack.enter_async_context(Machine(self._spec))
            await self.machine.watch(self.guest.ready())
            self._ready.set()
            await self._stop.wait()

    async def _start_device(self, engine, stack):
        self.device = VsockDevice(
            engine,
            guest_cid=3,
            on_event=lambda event: self.service.handle_event(event),
            want=ALL_EVENTS,
        )
        stack.callback(self.device.close)
        self.service = SlowService(
            engine,
            self.device,
            self.router,
            addresses=[POD4, POD6],
            name="test",
            other=Unix(str(self._uds_path)),
        )
        stack.callback(self.service.close)
        backend = Backend(self._spec.vsock_socket, self.device, name="test")
        stack.push_async_callback(backend.close)
        await backend.start()


@pytest.fixture(scope="module")
def namespace():
    if not netns.may_configure():
        pytest.skip("CAP_NET_ADMIN is missing: run as root, or under unshare -Urn")
    with Namespace() as there:
        there.run(subprocess.run, ["sh", "-ec", NETWORK], check=True)
        yield there


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """The clients, compiled: path in the guest -> file."""
    out = tmp_path_factory.mktemp("clients")
    subprocess.run(
        ["cc", "-O2", "-static", "-pthread", "-o", out / "c", HERE / "tsi_client.c"],
        check=True,
    )
    found = {"/bin/tsi_client": out / "c", "/tsi_client.py": HERE / "tsi_client.py"}
    if shutil.which("go"):
        subprocess.run(
            ["go", "build", "-o", out / "go", HERE / "tsi_client.go"],
            check=True,
            env={**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off"},
        )
        found["/bin/tsi_client_go"] = out / "go"
    return found


@pytest.fixture(scope="module")
def world(apps_image, accelerator, clients, namespace, tmp_path_factory):
    folder = Path(f"/tmp/tsi-{os.getpid()}")
    folder.mkdir()
    try:
        spec = VmSpec(
            image=images.with_files(apps_image, clients, folder / "initramfs"),
            accel=accelerator,
            vsock_socket=folder / "vhost",
            console=folder / "console",
            qmp=folder / "qmp",
            memory_mib=1024,
        )
        with World(spec, folder / "vsock", namespace) as there:
            yield there
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def c_results(world):
    """The C client's line for each check."""
    env = {"POD_IPV4": POD4}
    _, said = world.run("tsi_client", HOST4, HOST6, env=env, timeout_s=240)
    lines = said.splitlines()
    return {line.split()[1].rstrip(":"): line for line in lines[:-1]}


@pytest.mark.parametrize("name", C_CHECKS)
def test_the_c_client_sees_what_tcp_does(c_results, name):
    assert c_results.get(name) == f"ok {name}"


def test_the_c_client_sees_the_same_over_native_tcp(world, namespace, clients):
    """Else the checks would state what TSI does, not what TCP does."""
    done = subprocess.run(
        namespace.command([str(clients["/bin/tsi_client"]), HOST4, HOST6]),
        env={**os.environ, "NATIVE": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


def test_go_programs(world, clients):
    if "/bin/tsi_client_go" not in clients:
        pytest.skip("go is not installed (Debian package golang-go)")
    status, said = world.run("tsi_client_go", HOST4)
    assert status == 0, said


def test_python_programs(world):
    status, said = world.run("python3", "/tsi_client.py", HOST4, timeout_s=120)
    assert status == 0, said


@pytest.mark.parametrize(
    "command",
    [
        f"wget -q -O - http://{HOST4}:{HTTP}/",
        f"wget -q -O - http://[{HOST6}]:{HTTP}/",
        f"curl -sS http://{HOST4}:{HTTP}/",
        f"curl -sS http://[{HOST6}]:{HTTP}/",
    ],
)
def test_programs_fetch(world, command):
    assert world.sh(command) == (0, "hello\n")


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (f"curl -sS http://{HOST4}:8081/", 7, ""),
        ("curl -sS http://198.51.100.1/", 7, ""),
        (f"curl -sS -m 1 http://{HOST4}:{SILENT}/", 28, "timed out"),
        (f"wget -q -O - http://{HOST4}:8081/", 1, "Connection refused"),
        ("wget -q -O - http://198.51.100.1/", 1, "No route to host"),
        (f"nc -w 1 {HOST4} {SILENT} < /dev/null", 1, "timed out"),
        ("wget -q -O - http://169.254.169.254/", 1, "Connection refused"),
    ],
)
def test_programs_say_why_they_cannot(world, command, status, message):
    found, said = world.sh(command)
    assert found == status
    assert message in said


def test_a_destination_is_decided_once(world):
    world.router.asked.clear()
    script = "; ".join([f"wget -q -O - http://{HOST4}:{HTTP}/"] * 5)
    status, said = world.sh(script)
    assert (status, said) == (0, "hello\n" * 5)
    assert world.router.asked == [(HOST4, HTTP)]


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)],
)
def test_the_agents_exit_status_is_the_commands(world, script, status):
    assert world.sh(script)[0] == status


def test_a_command_that_is_not_there(world):
    status, said = world.run("no-such-program")
    assert status == 127
    assert "no-such-program" in said
    assert world.run("/etc/passwd")[0] == 126


def test_signals_reach_the_command(world):
    script = "trap 'echo got it; exit 5' TERM; kill -TERM $PPID; sleep 5 & wait"
    assert world.sh(script) == (5, "got it\n")


def test_a_second_agent_above_the_first_says_so(world):
    status, said = world.sh("tsi-agent -- true; echo $?")
    assert status == 0
    assert "tsi-agent: another agent" in said
    assert said.endswith("\n125\n")


def test_what_the_command_leaves_behind_still_connects(world):
    later = f"sleep 1; wget -q -O /tmp/later http://{HOST4}:{HTTP}/"
    assert world.sh(f"({later}) > /dev/null 2>&1 &")[0] == 0
    status, said = world.sh("sleep 2; cat /tmp/later", tsi=False)
    assert (status, said) == (0, "hello\n")


SHORT = f"""
import asyncio

async def one(gate):
    async with gate:
        reader, writer = await asyncio.open_connection("{HOST4}", {ECHO})
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        writer.close()
        await writer.wait_closed()

async def main():
    gate = asyncio.Semaphore(64)
    await asyncio.gather(*(one(gate) for _ in range(1000)))

asyncio.run(main())
"""
SHORT_TWICE = """
cat > /tmp/short.py
agent=$(cut -d' ' -f4 /proc/$$/stat)
measure() { ls /proc/$agent/fd | wc -l; awk '/VmRSS/ {print $2}' /proc/$agent/status; }
python3 /tmp/short.py
measure
python3 /tmp/short.py
python3 /tmp/short.py
measure
"""


def test_short_connections_leave_nothing(world):
    status, said = world.sh(SHORT_TWICE, stdin=SHORT.encode(), timeout_s=120)
    assert status == 0, said
    fds, rss_kib, fds_later, rss_later_kib = map(int, said.split())
    assert fds_later <= fds
    assert rss_later_kib <= rss_kib + 64
    device, service = world.stats()
    assert service.streams == 0
    assert device.conns <= 1 + 8  # init's own, and dials that never end


def test_the_log_has_every_connection(world):
    world.router.events.clear()
    script = "; ".join([f"wget -q -O /dev/null http://{HOST4}:{HTTP}/"] * 20)
    assert world.sh(script)[0] == 0
    world.sh("true", tsi=False)
    kinds = [kind for kind, _ in world.router.events]
    assert kinds.count(EventKind.OPENED) == kinds.count(EventKind.CLOSED) == 20


def test_an_agent_that_is_killed_ends_the_command_with_an_error(world):
    with pytest.raises(FastpathError, match="tsi-agent: killed by signal 9"):
        world.sh("kill -9 $PPID; sleep 5")
