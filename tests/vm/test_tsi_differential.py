"""The same calls over native TCP and over TSI give the same, or docs/tsi-compat.md.

All run in one guest: natively a server in the guest answers, at the address that the
host has over TSI. TSI is the agent's here; tests/vm/test_tsi_module.py has tsi_inet's.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.vm import tsi_compat
from tests.vm.programs import compile_c
from tests.vm.world import HOST4, HOST6, POD4, open_world

pytestmark = pytest.mark.vm

PORT = "7100"
CASES = {case.name: case for section in tsi_compat.load() for case in section.cases}
NATIVE = f"""
ip addr add {HOST4}/32 dev lo
ip addr add {HOST6}/128 dev lo
ip route add unreachable 198.51.100.0/24
tsi_trace serve {PORT} {HOST4} > /tmp/serving &
until [ -s /tmp/serving ]; do sleep 0.1; done
tsi_trace {HOST4} {HOST6} {PORT}
kill $!
ip addr del {HOST4}/32 dev lo
ip addr del {HOST6}/128 dev lo
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    out = tmp_path_factory.mktemp("trace") / "tsi_trace"
    return compile_c(out, *sorted(tsi_compat.TRACE.glob("*.c")))


@pytest.fixture(scope="module")
def world(base_image, accelerator, program, namespace):
    files = {"/bin/tsi_trace": program}
    with open_world(
        base_image, accelerator, files, namespace, append="tsi=agent"
    ) as there:
        yield there


@pytest.fixture(scope="module")
def native(world):
    status, said = world.sh(NATIVE, tsi=False)
    assert status == 0, said
    return tsi_compat.parse(said)


@pytest.fixture(scope="module")
def tsi(world, program, namespace):
    """What TSI gave."""
    command = namespace.command([str(program), "serve", PORT, POD4])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "serving\n"
            status, said = world.run("tsi_trace", HOST4, HOST6, PORT)
        finally:
            server.kill()
    assert status == 0, said
    return tsi_compat.parse(said)


@pytest.mark.parametrize("name", CASES)
def test_tsi_is_like_tcp(native, tsi, name):
    may_differ = CASES[name].differences
    assert tsi_compat.faults(may_differ, native[name], tsi[name]) == []
