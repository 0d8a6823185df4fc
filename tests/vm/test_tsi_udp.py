"""UDP and names over TSI: real programs in microVMs of one ztunnel.

Sandbox "on" may use UDP, "off" may not until its policy changes, and "agent" may, but
has no kernel module of ours; all may ask for names. The resolver that ztunnel forwards
to listens on the loopback of the namespace that the host's side lives in.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import subprocess
from ipaddress import ip_address
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from fastpath.tsi.datagram_stream import DatagramStream
from fastpath.ztunnel.model import (
    Config,
    Fastpath,
    ListenAddress,
    NamespacedHostname,
    NetworkAddress,
    Service,
    Workload,
)
from tests.vm import programs
from tests.vm.world import (
    ECHO,
    HOST4,
    HOST6,
    HTTP,
    POD4,
    PODS,
    ZtunnelWorld,
    http,
    open_world,
)

pytestmark = pytest.mark.vm

HERE = Path(__file__).parent
VIP = "10.96.0.10"
OTHER = 7008
UNJUDGED_PORT, N_UNJUDGED = 20000, 40
"""Peers that the host does not judge."""
RESOLVER = ("127.0.0.1", 5353)
POLICIES = {
    "on": "udp: true\n",
    "off": "egress: {errno: EACCES}\n",
    "agent": "udp: true\n",
}
UDP_CLIENT = ("python3", "-m", "tests.vm.udp_client", HOST4)
C_CHECKS = programs.checks("udp")
NAMES = {
    ("one.example.", "A"): [HOST4],
    ("one.example.", "AAAA"): [HOST6],
    ("big.example.", "A"): [f"10.1.0.{i}" for i in range(100)],
}


def host_mesh():
    """A service at a VIP and one without, both on the host, and the resolver."""
    web = NamespacedHostname("default", "web.default.svc.cluster.local")
    db = NamespacedHostname("default", "db.default.svc.cluster.local")
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
    resolver = ListenAddress(ip_address(RESOLVER[0]), RESOLVER[1])
    return Config(
        workloads=(server,),
        services=services,
        fastpath=Fastpath(resolvers=(resolver,)),
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


class World(ZtunnelWorld):
    """Two VMs, their ztunnel and its resolver, and servers on the host."""

    policies = POLICIES
    mesh = host_mesh()

    def stats(self, vm):
        return self.ask(vm, lambda it: it.datagrams.stats())

    async def start(self, stack):
        loop = asyncio.get_running_loop()
        for host in (HOST4, HOST6):
            for port in (ECHO, OTHER):
                sock = serve_udp(loop, (host, port), lambda data: data)
                stack.callback(sock.close)
        sock = serve_udp(loop, RESOLVER, lambda data: answer(data, tcp=False))
        stack.callback(sock.close)
        for handler, address in ((serve_dns, RESOLVER), (http, (HOST4, HTTP))):
            server = await asyncio.start_server(handler, *address)
            stack.callback(server.close)
        await super().start(stack)


def with_musl(out, source):
    """Compile a static program with Debian's musl; return `out`."""
    root = out.parent
    programs.unpack_musl(root)
    lib = root / programs.MUSL_LIB
    include = ("-nostdinc", "-isystem", root / programs.MUSL_INCLUDE)
    start = (lib / "crt1.o", lib / "crti.o")
    end = (lib / "libc.a", "-lgcc", lib / "crtn.o")
    linked = ("-nostdlib", "-static", *start, source, *end)
    subprocess.run(["cc", "-O2", "-o", out, *include, *linked], check=True)
    return out


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """The clients, compiled: path in the guest -> file."""
    out = tmp_path_factory.mktemp("clients")
    return {
        "/bin/udp_client": programs.compile_c(out / "c", *programs.c_files("udp")),
        "/bin/udp_client_go": programs.compile_go(out / "go", HERE / "udp_client.go"),
        "/bin/resolve_musl": with_musl(out / "musl", HERE / "resolve.c"),
        **programs.python_checks("udp_client.py"),
    }


@pytest.fixture(scope="module")
def world(apps_image, accelerator, clients, namespace):
    with open_world(
        apps_image, accelerator, clients, namespace, kind=World, memory_mib=512
    ) as there:
        yield there


@pytest.fixture(scope="module")
def c_results(world):
    """The C client's line for each check, by sandbox."""
    env = {"on": {"POD_IPV4": POD4}, "agent": {"POD_IPV4": PODS[2][0], "AGENT": "1"}}
    return {
        name: programs.results(
            world.run("udp_client", HOST4, HOST6, vm=name, env=each)[1]
        )
        for name, each in env.items()
    }


@pytest.mark.parametrize("sandbox", ["on", "agent"])
@pytest.mark.parametrize("name", C_CHECKS)
def test_the_c_client_sees_what_udp_does(c_results, name, sandbox):
    assert c_results[sandbox].get(name) == f"ok {name}"


def test_the_c_client_sees_the_same_over_native_udp(world, namespace, clients):
    """Else the checks would state what TSI does, not what UDP does."""
    programs.run_natively(namespace, clients["/bin/udp_client"], HOST4, HOST6)


@pytest.mark.parametrize("sandbox", ["on", "agent"])
def test_python_programs(world, sandbox):
    status, said = world.run(*UDP_CLIENT, vm=sandbox)
    assert status == 0, said


@pytest.mark.parametrize("sandbox", ["on", "agent"])
def test_go_programs(world, sandbox):
    status, said = world.run("udp_client_go", HOST4, vm=sandbox)
    assert status == 0, said


@pytest.mark.parametrize("sandbox", ["on", "off", "agent"])
@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("getent hosts web.default.svc.cluster.local", VIP),
        ("getent ahosts one.example", HOST6),
        ("getent ahostsv4 one.example", HOST4),
        ("resolve_musl web.default.svc.cluster.local", VIP),
        ("resolve_musl one.example", HOST6),
        ("nslookup web.default.svc.cluster.local", VIP),
        ("nslookup one.example", HOST6),
        ("ping -c 1 -w 1 one.example", f"({HOST4})"),
    ],
)
def test_names_are_found(world, sandbox, command, found):
    assert found in world.sh(command, vm=sandbox)[1]


@pytest.mark.parametrize("sandbox", ["on", "off", "agent"])
@pytest.mark.parametrize(
    "url",
    ["http://web.default.svc.cluster.local/", f"http://one.example:{HTTP}/"],
)
@pytest.mark.parametrize("program", ["curl -sS", "wget -q -O -"])
def test_programs_fetch_by_name(world, sandbox, program, url):
    assert world.sh(f"{program} {url}", vm=sandbox) == (0, "hello\n")


def test_names_over_tcp(world):
    status, said = world.sh(
        "echo options use-vc >> /etc/resolv.conf; getent hosts web."
    )
    world.sh("sed -i /use-vc/d /etc/resolv.conf")
    assert (status, said.split()[0]) == (0, VIP)


def test_any_address_answers_on_port_53(world):
    for server in ("10.96.0.53", "169.254.169.253"):
        status, said = world.sh(f"nslookup one.example {server}", vm="off")
        assert status == 0, said
        assert HOST4 in said


def test_a_sandbox_without_udp_gets_the_policys_errno(world):
    env = {"DENIED": "13"}  # EACCES
    status, said = world.run("udp_client", HOST4, HOST6, env=env, vm="off")
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
for _ in range(2):  # an error goes ahead of what waits
    try:
        print(sock.recv(100).decode())
    except OSError as error:
        print(error.strerror)
"""


def test_udp_that_is_switched_off_ends_under_the_program(world):
    before = world.stats("off").received
    world.set_policy("off", POLICIES["off"] + "udp: true\n")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        program = pool.submit(
            world.run, "python3", "-c", TALK, HOST4, str(ECHO), vm="off"
        )
        world.wait("off", lambda it: it.datagrams.stats().received > before)
        world.set_policy("off", POLICIES["off"])
        status, said = program.result()
        assert (status, sorted(said.splitlines())) == (0, ["No route to host", "ping"])
    stats = world.stats("off")
    assert (stats.flows, stats.ended) == (0, 1)
    status, said = world.sh("getent hosts web.", vm="off")
    assert (status, said.split()[0]) == (0, VIP)


def test_the_other_namespace_of_a_container_reaches_out_too(world):
    script = "import socket; print(socket.getaddrinfo('web.', 80)[0][4][0])"
    status, said = world.sh(f'unshare -n python3 -c "{script}"', vm="agent")
    assert (status, said) == (0, f"{VIP}\n")


UNJUDGED = f"""
import os, socket, threading, time

def send(i):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.sendto(b"x", ("{HOST4}", {UNJUDGED_PORT} + i))

os.setuid(65534)
begin = time.monotonic()
threads = [threading.Thread(target=send, args=(i,)) for i in range({N_UNJUDGED})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(time.monotonic() - begin)
"""


def test_who_waits_for_a_verdict_keeps_nobody_waiting(world, monkeypatch):
    """Each waits for a second; one after the other they took as many as they are."""
    register = DatagramStream._register

    def hear(stream, message):
        if message.address[1] < UNJUDGED_PORT:
            register(stream, message)

    monkeypatch.setattr(DatagramStream, "_register", hear)
    status, said = world.run("python3", "-c", UNJUDGED)
    assert status == 0, said
    assert float(said) < N_UNJUDGED / 2


SURVIVOR = f"""
import os, socket, threading, time

def kill():
    assert os.system("{programs.KILL_AGENT}") == 0

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
    said = world.run("python3", "-c", SURVIVOR, vm="agent")
    assert said == (0, "survived\n")


def test_flows_end_with_the_agent(world):
    assert world.run(*UDP_CLIENT, vm="agent")[0] == 0
    assert world.sh("true", vm="agent")[0] == 0

    def ended(sandbox):
        stats = sandbox.datagrams.stats()
        return (stats.streams, stats.flows) == (0, 0)

    world.wait("agent", ended)
