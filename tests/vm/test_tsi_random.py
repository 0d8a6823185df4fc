"""Random sequences of system calls give the same over TCP and over TSI.

`make random` goes on for --cpu-seconds of the guest's CPU time, from --first-seed on.
"""

from __future__ import annotations

import pytest

from tests.vm import tsi_random
from tests.vm.world import open_world

pytestmark = pytest.mark.vm

FEW = (
    *("1-20", "29", "39", "78", "86", "91"),
    *("1014", "1028", "1036", "1044", "1061", "1062", "1098", "1102", "1103"),
    *("1158", "1168", "1180"),
)
"""Seeds of each run of the suite; those by themselves have found something each."""
BATCH = 20
"""Sequences of one command in the guest."""
LINUX = {"6.1": "base", "6.12": "linux-6.12"}
MODULE = "tsi=module"
CHECKED = f"{MODULE} slub_debug=FZP kfence.sample_interval=10"
"""With memory that is given back poisoned and guarded; Debian's 6.1 has no KFENCE."""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return tsi_random.compile_program(tmp_path_factory.mktemp("random") / "tsi_random")


@pytest.fixture(scope="module")
def runner(request, build_image, accelerator, program, namespace):
    """What runs sequences on a kernel, with parameters."""
    release, append = request.param
    image = build_image(LINUX[release])
    files = {"/bin/tsi_random": program}
    with (
        open_world(image, accelerator, files, namespace, append=append) as world,
        tsi_random.serving(program, namespace),
    ):
        yield tsi_random.Runner(world, "module")


@pytest.mark.parametrize("runner", [("6.1", MODULE)], indirect=True, ids=["6.1"])
def test_sequences_are_like_tcps(runner):
    assert runner.hunt(FEW) == []


@pytest.mark.nightly
@pytest.mark.parametrize(
    "runner",
    [("6.1", CHECKED), ("6.12", CHECKED)],
    indirect=True,
    ids=["6.1", "6.12"],
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
