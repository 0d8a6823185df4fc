"""Every way in which a program's calls reach a socket of tsi_inet's, on two kernels.

The program is tests/vm/ways; what it states holds natively, too. And what the module
makes of a host that goes away, or that lies.
"""

from __future__ import annotations

import asyncio
import struct

import pytest

from tests.support.limits import until
from tests.vm import programs
from tests.vm.world import HOST4, HTTP, POD4, open_world

pytestmark = pytest.mark.vm

CHECKS = programs.checks("ways")
KERNELS = ["base", "linux-6.12"]
FETCH = f"wget -q -O - http://{HOST4}:{HTTP}/"
SWITCH = "/sys/module/tsi_inet/parameters/namespaces"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    out = tmp_path_factory.mktemp("ways") / "tsi_ways"
    return programs.compile_c(out, *programs.c_files("ways"))


@pytest.fixture(scope="module", params=KERNELS)
def world(request, build_image, accelerator, program, namespace):
    image = build_image(request.param)
    files = {"/bin/tsi_ways": program}
    with open_world(image, accelerator, files, namespace, append="tsi=module") as there:
        yield there


@pytest.fixture(scope="module")
def results(world):
    return programs.results(world.run("tsi_ways")[1])


@pytest.mark.parametrize("name", CHECKS)
def test_a_socket_is_reached(results, name):
    assert results.get(name) == f"ok {name}"


def test_the_checks_hold_natively(world, program, namespace):
    programs.run_natively(namespace, program)


def test_another_network_namespace_has_plain_tcp_until_it_is_switched(world):
    assert world.sh(f"unshare -n {FETCH}")[0] != 0
    assert world.sh(f"echo Y > {SWITCH}; unshare -n {FETCH}") == (0, "hello\n")
    assert world.sh(f"echo N > {SWITCH}; unshare -n {FETCH}")[0] != 0


def test_the_pods_own_address_stays_in_the_guest(world):
    client = f"until echo own | nc {POD4} 7190 2> /dev/null; do sleep 0.1; done"
    script = f"{client} & nc -l -p 7190 < /dev/null"
    assert world.sh(script) == (0, "own\n")


FAILED, LISTENING, LISTENED = 5, 17, 7291
LIES = {
    "an unknown message": struct.pack("<HH", 999, 0),
    "a message that is too short": struct.pack("<HHI", FAILED, 4, 0),
    "a message that is too long": struct.pack("<HH", LISTENING, 65535),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_listener_is_announced_again_when_its_stream_has_ended(world, lie):
    """The module ends it; nothing in the guest needs it but the listener."""
    listen = f"nc -l -p {LISTENED} -e echo hello > /dev/null 2>&1 & echo $! > /tmp/nc"
    assert world.sh(listen)[0] == 0

    async def announced():
        await until(lambda: world.service.stats().listeners == 1)

    async def deceive():
        agents = world.service._agents.values()
        (agent,) = [agent for agent in agents if agent.stream]
        agent.stream.send(lie)
        await until(lambda: agent.stream is None)

    world.call(announced())
    world.call(deceive())
    world.call(announced())
    assert fetch(world, LISTENED) == b"hello\n"


def fetch(world, port):
    """What a listener of the guest's says to a client of the host."""

    async def connect():
        reader, writer = await asyncio.open_connection(POD4, port)
        said = await reader.read()
        writer.close()
        return said

    return world.call(connect())


def test_the_module_stays(world):
    assert world.sh("rmmod tsi_inet")[0] != 0
    assert world.sh(FETCH) == (0, "hello\n")
