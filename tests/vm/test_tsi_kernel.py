"""The kernel module: what it does without the agent, and that it does no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpath.tsi import service
from fastpath.tsi.protocol import Welcome
from tests.vm import programs
from tests.vm.world import ECHO, HOST4, HOST6, LATE, POD4, open_world

pytestmark = pytest.mark.vm

HERE = Path(__file__).parent
CHECKS = programs.checks("tsi_kernel.c")
SHORT_S = 8.0
"""What the host lets a connect take: less than it takes itself at LATE."""
FEW, FEWER = 1024, 64
"""Tokens of a stream, and those that can be connected to: the checks need more."""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    out = tmp_path_factory.mktemp("kernel") / "tsi_kernel"
    return programs.compile_c(out, HERE / "tsi_kernel.c")


def welcome(**fields):
    return Welcome(**(fields | {"token_count": FEW, "window": FEWER}))


@pytest.fixture(scope="module")
def world(base_image, accelerator, program, namespace):
    files = {"/bin/tsi_kernel": program}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "CONNECT_TIMEOUT_S", SHORT_S)
        patch.setattr(service, "Welcome", welcome)
        with open_world(
            base_image, accelerator, files, namespace, append="tsi=agent"
        ) as there:
            yield there


@pytest.fixture(scope="module")
def results(world):
    """The program's line for each check."""
    script = f"tsi_kernel $PPID {HOST4} {HOST6}"
    _, said = world.sh(script, env={"POD_IPV4": POD4})
    return programs.results(said)


@pytest.mark.parametrize("name", CHECKS)
def test_the_module_does_what_the_agent_would(results, name):
    assert results.get(name) == f"ok {name}"


def test_the_module_says_nothing_is_wrong(world, results):
    """No warning of the kernel's, whatever the checks have done."""
    assert results
    status, said = world.sh("dmesg", tsi=False)
    assert status == 0
    for word in ("WARNING", "BUG", "Oops", "Call Trace"):
        assert word not in said


def test_without_the_device_all_is_the_agents(world):
    """As in a kernel without the module."""
    script = f"echo | nc {HOST4} {ECHO}; echo | nc {HOST4} {ECHO}; test -e /dev/tsi"
    assert world.sh("mv /dev/tsi /dev/away", tsi=False)[0] == 0
    try:
        assert world.sh(script) == (1, "\n\n")
    finally:
        assert world.sh("mv /dev/away /dev/tsi", tsi=False)[0] == 0
    assert world.sh(script) == (0, "\n\n")


def test_a_host_that_does_not_answer_times_out(world):
    """The first time by the agent, the second by the module."""
    status, said = world.sh(f"nc {HOST4} {LATE} < /dev/null; " * 2 + "true")
    why = f"nc: can't connect to remote host ({HOST4}): Connection timed out\n"
    assert (status, said) == (0, why * 2)
