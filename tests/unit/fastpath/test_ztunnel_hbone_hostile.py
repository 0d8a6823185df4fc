"""Peers that our pools go to and that misbehave: told of, counted, others unharmed."""

from __future__ import annotations

import contextlib
from functools import partial
from ipaddress import ip_address

import pytest

from fastpath.ztunnel import pools
from tests.conformance.frames import DATA, PING, frame
from tests.support.limits import wait_until
from tests.unit.fastpath.hbone_world import CLIENT, HBONE_PORT, Server, World, world
from tests.unit.fastpath.tsi_guest import sample
from vhost_user.hbone import Pool
from vhost_user.vsock.packet import Op

__all__ = ["world"]

MISDEEDS = {
    "flood": (frame(PING, 0, 0, bytes(8)) * 1000, "floods", "the peer flooded us"),
    "http-2": (frame(DATA, 0, 0, b"x"), "faults", "the peer broke HTTP/2"),
}


def counted(run, counter):
    """One of the counters of all pools."""
    name = f"fastpath_pool_{counter}_total"
    return sample(run.ztunnel, name, identity=str(CLIENT))


@pytest.mark.parametrize(("said", "counter", "why"), MISDEEDS.values(), ids=MISDEEDS)
def test_who_misbehaves_is_told_of_and_counted_and_others_go_on(
    world, caplog, said, counter, why
):
    other = Server(world.ca)
    there = (ip_address(other.ip),)
    second = world.web(name="web-2", uid="web-2", workload_ips=there, services={})

    def play(run):
        beside = run.guest.request((other.ip, 8080))
        tunnel = other.accept()
        stream = run.take(beside, tunnel)
        conn, peer, _ = run.connect()
        with contextlib.suppress(OSError):
            peer.sock.sendall(said)
        conn.expect(Op.RST)
        wait_until(lambda: counted(run, counter) == 1)
        wait_until(lambda: why in caplog.text)
        run.echoes(beside, tunnel, stream)

    with contextlib.closing(other):
        (line,) = (each for each in world.run(play, second) if why in each)
    assert f'error="{why}: ' in line
    address = f"{world.server.ip}:{HBONE_PORT}"
    assert f"{CLIENT}: tunnel to {address}: {why}" in caplog.messages


def test_who_is_silent_is_told_of_and_counted(world: World, monkeypatch, caplog):
    monkeypatch.setattr(pools, "Pool", partial(Pool, ping_s=0.1, silence_s=1.0))

    def play(run):
        conn, _, _ = run.connect()
        conn.expect(Op.RST)
        wait_until(lambda: counted(run, "silent") == 1)

    (line,) = world.run(play)
    why = "the peer did not answer a PING"
    assert f'error="{why}: Connection timed out (os error 110)"' in line
    assert why in caplog.text
