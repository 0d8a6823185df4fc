"""Gates: PROXY headers, the start and the end, and what the engine does by itself."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import h2.events
import pytest

from fastpath import proxy_protocol
from fastpath.errors import FastpathError
from fastpath.ztunnel.process import Ztunnel
from tests.support.limits import wait_until
from tests.unit.fastpath.gate_world import (
    CLIENT,
    DENIES,
    HBONE,
    HERE,
    PEER,
    POD,
    STRANGER,
    WORKLOADS,
    World,
    asks,
    fields,
    finish,
    served,
)
from vhost_user.vsock.packet import Shutdown

PROXIED = "applicationTunnel: {protocol: PROXY, port: 8080}"
TUNNEL = WORKLOADS.replace("protocol: HBONE", f"protocol: HBONE, {PROXIED}")


# ---- the application tunnel ----


def test_a_program_gets_a_proxy_header_first(tmp_path):
    world = World(tmp_path, TUNNEL)

    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream = peer.connect(asks("192.0.2.1:99"))
        peer.send(stream, b"hello")
        conn = guest.accept()
        assert peer.status(stream) == "200"
        data = conn.receive_bytes(16 + 12 + 3 + len(CLIENT) + len(b"hello"))
        assert data[-5:] == b"hello"
        header = proxy_protocol.parse(data[:16], data[16:-5])
        assert header.source == peer.sock.getsockname()
        assert header.destination == ("192.0.2.1", 99)
        assert header.identity == CLIENT
        conn.send(b"back")
        assert peer.read(stream, 4) == b"back"
        conn.shutdown(Shutdown.BOTH)
        peer.ended(stream)

    (line,) = world.run(play)
    said = fields(line)
    assert (said["dst.hbone_addr"], said["bytes_recv"]) == ("192.0.2.1:99", "5")


def test_nobody_else_may_write_proxy_headers(tmp_path):
    """The port is reachable by HBONE only."""

    def play(world):
        guest = world.guest()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((POD, 8080))
        assert guest

    World(tmp_path, TUNNEL).run(play)


# ---- the start and the end ----


def test_without_certificates_it_is_plain_text_and_said(tmp_path, caplog):
    def play(world):
        world.guest()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((POD, HBONE))
        socket.create_connection((POD, 8080)).close()

    World(tmp_path, certificates=None).run(play)
    assert "box: HBONE by the mesh, but there are no certificates" in caplog.text


@pytest.mark.parametrize(
    "sandbox", [{"hbone": False}, {"pod_listeners": False}], ids=str
)
def test_a_sandbox_may_have_no_gate(tmp_path, sandbox):
    def play(world):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((POD, HBONE))
        assert world.call(world.ztunnel._gates.stats) == {}

    World(tmp_path, sandbox=sandbox).run(play)


def test_a_workload_that_is_not_hbone_has_no_gate(tmp_path):
    def play(world):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((POD, HBONE))

    World(tmp_path, WORKLOADS.replace("protocol: HBONE", "protocol: TCP")).run(play)


def test_an_address_that_is_taken_stops_the_start(tmp_path):
    world = World(tmp_path)

    async def start():
        async with Ztunnel(world.config):
            pass

    with socket.create_server((POD, HBONE)), pytest.raises(FastpathError) as caught:
        asyncio.run(start())
    text = str(caught.value)
    assert (
        f"box: cannot listen for HBONE on {POD}:15008: Address already in use" in text
    )
    assert "`hbone: false`" in text
    socket.create_server((POD, HBONE)).close()


def test_one_gate_an_ip(tmp_path):
    other = f"{POD[:-1]}8"
    mesh = WORKLOADS.replace(f"workloadIps: [{POD}]", f"workloadIps: [{POD}, {other}]")

    def play(world):
        guest = world.guest()
        peer = world.tunnel(pod=other)
        stream = peer.connect(asks(f"{other}:8080"))
        guest.accept()
        assert peer.status(stream) == "200"

    world = World(tmp_path, mesh)
    assert ip_address(other) in world.config.workloads[0].workload_ips
    world.run(play)


def test_a_new_certificate_is_shown_to_new_tunnels_and_old_ones_stay(tmp_path):
    world = World(tmp_path)

    def serial(peer):
        return peer.sock.getpeercert()["serialNumber"]

    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream, conn = served(world, guest, peer)
        world.renew()
        wait_until(lambda: serial(world.tunnel()) != serial(peer))
        conn.send(b"still")
        assert peer.read(stream, 5) == b"still"
        served(world, guest, peer, first=False)

    world.run(play)


def nobody_listens():
    try:
        socket.create_connection((POD, HBONE)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_the_end_lets_streams_end_and_cuts_the_rest(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream, conn = served(world, guest, peer)
        left, _ = served(world, guest, peer, first=False)
        hurry = world.call(asyncio.Event)
        drain = asyncio.run_coroutine_threadsafe(
            world.ztunnel.drain(1.0, hurry), world._loop
        )
        notice = peer.until(h2.events.ConnectionTerminated)
        assert (notice.last_stream_id, notice.error_code) == (2**31 - 1, 0)
        wait_until(nobody_listens)  # closed behind the notice
        conn.send(b"last")
        conn.shutdown(Shutdown.BOTH)
        assert peer.sock.recv(100)
        drain.result()
        while peer.sock.recv(1000):
            pass
        assert stream != left

    lines = [fields(line) for line in World(tmp_path).run(play)]
    assert len(lines) == 2


# ---- what the engine does by itself ----


def test_others_that_ask_the_same_are_offered_by_the_engine(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        first, other = served(world, guest, peer, forwarded=f'for="{PEER}:4001"')
        second, conn = served(
            world, guest, peer, first=False, forwarded=f'for="{PEER}:4002"'
        )
        assert world.stats().decided == 1
        assert guest.peer(conn) == (PEER, 4002)
        for stream, data in ((second, b"12"), (first, b"1")):
            peer.send(stream, data, end=True)
        assert conn.receive_bytes(2) == b"12"
        assert other.receive_bytes(1) == b"1"
        finish(conn)
        peer.ended(second)
        world.deliver()
        opened = {"reporter": "destination", "source_principal": CLIENT}
        assert world.sample("istio_tcp_connections_opened_total", **opened) == 2

    lines = [fields(line) for line in World(tmp_path).run(play)]
    told = [{k: v for k, v in it.items() if "." in k} for it in lines]
    assert told[0] == told[1]
    assert [it["bytes_recv"] for it in lines] == ["2", "1"]


@pytest.mark.parametrize(
    "change",
    [
        lambda world, _: world.set_mesh(WORKLOADS),
        lambda _, guest: guest.listen(8081),
    ],
    ids=["mesh", "listener"],
)
def test_a_change_is_asked_about(tmp_path, change):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        served(world, guest, peer)
        change(world, guest)
        served(world, guest, peer, first=False)
        assert world.stats().decided == 0

    World(tmp_path).run(play)


def test_a_mesh_that_denies_denies_what_was_decided(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel(STRANGER)
        served(world, guest, peer)
        stream, _ = served(world, guest, peer, first=False)
        assert world.stats().decided == 1
        world.set_mesh(f"{WORKLOADS}policies:\n{DENIES}")
        peer.was_reset(stream)
        assert peer.status(peer.connect(asks(HERE))) == "401"

    lines = [fields(line) for line in World(tmp_path).run(play)]
    late = "connection closed due to policy change"
    assert [it["error"] for it in lines[:2]] == [late, late]


def test_a_guest_that_is_full_gets_what_was_decided_again(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        served(world, guest, peer)
        stream = peer.connect(asks(HERE))
        for _ in range(3):
            guest.refuse()
        conn = guest.vsock.accept(buf_alloc=1 << 20)
        assert peer.status(stream) == "200"
        assert conn
        assert world.stats().decided == 1

    World(tmp_path).run(play)


def test_what_lies_about_its_ip_is_decided_each_time(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        lie = 'for="10.9.9.9:4711"'
        served(world, guest, peer, forwarded=lie)
        _, conn = served(world, guest, peer, first=False, forwarded=lie)
        assert world.stats().decided == 0
        assert guest.peer(conn)[0] == PEER

    World(tmp_path).run(play)
