"""TSI, inbound: servers in two microVMs of one ztunnel, and clients on the host."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

import pytest

from tests.support.limits import GUEST_LIMIT_S as START_S
from tests.support.limits import wait_until
from tests.vm import programs
from tests.vm.forms import by_agents, by_module
from tests.vm.tsi_servers import FIRST_CHECK, PORT, PRIVATE, World
from tests.vm.world import HOST4 as CLIENT4
from tests.vm.world import HOST6 as CLIENT6
from tests.vm.world import PODS, open_world

pytestmark = pytest.mark.vm

HERE = Path(__file__).parent
CHECKS = programs.checks("listener")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Path in the guest -> file."""
    out = tmp_path_factory.mktemp("servers")
    return {
        "/bin/tsi_listener": programs.compile_c(
            out / "c", *programs.c_files("listener")
        ),
        "/bin/tsi_server_go": programs.compile_go(out / "go", HERE / "tsi_server.go"),
        "/tsi_server.py": HERE / "tsi_server.py",
        "/nginx.conf": HERE / "nginx.conf",
    }


@pytest.fixture(scope="module")
def world(build_image, accelerator, servers, namespace, form):
    with open_world(
        build_image("nginx"),
        accelerator,
        servers,
        namespace,
        kind=World,
        memory_mib=384,
        append=f"tsi={form}",
    ) as there:
        yield there


@pytest.fixture(scope="module")
def check_results(world):
    """The C program's line for each check."""
    with world.program("tsi_listener", str(FIRST_CHECK)) as program:
        program.future.result(START_S)
    return programs.results(program.said())


@pytest.mark.parametrize("name", CHECKS)
def test_listeners_do_what_tcps_do(check_results, name):
    assert check_results.get(name) == f"ok {name}"


def test_listeners_do_the_same_over_native_tcp(servers, namespace):
    """Else the checks would state what TSI does, not what TCP does."""
    programs.run_natively(namespace, servers["/bin/tsi_listener"], FIRST_CHECK)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
@pytest.mark.parametrize(
    ("bound", "pod", "source", "mapped"),
    [
        pytest.param("0.0.0.0", PODS[0][0], CLIENT4, "", id="ipv4"),
        pytest.param("::", PODS[0][1], CLIENT6, "", id="ipv6"),
        pytest.param("::", PODS[0][0], CLIENT4, "::ffff:", id="dual-stack"),
        pytest.param(PODS[0][0], PODS[0][0], CLIENT4, "", id="pods-own"),
    ],
)
def test_a_server_sees_the_clients_address(world, kind, bound, pod, source, mapped):
    argv = ("python3", "/tsi_server.py", kind, bound, str(PORT), "2")
    with world.program(*argv) as server:
        server.wait_for(r"ready (\d+)\n")
        for _ in range(2):
            (accepted, peer, local), me = world.line(pod, PORT, source)
            assert (accepted, peer) == (mapped + me, mapped + me)
            assert local == f"{mapped}{pod}/{PORT}"
        assert server.end() == 0
    world.wait_until_nobody_listens()
    with pytest.raises(ConnectionRefusedError):
        world.connect(pod, PORT)


def test_each_client_is_seen_by_its_own_address(world):
    argv = ("python3", "/tsi_server.py", "blocking", "::", str(PORT), "4")
    with world.program(*argv) as server:
        server.wait_for(r"ready (\d+)\n")
        for source in (CLIENT4, PODS[1][0]):
            (accepted, _, _), me = world.line(PODS[0][0], PORT, source)
            assert accepted == f"::ffff:{me}"
        for source in (CLIENT6, PODS[1][1]):
            (accepted, _, _), me = world.line(PODS[0][1], PORT, source)
            assert accepted == me
        assert server.end() == 0


def test_port_0_is_reachable_at_the_port_that_getsockname_says(world):
    argv = ("python3", "/tsi_server.py", "blocking", "0.0.0.0", "0", "1")
    with world.program(*argv) as server:
        port = int(server.wait_for(r"ready (\d+)\n"))
        (accepted, _, local), me = world.line(PODS[0][0], port, CLIENT4)
        assert (accepted, local) == (me, f"{PODS[0][0]}/{port}")
        assert server.end() == 0


def test_two_vms_listen_on_the_same_port(world):
    argv = ("python3", "/tsi_server.py", "blocking", "0.0.0.0", str(PORT), "1")
    with world.program(*argv) as one, world.program(*argv, vm="two") as two:
        for server in (one, two):
            server.wait_for(r"ready (\d+)\n")
        for pod, _ in PODS[:2]:
            (_, _, local), _ = world.line(pod, PORT)
            assert local == f"{pod}/{PORT}"
        assert (one.end(), two.end()) == (0, 0)


def test_what_is_not_published_stays_in_the_guest(world):
    script = (
        f"python3 /tsi_server.py blocking 0.0.0.0 {PRIVATE} 1 & read go;"
        f" nc 127.0.0.1 {PRIVATE}; wait; echo done"
    )
    with world.program("sh", "-c", script) as server:
        server.wait_for(r"ready (\d+)\n")
        with pytest.raises(ConnectionRefusedError):
            world.connect(PODS[0][0], PRIVATE)
        world.wait_until_nobody_listens()  # an earlier test's may have been ending
        server.feed(b"go\n")
        assert server.wait_for(r"(127.0.0.1)/\d+ .*\ndone\n")


def test_a_published_server_is_reachable_from_inside(world):
    script = (
        f"python3 /tsi_server.py blocking 0.0.0.0 {PORT} 3 & read go;"
        f" nc 127.0.0.1 {PORT}; nc {PODS[0][0]} {PORT}; curl -s --http0.9"
        f" http://localhost:{PORT}/; wait; echo done"
    )
    with world.program("sh", "-c", script) as server:
        server.wait_for(r"ready (\d+)\n")
        server.feed(b"go\n")
        server.wait_for(r"(done)\n")
        assert len(re.findall(r"127\.0\.0\.1/\d+ ", server.said())) >= 4


@by_module
def test_a_command_beside_the_server_reaches_it_from_inside(world):
    argv = ("python3", "/tsi_server.py", "blocking", "0.0.0.0", str(PORT), "2")
    with world.program(*argv) as server:
        server.wait_for(r"ready (\d+)\n")
        with world.program("nc", "127.0.0.1", str(PORT)) as client:
            assert client.wait_for(r"(127\.0\.0\.1)/\d+ ")
            assert client.end() == 0
        (accepted, _, _), me = world.line(PODS[0][0], PORT, CLIENT4)
        assert accepted == me
        assert server.end() == 0


def test_a_killed_server_leaves_no_listener(world):
    argv = ("python3", "/tsi_server.py", "blocking", "0.0.0.0", str(PORT), "9")
    with world.program(*argv) as server:
        server.wait_for(r"ready (\d+)\n")
        assert world.listeners() == 1
        server.signal(9)
        assert server.end() == 137
    world.wait_until_nobody_listens()
    with pytest.raises(ConnectionRefusedError):
        world.connect(PODS[0][0], PORT)


KILL = programs.KILL_AGENT


@by_agents
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_listener_outlives_its_agent(world, kind):
    """Calls of accept() wait on, and clients get in as soon as there is an agent."""
    serve = f"python3 /tsi_server.py {kind} :: {PORT} 4"
    script = f"{serve} & read go; {KILL}; echo killed; wait; echo done"
    with world.program("sh", "-c", script) as server:
        server.wait_for(r"ready (\d+)\n")
        (accepted, _, _), me = world.line(PODS[0][0], PORT, CLIENT4)
        assert accepted == f"::ffff:{me}"
        server.feed(b"go\n")
        server.wait_for(r"(killed)\n")
        for pod, source, mapped in (
            (PODS[0][0], CLIENT4, "::ffff:"),
            (PODS[0][1], CLIENT6, ""),
            (PODS[0][0], PODS[1][0], "::ffff:"),
        ):
            said, me = world.line_soon(pod, PORT, source)
            assert said == [mapped + me, mapped + me, f"{mapped}{pod}/{PORT}"]
        server.wait_for(r"(done)\n")
    world.wait_until_nobody_listens()


SURVIVOR = f"""
import errno, os, signal, socket, threading, time

def kill():
    assert os.system("{KILL}") == 0

def taken():
    try:
        socket.create_server(("", {PORT}))
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False

ours = socket.create_server(("", {PORT}))
print("ready", 1, flush=True)
conn, client = ours.accept()
kill()
assert conn.getpeername() == client
assert ours.getsockname()[1] == {PORT}
assert taken()
inside = socket.create_connection(("127.0.0.1", {PORT}))
there, name = ours.accept()
assert name == inside.getsockname()
kill()
assert inside.getpeername() == ("127.0.0.1", {PORT})
ours.settimeout(0.5)
try:
    ours.accept()
except TimeoutError:
    print("timeout", flush=True)
ours.settimeout(None)

waits = threading.Thread(target=lambda: errors.append(fails(ours.accept)))
errors = []
def fails(call):
    try:
        call()
    except OSError as error:
        return error.errno
waits.start()
time.sleep(0.5)
kill()
ours.shutdown(socket.SHUT_RDWR)
waits.join()
assert errors == [errno.EINVAL], errors
ours.close()
ours = socket.create_server(("", {PORT}))
kill()
ours.close()
again = socket.create_server(("", {PORT}))
print("again", 1, flush=True)
conn.sendall(b"still here")
conn.close()
again.accept()
kill()
again.close()
print("closed", flush=True)
"""


@by_agents
def test_what_a_listener_was_it_is_under_the_next_agent(world):
    """Its port, its names, waiting calls and the end of them."""
    with world.program("python3", "-c", SURVIVOR) as server:
        server.wait_for(r"ready (\d+)\n")
        with world.connect(PODS[0][0], PORT, CLIENT4) as client:
            server.wait_for(r"(again)")
            assert client.recv(16) == b"still here"
        world.line_soon(PODS[0][0], PORT, CLIENT4, 0)
        server.wait_for(r"(closed)\n")
        assert server.end() == 0
    world.wait_until_nobody_listens()
    with pytest.raises(ConnectionRefusedError):
        world.connect(PODS[0][0], PORT)


def test_clients_wait_for_room_in_the_backlog(world):
    program = (
        "import socket, time\n"
        f"s = socket.create_server(('', {PORT}), backlog=3)\n"
        "print('ready', 1, flush=True)\n"
        "time.sleep(3)\n"
        "for i in range(8):\n"
        "    c, a = s.accept(); c.sendall(b'hello'); c.close()\n"
    )
    with world.program("python3", "-c", program) as server:
        server.wait_for(r"ready (\d+)\n")
        said = []

        def talk():
            with world.connect(PODS[0][0], PORT) as sock:
                said.append(sock.makefile("rb").read())

        threads = [threading.Thread(target=talk) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(START_S)
        assert said == [b"hello"] * 8
        assert server.end() == 0


def test_go_serves_http(world):
    with world.program("tsi_server_go", str(PORT), "2") as server:
        server.wait_for(r"ready (\d+)\n")
        done = world.curl(f"http://{PODS[0][0]}:{PORT}/", "--interface", CLIENT4)
        client, local = done.stdout.split()
        assert client.startswith(f"{CLIENT4}:")
        assert local == f"{PODS[0][0]}:{PORT}"
        done = world.curl(f"http://[{PODS[0][1]}]:{PORT}/", "--interface", CLIENT6)
        client, local = done.stdout.split()
        assert client.startswith(f"[{CLIENT6}]:")
        assert local == f"[{PODS[0][1]}]:{PORT}"
        assert server.end() == 0


def test_nginx_serves_http(world):
    """Two workers, both families, its access log and its reload."""
    argv = ("nginx", "-c", "/nginx.conf", "-g", "daemon off;")
    with world.program(*argv) as server:
        while world.listeners() < 2:
            assert not server.future.done(), server.said()
        for reload in (False, True):
            if reload:
                server.signal(1)
            for pod, source in ((PODS[0][0], CLIENT4), (PODS[0][1], CLIENT6)):
                host = f"[{pod}]" if ":" in pod else pod
                for _ in range(4):
                    url = f"http://{host}:{PORT}/"
                    done = world.curl(url, "--interface", source)
                    assert done.stdout == f"{source} {pod} {PORT}\n", done.stderr
        server.signal(3)
        assert server.end() == 0, server.said()
    world.wait_until_nobody_listens()


def test_the_access_log_names_both_ends(world):
    argv = ("python3", "/tsi_server.py", "blocking", "0.0.0.0", str(PORT), "1")
    with world.program(*argv) as server:
        server.wait_for(r"ready (\d+)\n")
        _, me = world.line(PODS[0][0], PORT, CLIENT4)
        assert server.end() == 0
    line = world.logged(f"src.addr={me.replace('/', ':')} dst.addr={PODS[0][0]}:{PORT}")
    assert 'direction="inbound"' in line
    assert 'dst.workload="one"' in line
    assert "bytes_recv=" in line


def test_bulk_both_ways(world):
    """Through a server that reads all, then sends it back."""
    program = (
        "import socket\n"
        f"s = socket.create_server(('', {PORT}))\n"
        "print('ready', 1, flush=True)\n"
        "c, _ = s.accept(); data = b''\n"
        "while piece := c.recv(1 << 16): data += piece\n"
        "c.sendall(data); c.close()\n"
    )
    size = 4 << 20
    with world.program("python3", "-c", program) as server:
        server.wait_for(r"ready (\d+)\n")
        with world.connect(PODS[0][0], PORT) as sock:
            sock.sendall(b"x" * size)
            sock.shutdown(socket.SHUT_WR)
            assert len(sock.makefile("rb").read()) == size
        assert server.end() == 0


def test_many_short_connections_leave_nothing(world):
    count = 300
    argv = ("python3", "/tsi_server.py", "asyncio", "0.0.0.0", str(PORT), str(count))
    with world.program(*argv) as server:
        server.wait_for(r"ready (\d+)\n")
        done = world.host(
            "sh",
            "-c",
            f"seq {count} | xargs -P 16 -I N curl -sS --http0.9"
            f" http://{PODS[0][0]}:{PORT}/N",
        )
        assert server.end() == 0
    assert done.stdout.count(f"{PODS[0][0]}/{PORT}\n") == count, done.stderr
    world.wait_until_nobody_listens()
    wait_until(
        # init's and the agents' streams
        lambda: world.ztunnel.device_stats()["one"].conns <= 4,
        what="the end of each connection",
    )
