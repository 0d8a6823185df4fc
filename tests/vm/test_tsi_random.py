"""Random sequences of system calls give the same over TCP and over TSI.

`make random` goes on for --cpu-seconds of the guest's CPU time, from --first-seed on.
"""

from __future__ import annotations

import pytest

from fastpath.image import images
from tests.vm import tsi_random
from tests.vm.tsi_random import REPORTS
from tests.vm.world import open_world

pytestmark = pytest.mark.vm

FEW = ("1-20", "29", "39")
"""Seeds that each run of the suite has; the last two have found something each."""
BATCH = 20
"""Sequences of one command in the guest."""
LINUX = {"6.1": "base", "6.12": "linux-6.12"}
APPEND = {"agent": "", "module": "tsi=module"}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return tsi_random.compile_program(tmp_path_factory.mktemp("random") / "tsi_random")


@pytest.fixture(scope="module")
def runner(request, accelerator, program, namespace):
    """What runs sequences by a form of TSI on a kernel."""
    form, release = request.param
    image = images.build(LINUX[release])
    files = {"/bin/tsi_random": program}
    with (
        open_world(image, accelerator, files, namespace, append=APPEND[form]) as world,
        tsi_random.serving(program, namespace),
    ):
        yield tsi_random.Runner(world, form)


def reports(runner):
    """What the kernel has said of itself, after the sequences."""
    return [line for line in runner.dmesg() if any(map(line.__contains__, REPORTS))]


@pytest.mark.parametrize("runner", [("module", "6.1")], indirect=True, ids="-".join)
def test_sequences_are_like_tcps(runner):
    assert runner.hunt(FEW) == []
    assert reports(runner) == []


@pytest.mark.nightly
@pytest.mark.parametrize(
    "runner",
    [("module", "6.1"), ("module", "6.12")],
    indirect=True,
    ids="-".join,
)
def test_many_sequences_are_like_tcps(runner, request, record_property):
    seed = request.config.getoption("--first-seed")
    limit_s = request.config.getoption("--cpu-seconds")
    found: list[tsi_random.Found] = []
    begun_s = runner.cpu_s()
    while not found and runner.cpu_s() - begun_s < limit_s:
        found = runner.hunt([f"{seed}-{seed + BATCH - 1}"])
        seed += BATCH
        record_property("next seed", seed)
    assert found == []
    assert reports(runner) == []
