"""Programs of the guest's that attack others by way of TSI, as nobody.

The attackers are tests/vm/hostile; each test states what a program of root's sees.
"""

from __future__ import annotations

import pytest

from fastpath.errors import FastpathError
from tests.vm import programs, tsi_servers
from tests.vm.world import PODS, open_world

pytestmark = pytest.mark.vm

POD4 = PODS[0][0]
CHECKS = programs.checks("hostile")
WHO = ["agent", "module"]
"""Who has the sockets: agents, or tsi_inet without any."""
NOT_ALL = {
    "an_agent_that_hangs_is_replaced": ["agent"],
    "descriptors_cost_others_nothing": ["agent"],
    "a_flood_of_listeners_keeps_nobody_from_listening": ["module"],
}
"""Checks that are for some of them only."""
PAIRS = [(name, who) for name in CHECKS for who in NOT_ALL.get(name, WHO)]


class World(tsi_servers.World):
    """VMs: one with agents, one with tsi_inet."""

    policies = dict.fromkeys(WHO, 'published: ["7200-7299"]\n')


@pytest.fixture(scope="module")
def world(base_image, accelerator, namespace, tmp_path_factory):
    program = programs.compile_c(
        tmp_path_factory.mktemp("hostile") / "c", *programs.c_files("hostile")
    )
    with open_world(
        base_image,
        accelerator,
        {"/bin/tsi_hostile": program},
        namespace,
        kind=World,
        memory_mib=256,
    ) as there:
        yield there


@pytest.fixture(scope="module")
def results(world):
    """The line of each check, by who has the sockets."""
    names = {who: [name for name, for_whom in PAIRS if for_whom == who] for who in WHO}
    said = {who: world.run("tsi_hostile", *names[who], vm=who)[1] for who in WHO}
    return {who: programs.results(text) for who, text in said.items()}


@pytest.mark.parametrize(("name", "who"), PAIRS)
def test_nobody_harms_others(results, name, who):
    assert results[who].get(name) == f"ok {name}"


@pytest.mark.parametrize("who", WHO)
def test_squatters_keep_no_listener_from_its_clients(world, who):
    with world.program("tsi_hostile", "serve", "squatted", "7210", vm=who) as server:
        server.wait_for(r"(ready)\n")
        with world.connect(PODS[WHO.index(who)][0], 7210) as client:
            assert client.makefile().readline() == "root's\n"
        assert server.end() == 0


@pytest.mark.parametrize("who", WHO)
def test_nobody_looks_like_a_client_of_the_hosts(world, who):
    with world.program("tsi_hostile", "serve", "forged", "7211", vm=who) as server:
        server.wait_for(r"(ready)\n")
        with world.connect(PODS[WHO.index(who)][0], 7211) as client:
            assert client.makefile().readline() == "127.0.0.1\n"
        assert server.end() == 0


def test_an_agent_without_the_key_says_so_and_runs_nothing(world):
    """One line, in what `fastpath run` says and on the console."""
    keep = "cp /run/tsi.key /run/kept; head -c 16 /dev/zero > /run/tsi.key"
    assert world.sh(keep, vm="agent", tsi=False)[0] == 0
    try:
        with pytest.raises(FastpathError) as refused:
            world.run("true", vm="agent")
    finally:
        assert world.sh("mv /run/kept /run/tsi.key", vm="agent", tsi=False)[0] == 0
    assert "the host refuses: HELLO: not this sandbox's key" in str(refused.value)
    assert world.run("true", vm="agent") == (0, "")
