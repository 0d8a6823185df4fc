"""UDP and names over TSI: real programs in two microVMs of one ztunnel.

Sandbox "on" may use UDP, "off" may not until its policy changes; both may ask for
names. As in
test_tsi_outbound.py, the host's side lives in a thread inside a network namespace of
its own, where 192.0.2.1 and 2001:db8::1 are addresses of `lo`. The resolver that
ztunnel forwards to listens on that namespace's loopback.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import os
import re
import shutil
import socket
import subprocess
import threading
from ipaddress import ip_address
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from fastpath.datapath import netns
from fastpath.datapath.netns import Namespace
from fastpath.vm import images, packages
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec
from fastpath.ztunnel.model import (
    Config,
    Fastpath,
    ListenAddress,
    NamespacedHostname,
    NetworkAddress,
    Sandbox,
    Service,
    Workload,
)
from fastpath.ztunnel.process import Ztunnel

pytestmark = pytest.mark.vm

HERE = Path(__file__).parent
HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
POD4, POD6 = "10.0.0.5", "fd00::5"
VIP = "10.96.0.10"
ECHO, OTHER, HTTP = 7007, 7008, 8080
RESOLVER = ("127.0.0.1", 5353)
POLICIES = {"on": "udp: true\n", "off": "egress: {errno: EACCES}\n"}
C_CHECKS = re.findall(
    r"^    (?:CHECK|SANDBOX)\((\w+)\),",
    (HERE / "udp_client.c").read_text(),
    re.MULTILINE,
)
NETWORK = f"""
ip link set lo up
ip addr add {HOST4}/32 dev lo
ip addr add {HOST6}/128 dev lo nodad
"""
NAMES = {
    ("one.example.", "A"): [HOST4],
    ("one.example.", "AAAA"): [HOST6],
    ("big.example.", "A"): [f"10.1.0.{i}" for i in range(100)],
}


def config(folder):
    web = NamespacedHostname("default", "web.default.svc.cluster.local")
    db = NamespacedHostname("default", "db.default.svc.cluster.local")
    pods = tuple(
        Workload(
            workload_ips=(ip_address(POD4) + i, ip_address(POD6) + i),
            namespace="default",
            name=name,
        )
        for i, name in enumerate(POLICIES)
    )
    server = Workload(
        workload_ips=(ip_address(HOST4), ip_address(HOST6)),
        namespace="default",
        name="server",
        services={web: {80: HTTP}, db: {5432: 0}},
    )
    services = (
        Service(
            name="web",
            namespace=web.namespace,
            hostname=web.hostname,
            vips=(NetworkAddress("", ip_address(VIP)),),
            ports={80: HTTP},
        ),
        Service(
            name="db",
            namespace=db.namespace,
            hostname=db.hostname,
            vips=(),
            ports={5432: 5432},
        ),
    )
    sandboxes = tuple(
        Sandbox(
            name=name,
            workload=f"default/{name}",
            socket=folder / f"{name}.vhost",
            cid=3 + i,
            uds_path=folder / f"{name}.vsock",
            policy=folder / f"{name}.yaml",
        )
        for i, name in enumerate(POLICIES)
    )
    return Config(
        workloads=(*pods, server),
        services=services,
        fastpath=Fastpath(
            sandboxes=sandboxes,
            resolvers=(ListenAddress(ip_address(RESOLVER[0]), RESOLVER[1]),),
            access_log=folder / "access.log",
        ),
    )


def answer(wire, *, tcp):
    """What the resolver says."""
    query = dns.message.from_wire(wire)
    question = query.question[0]
    kind = dns.rdatatype.to_text(question.rdtype)
    name = question.name.to_text().lower()
    reply = dns.message.make_response(query, recursion_available=True)
    found = NAMES.get((name, kind))
    if found:
        rrset = dns.rrset.from_text_list(question.name, 60, "IN", kind, found)
        reply.answer.append(rrset)
    elif not any(known == name for known, _ in NAMES):
        reply.set_rcode(dns.rcode.NXDOMAIN)
    if not tcp and len(reply.to_wire()) > 512:
        reply.answer.clear()
        reply.flags |= dns.flags.TC
    return reply.to_wire()


def serve_udp(loop, address, respond):
    """Answer datagrams; empty ones, too, which asyncio's transport does not send."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind(address)

    def ready():
        data, peer = sock.recvfrom(65536)
        sock.sendto(respond(data), peer)

    loop.add_reader(sock, ready)
    return sock


async def serve_dns(reader, writer):
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            size = int.from_bytes(await reader.readexactly(2))
            said = answer(await reader.readexactly(size), tcp=True)
            writer.write(len(said).to_bytes(2) + said)
    writer.close()


async def serve_http(reader, writer):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
        await writer.drain()
    writer.close()


class World:
    """Two VMs, their ztunnel and servers, and the thread that all live in."""

    def __init__(self, specs, folder, namespace):
        self._specs = specs
        self._folder = folder
        self._namespace = namespace
        self._ready = threading.Event()
        self._error = None
        self._machines = {}
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

    def run(self, *argv, sandbox="on", timeout_s=60, **options):
        """Run a command in a guest; return its status and what it printed."""
        machine, guest = self._machines[sandbox]

        async def bounded():
            said = bytearray()
            async with asyncio.timeout(timeout_s):
                work = guest.run(
                    argv, tsi=True, stdout=said.extend, stderr=said.extend, **options
                )
                status = await machine.watch(work)
            return status, said.decode(errors="replace")

        return self.call(bounded())

    def sh(self, script, **options):
        return self.run("sh", "-c", script, **options)

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stats(self, sandbox):
        async def read():
            return self.ztunnel.sandboxes[sandbox].datagrams.stats()

        return self.call(read())

    def wait(self, sandbox, condition):
        """Wait until what runs for a sandbox is so."""

        async def poll():
            async with asyncio.timeout(30):
                while not condition(self.ztunnel.sandboxes[sandbox]):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        self.call(poll())

    def set_policy(self, sandbox, text):
        """Write another policy, and wait until it is in force."""

        def replaced(running):
            return running.service.policy is not before

        before = self.ztunnel.sandboxes[sandbox].service.policy
        (self._folder / f"{sandbox}.yaml").write_text(text)
        self.wait(sandbox, replaced)

    def logged(self, text):
        """Wait for a line in the access log with this text, and return it."""

        async def find():
            path = self._folder / "access.log"
            async with asyncio.timeout(10):
                while True:
                    for line in path.read_text().splitlines():
                        if text in line:
                            return line
                    await asyncio.sleep(0.1)

        return self.call(find())

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
        self._loop = loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            for host in (HOST4, HOST6):
                for port in (ECHO, OTHER):
                    sock = serve_udp(loop, (host, port), lambda data: data)
                    stack.callback(sock.close)
            sock = serve_udp(loop, RESOLVER, lambda data: answer(data, tcp=False))
            stack.callback(sock.close)
            for handler, address in (
                (serve_dns, RESOLVER),
                (serve_http, (HOST4, HTTP)),
            ):
                server = await asyncio.start_server(handler, *address)
                stack.callback(server.close)
            self.ztunnel = await stack.enter_async_context(
                Ztunnel(config(self._folder))
            )
            for name, spec in self._specs.items():
                uds_path = self._folder / f"{name}.vsock"
                guest = await stack.enter_async_context(
                    Guest(uds_path, console=spec.console)
                )
                machine = await stack.enter_async_context(Machine(spec))
                await machine.watch(guest.ready())
                self._machines[name] = machine, guest
            self._ready.set()
            await self._stop.wait()


@pytest.fixture(scope="module")
def namespace():
    if not netns.may_configure():
        pytest.skip("CAP_NET_ADMIN is missing: run as root, or under unshare -Urn")
    with Namespace() as there:
        there.run(subprocess.run, ["sh", "-ec", NETWORK], check=True)
        yield there


def musl(folder):
    """Unpack Debian's musl; return what a compiler needs to link with it."""
    with images.locked(images.cache_directory() / "lock"):
        archive = packages.Archive(images.cache_directory(), "bookworm")
        archive.update()
        debs = archive.fetch(archive.resolve(["musl-dev"]), lambda _share: None)
    for deb in debs:
        subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
    lib = folder / "usr/lib/x86_64-linux-musl"
    include = folder / "usr/include/x86_64-linux-musl"
    return (
        *("-nostdinc", "-isystem", include, "-nostdlib", "-static"),
        *(lib / "crt1.o", lib / "crti.o", HERE / "resolve.c"),
        *(lib / "libc.a", "-lgcc", lib / "crtn.o"),
    )


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """The clients, compiled: path in the guest -> file."""
    out = tmp_path_factory.mktemp("clients")
    cc = ["cc", "-O2", "-static", "-pthread", "-o"]
    subprocess.run([*cc, out / "c", HERE / "udp_client.c"], check=True)
    subprocess.run(["cc", "-O2", "-o", out / "musl", *musl(out)], check=True)
    go = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off"}
    go_build = ["go", "build", "-o", out / "go", HERE / "udp_client.go"]
    subprocess.run(go_build, check=True, env=go)
    return {
        "/bin/udp_client": out / "c",
        "/bin/udp_client_go": out / "go",
        "/bin/resolve_musl": out / "musl",
        "/udp_client.py": HERE / "udp_client.py",
    }


@pytest.fixture(scope="module")
def world(apps_image, accelerator, clients, namespace):
    folder = Path(f"/tmp/udp-{os.getpid()}")
    folder.mkdir()
    try:
        image = images.with_files(apps_image, clients, folder / "initramfs")
        specs = {
            name: VmSpec(
                image=image,
                accel=accelerator,
                vsock_socket=folder / f"{name}.vhost",
                console=folder / f"{name}.console",
                qmp=folder / f"{name}.qmp",
            )
            for name in POLICIES
        }
        for name, policy in POLICIES.items():
            (folder / f"{name}.yaml").write_text(policy)
        with World(specs, folder, namespace) as there:
            yield there
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def c_results(world):
    """The C client's line for each check."""
    env = {"POD_IPV4": POD4}
    _, said = world.run("udp_client", HOST4, HOST6, env=env, timeout_s=240)
    lines = said.splitlines()
    return {line.split()[1].rstrip(":"): line for line in lines[:-1]}


@pytest.mark.parametrize("name", C_CHECKS)
def test_the_c_client_sees_what_udp_does(c_results, name):
    assert c_results.get(name) == f"ok {name}"


def test_the_c_client_sees_the_same_over_native_udp(world, namespace, clients):
    """Else the checks would state what TSI does, not what UDP does."""
    done = subprocess.run(
        namespace.command([str(clients["/bin/udp_client"]), HOST4, HOST6]),
        env={**os.environ, "NATIVE": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


def test_python_programs(world):
    status, said = world.run("python3", "/udp_client.py", HOST4, timeout_s=120)
    assert status == 0, said


def test_go_programs(world):
    status, said = world.run("udp_client_go", HOST4, timeout_s=120)
    assert status == 0, said


@pytest.mark.parametrize("sandbox", ["on", "off"])
@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("getent hosts web.default.svc.cluster.local", VIP),
        ("getent ahosts one.example", HOST6),
        ("resolve_musl web.default.svc.cluster.local", VIP),
        ("resolve_musl one.example", HOST6),
        ("nslookup web.default.svc.cluster.local", VIP),
        ("nslookup one.example", HOST6),
        ("ping -c 1 -w 1 one.example", f"({HOST4})"),
    ],
)
def test_names_are_found(world, sandbox, command, found):
    assert found in world.sh(command, sandbox=sandbox)[1]


@pytest.mark.parametrize("sandbox", ["on", "off"])
@pytest.mark.parametrize(
    "url",
    ["http://web.default.svc.cluster.local/", f"http://one.example:{HTTP}/"],
)
@pytest.mark.parametrize("program", ["curl -sS", "wget -q -O -"])
def test_programs_fetch_by_name(world, sandbox, program, url):
    assert world.sh(f"{program} {url}", sandbox=sandbox) == (0, "hello\n")


def test_names_over_tcp(world):
    status, said = world.sh(
        "echo options use-vc >> /etc/resolv.conf; getent hosts web."
    )
    world.sh("sed -i /use-vc/d /etc/resolv.conf")
    assert (status, said.split()[0]) == (0, VIP)


def test_any_address_answers_on_port_53(world):
    for server in ("10.96.0.53", "169.254.169.253"):
        status, said = world.sh(f"nslookup one.example {server}", sandbox="off")
        assert status == 0, said
        assert HOST4 in said


def test_a_sandbox_without_udp_gets_the_policys_errno(world):
    env = {"DENIED": "13"}  # EACCES
    status, said = world.run(
        "udp_client", HOST4, HOST6, env=env, sandbox="off", timeout_s=60
    )
    assert status == 0, said
    stats = world.stats("off")
    assert stats.denied >= 1
    assert stats.sent == 0
    line = world.logged("UDP is switched off")
    assert "datagrams denied" in line
    assert 'src.workload="off"' in line
    assert 'src.identity="spiffe://cluster.local/ns/default/sa/default"' in line
    assert f"dst.addr={HOST4}:{ECHO}" in line


TALK = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], int(sys.argv[2])))
sock.send(b"ping")
print(sock.recv(100).decode())
try:
    sock.recv(100)
except OSError as error:
    print(error.strerror)
"""


def test_udp_that_is_switched_off_ends_under_the_program(world):
    before = world.stats("off").received
    world.set_policy("off", POLICIES["off"] + "udp: true\n")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        program = pool.submit(
            world.run, "python3", "-c", TALK, HOST4, str(ECHO), sandbox="off"
        )
        world.wait("off", lambda it: it.datagrams.stats().received > before)
        world.set_policy("off", POLICIES["off"])
        assert program.result() == (0, "ping\nNo route to host\n")
    stats = world.stats("off")
    assert (stats.flows, stats.ended) == (0, 1)
    status, said = world.sh("getent hosts web.", sandbox="off")
    assert (status, said.split()[0]) == (0, VIP)


def test_the_other_namespace_of_a_container_reaches_out_too(world):
    script = "import socket; print(socket.getaddrinfo('web.', 80)[0][4][0])"
    status, said = world.sh(f'unshare -n python3 -c "{script}"')
    assert (status, said) == (0, f"{VIP}\n")


SURVIVOR = f"""
import os, socket, threading, time

def kill():
    assert os.system("kill -9 $(pidof tsi-agent)") == 0

def ask(sock):
    while True:
        try:
            sock.send(b"x")
            return sock.recv(10)
        except ConnectionRefusedError:  # nobody stood there just then
            time.sleep(0.05)

there = ("{HOST4}", {ECHO})
connected, free = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
connected.connect(there)
assert ask(connected) == b"x"
free.sendto(b"a", there)
assert free.recvfrom(10) == (b"a", there)
kill()
assert connected.getpeername() == there
assert ask(connected) == b"x"
free.sendto(b"b", there)
assert free.recvfrom(10) == (b"b", there)
got = []
waits = threading.Thread(target=lambda: got.append(free.recvfrom(10)))
waits.start()
time.sleep(0.5)
kill()
free.sendto(b"c", there)
waits.join()
assert got == [(b"c", there)], got
free.settimeout(0.5)
late = threading.Thread(target=lambda: got.append(times_out()))
def times_out():
    try:
        free.recvfrom(10)
    except TimeoutError:
        return "timeout"
late.start()
time.sleep(0.1)
kill()
late.join()
assert got[1:] == ["timeout"], got
assert socket.getaddrinfo("web.", 80)[0][4][0] == "{VIP}"
print("survived")
"""


def test_an_agents_death_is_survived(world):
    """By sockets that are connected and not, and by calls that wait."""
    assert world.run("python3", "-c", SURVIVOR) == (0, "survived\n")


def test_flows_end_with_the_agent(world):
    assert world.sh(f"python3 /udp_client.py {HOST4}")[0] == 0
    assert world.sh("true")[0] == 0
    stats = world.stats("on")
    assert (stats.streams, stats.flows) == (0, 0)
