"""Sandboxes whose connections another process takes by rings.

What decides; and all of it, with a guest, the real engine and `fastpath.handoff.ring`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
from ipaddress import ip_address
from pathlib import Path

import pytest

from fastpath.errors import FastpathError
from fastpath.handoff import ring as rings
from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel import config as configuration
from fastpath.ztunnel.handoffs import Proxy
from fastpath.ztunnel.model import Handoff
from fastpath.ztunnel.process import Ztunnel
from fastpath.ztunnel.routing import Routes
from fastpath.ztunnel.shares import descriptors
from fastpath.ztunnel.workloads import LocalWorkloads
from tests.support.limits import LIMIT_S
from vhost_user.engine import Echo, Reset, Ring
from vhost_user.vsock.packet import Op, Shutdown

from .tsi_guest import ECHO, Guest, config, settled

WEB = ("192.0.2.80", 8080)
WEB6 = ("2001:db8::80", 443)
DENIED = ("192.0.2.99", 80)

MESH = """
workloads:
  - {workloadIps: [10.0.0.2], namespace: default, name: box, services: {}}
"""
FILE = """
mesh: MESH
sandboxes:
  - name: box
    workload: default/box
    socket: /run/box.sock
    cid: 3
    handoff: HANDOFF
"""


def with_ring(tmp_path, **fields):
    """Two sandboxes; the connections of `a` go to a process at `ring`."""
    there = config(tmp_path, egress=Egress(deny=(Rule.parse(f"{DENIED[0]}/32"),)))
    handoff = Handoff(ring=tmp_path / "ring", **fields)
    first, *rest = there.fastpath.sandboxes
    first = dataclasses.replace(first, handoff=handoff)
    own = dataclasses.replace(there.fastpath, sandboxes=(first, *rest))
    return dataclasses.replace(there, fastpath=own)


def load(tmp_path, handoff):
    path = tmp_path / "ztunnel.yaml"
    (tmp_path / "mesh.yaml").write_text(MESH)
    mesh = f"{tmp_path}/mesh.yaml"
    path.write_text(FILE.replace("HANDOFF", handoff).replace("MESH", mesh))
    return configuration.load(path).fastpath.sandboxes[0].handoff


# ---- the configuration ----


def test_a_file_names_the_process_and_the_size_of_its_rings(tmp_path):
    assert load(tmp_path, "{ring: /run/p.ring}") == Handoff(ring=Path("/run/p.ring"))
    found = load(tmp_path, "{ring: /run/p.ring, ringBytes: 65536}")
    assert found.ring_bytes == 65536


@pytest.mark.parametrize(
    ("handoff", "why"),
    [
        ("{}", "ring"),
        ("{ring: /run/p, ringBytes: 5000}", "power of two"),
        ("{ring: /run/p, ringBytes: 2048}", "from 4096"),
        ("{ring: /run/p, carrier: pigeon}", "carrier"),
        (f"{{ring: /{'x' * 108}}}", "longer than"),
    ],
    ids=["empty", "odd", "small", "unknown", "long"],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(tmp_path, handoff, why):
    with pytest.raises(FastpathError, match=why) as caught:
        load(tmp_path, handoff)
    assert "ztunnel.yaml:8" in str(caught.value)


# ---- the decision ----


@pytest.fixture
def client(tmp_path):
    clients = LocalWorkloads(with_ring(tmp_path))
    found = clients.sandbox("a")
    found.proxy = Proxy("there", peer=77)
    return found


@pytest.mark.parametrize("there", [WEB, WEB6])
def test_connections_are_offered_as_they_were_asked_for(tmp_path, client, there):
    decision = Routes(with_ring(tmp_path)).decide(client, there)
    assert decision.target == Ring(77, there)
    assert decision.cacheable


def test_the_policy_is_asked_first(tmp_path, client):
    routes = Routes(with_ring(tmp_path))
    for denied in (("169.254.169.254", 80), ("127.0.0.1", 80), DENIED):
        assert isinstance(routes.decide(client, denied).target, Reset)


def test_the_echo_address_stays_ours(tmp_path, client):
    assert Routes(with_ring(tmp_path)).decide(client, ECHO).target == Echo()


def test_another_sandboxs_connections_are_dialled(tmp_path):
    other = LocalWorkloads(with_ring(tmp_path)).sandbox("b")
    decision = Routes(with_ring(tmp_path)).decide(other, WEB)
    assert not isinstance(decision.target, Ring)


def test_captured_connections_are_not_those_of_such_a_sandbox(tmp_path):
    assert LocalWorkloads(with_ring(tmp_path)).at(ip_address("10.0.0.2")) is None


def test_a_connection_takes_two_descriptors(tmp_path):
    sandboxes = with_ring(tmp_path).fastpath.sandboxes
    assert [descriptors(sandbox) for sandbox in sandboxes[:2]] == [2, 1]


# ---- all of it ----


def run(there, play, handle=None):
    """Run `play(ztunnel)` beside the process, and one that handles its connections."""
    path = there.fastpath.sandboxes[0].handoff.ring

    async def main():
        async with asyncio.timeout(LIMIT_S), Ztunnel(there) as ztunnel:
            with contextlib.ExitStack() as stack:
                if handle is not None:
                    listener = stack.enter_context(rings.listen(path))
                    task = asyncio.create_task(rings.serve(listener, handle))
                    stack.callback(task.cancel)
                await asyncio.to_thread(play, ztunnel)
                await settled(ztunnel)

    asyncio.run(main())
    return there.fastpath.access_log.read_text().splitlines()


async def upper(ring, hello):
    while data := await ring.read():
        await ring.write(data.upper())


def test_a_program_exchanges_bytes_with_the_process_and_it_is_logged(tmp_path):
    there = with_ring(tmp_path)
    hellos = []

    async def handle(ring, hello):
        hellos.append(hello)
        await upper(ring, hello)

    def play(ztunnel):
        with Guest(there.fastpath.sandboxes[0]) as guest:
            conn = guest.connect(WEB)
            conn.send(b"shared memory")
            assert conn.receive_bytes(13) == b"SHARED MEMORY"
            conn.shutdown(Shutdown.SEND)
            conn.expect(Op.SHUTDOWN)
            conn.say(Op.RST)

    (line,) = run(there, play, handle)
    (hello,) = hellos
    assert hello.destination == WEB
    assert hello.source[0] == "10.0.0.2"
    assert hello.identity == "spiffe://cluster.local/ns/default/sa/a"
    assert f"src.addr=10.0.0.2:{hello.source[1]} " in line
    assert f"dst.addr={WEB[0]}:{WEB[1]} " in line
    assert 'src.identity="spiffe://cluster.local/ns/default/sa/a"' in line
    assert "bytes_sent=13 bytes_recv=13 " in line
    assert "error=" not in line


def test_megabytes_arrive_whole_both_ways(tmp_path):
    there = with_ring(tmp_path, ring_bytes=4096)
    data = bytes(range(97, 123)) * 8000

    def play(ztunnel):
        with Guest(there.fastpath.sandboxes[0]) as guest:
            conn = guest.connect(WEB)
            for at in range(0, len(data), 16_000):
                conn.send(data[at : at + 16_000])
                piece = data[at : at + 16_000].upper()
                assert conn.receive_bytes(len(piece)) == piece

    run(there, play, upper)


def test_what_the_policy_denies_no_process_hears_of(tmp_path):
    there = with_ring(tmp_path)
    heard = []

    async def handle(ring, hello):
        heard.append(hello)

    def play(ztunnel):
        with Guest(there.fastpath.sandboxes[0]) as guest:
            assert guest.refused(DENIED) == errno.ECONNREFUSED

    (line,) = run(there, play, handle)
    assert "connection failed" in line
    assert not heard


def test_without_a_process_connections_are_refused_and_the_log_says_so(
    tmp_path, caplog
):
    there = with_ring(tmp_path)

    def play(ztunnel):
        with Guest(there.fastpath.sandboxes[0]) as guest:
            assert guest.refused(WEB) == errno.ECONNREFUSED

    (line,) = run(there, play)
    assert f"hand-off to {tmp_path}/ring: Connection refused" in line
    assert "a: nobody takes its connections at" in caplog.text


def test_the_processes_errno_is_what_connect_fails_with(tmp_path):
    there = with_ring(tmp_path)
    path = there.fastpath.sandboxes[0].handoff.ring

    def play(ztunnel):
        with (
            rings.listen(path) as listener,
            Guest(there.fastpath.sandboxes[0]) as guest,
        ):
            listener.settimeout(LIMIT_S)
            conn = guest.request(WEB)
            sock, _ = listener.accept()
            sock.recv(1, 2)  # MSG_PEEK: the hello is there
            with rings.take(sock)[0] as ring:
                ring.answer(errno.EHOSTUNREACH)
                conn.expect(Op.RST)
            assert guest.failed() == errno.EHOSTUNREACH

    (line,) = run(there, play)
    assert "No route to host" in line
