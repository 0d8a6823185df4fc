"""A back-end that is killed at any store loses and repeats no chain.

crash_ring.c is the test; here it is built and run.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.limits import LIMIT_S

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[2] / "vhost_user" / "native"
FLAGS = ["-std=gnu11", "-O1", "-g", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]


def compile_c(source, to, *flags):
    command = ["gcc", *FLAGS, *flags, f"-I{NATIVE}", "-c", str(source), "-o", str(to)]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def crash_ring(tmp_path_factory):
    out = tmp_path_factory.mktemp("crash")
    hook = ["-Wno-unused-value", "-include", str(HERE / "crash_store.h")]
    for source in NATIVE.glob("ring/*.c"):
        compile_c(source, out / f"ring-{source.stem}.o", *hook)
    for source in (*NATIVE.glob("mem/*.c"), HERE / "crash_ring.c"):
        compile_c(source, out / f"{source.stem}.o")
    binary = out / "crash_ring"
    objects = [str(path) for path in out.glob("*.o")]
    subprocess.run(["gcc", *objects, "-o", str(binary)], check=True)
    return binary


def inflight(layout):
    parts = ("layout", "receive", "supply", "reconnect")
    marks = [f"vhost-user:inflight/{layout}-{part}" for part in parts]
    return pytest.param(layout, marks=pytest.mark.spec(*marks))


@pytest.mark.parametrize("layout", [inflight("split"), inflight("packed")])
def test_nothing_is_lost_or_repeated(crash_ring, layout):
    done = subprocess.run(
        [crash_ring, layout, "0", "100"],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout
    states = int(done.stdout.split()[0])
    assert states > 1000
