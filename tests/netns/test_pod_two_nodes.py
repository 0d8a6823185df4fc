"""Two nodes, each with Istio's unmodified ztunnel, and sandboxes in their pods.

    guest -- our engine -- pod A's namespace: REDIRECT 15001 -- ztunnel A
        -- HBONE, mutual TLS, pod B:15008 -- ztunnel B -- pod B's namespace
        -- our listener -- our engine -- guest

Certificates are `fastpath ca`'s. Run with `--ztunnel BIN`.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.netns.istio_world import IPS, VIP, TwoNodes
from tests.netns.pod_world import PUBLISHED, Echo, sandboxes
from tests.support.limits import wait_until
from tests.unit.fastpath.tsi_guest import Guest, run

pytestmark = [pytest.mark.netns, pytest.mark.ztunnel]

LISTEN = struct.pack("<IIHHHH16s", 0x100050, 5, PUBLISHED, 4, 0, 0, bytes(16))


@pytest.fixture
def world(request, tmp_path):
    with contextlib.ExitStack() as stack:
        ttl_s = getattr(request, "param", 3600)
        binary = request.config.getoption("--ztunnel")
        yield TwoNodes(tmp_path, binary, stack, ttl_s)


def play_in(tmp_path, world, play):
    """Have a guest play on each pod; the first argument is by name."""
    there = sandboxes(tmp_path, **{name: it.path for name, it in world.pods.items()})

    def with_guests(ztunnel):
        with contextlib.ExitStack() as stack:
            play(
                {
                    sandbox.name: stack.enter_context(Guest(sandbox))
                    for sandbox in ztunnel.config.fastpath.sandboxes
                }
            )

    own = replace(there.fastpath, access_log=tmp_path / "ours.log")
    return run(replace(there, fastpath=own), with_guests)


def test_a_sandbox_reaches_a_server_of_the_other_pod_by_hbone(tmp_path, world):
    with Echo(world.pods["b"], IPS["b"]) as echo:

        def play(guests):
            guests["a"].echoes(guests["a"].connect(echo.address))

        play_in(tmp_path, world, play)
    assert echo.peers == [IPS["a"]]
    world.tell_apart("a", "b")


def test_bytes_and_half_close_go_both_ways(tmp_path, world):
    data = bytes(range(256)) * 512
    with Echo(world.pods["b"], IPS["b"]) as echo:

        def play(guests):
            conn = guests["a"].connect(echo.address)
            conn.send(data)
            assert conn.receive_bytes(len(data)) == data
            conn.shutdown(2)
            assert conn.receive_bytes(3) == b"bye"

        play_in(tmp_path, world, play)


@pytest.mark.parametrize(
    ("client", "server", "place"),
    [
        pytest.param("a", "b", (IPS["b"], PUBLISHED), id="a-to-b"),
        pytest.param("b", "a", (IPS["a"], PUBLISHED), id="b-to-a"),
        pytest.param("a", "b", (VIP, 80), id="service"),
    ],
)
def test_a_program_in_one_sandbox_reaches_one_in_the_other(
    tmp_path, world, client, server, place
):
    """The one that listens sees the IP of the other's pod."""

    def play(guests):
        there = guests[server]
        there.control.send(struct.pack("<HH", 16, len(LISTEN)) + LISTEN)
        there.control.receive()
        near = guests[client].connect(place)
        kind, payload = there.control.receive()
        ports, _, _, address = struct.unpack("<IHH16s", payload)
        assert (kind, address[:4]) == (18, ip_address(IPS[client]).packed)
        there.control.send(struct.pack("<HHI", 20, 4, ports))
        far = there.guest.accept()
        for one, other, data in ((near, far, b"ping"), (far, near, b"pong")):
            one.send(data)
            assert other.receive_bytes(4) == data

    play_in(tmp_path, world, play)
    world.tell_apart(client, server)


@pytest.mark.parametrize("world", [10], ids=["ttl-10"], indirect=True)
def test_a_connection_goes_on_while_certificates_are_renewed(tmp_path, world):
    """Past the end of those that its tunnel was made with; and there are new ones."""
    with Echo(world.pods["b"], IPS["b"]) as echo:

        def play(guests):
            guest = guests["a"]
            conn = guest.echoes(guest.connect(echo.address))
            for node in world.nodes.values():
                most = node.issued + 3  # two half-lives later the first one is over
                wait_until(functools.partial(node.has_issued, most))
                guest.echoes(conn)
            for _ in range(3):
                guest.echoes(guest.connect(echo.address))

        play_in(tmp_path, world, play)
