"""Both ends of a ring at once, under ThreadSanitizer: no race, and no byte is lost."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import native
from tests.support.limits import LIMIT_S
from tests.unit.lib.ringlib import LIBRARY

HERE = Path(__file__).resolve().parent
NATIVE = LIBRARY.parents[1] / "vhost_user" / "native"
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread", "-Wall", "-Wextra"]
# TSan sees no fences; what they order is atomic
FLAGS += ["-Werror", "-fsanitize=thread", "-Wno-tsan"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    out = tmp_path_factory.mktemp("threads") / "ring_threads"
    command = ["gcc", *FLAGS, f"-I{NATIVE}", f"-I{LIBRARY}"]
    command += map(str, (HERE / "ring_threads.c", *native.SOURCES))
    subprocess.run([*command, "-o", str(out), *native.LINKS], check=True)
    return out


@pytest.mark.parametrize("other", ["library", "engine"])
def test_two_threads_race_for_nothing_and_all_bytes_come(program, other):
    done = subprocess.run(
        [str(program), other, "4000000"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={"TSAN_OPTIONS": "exitcode=66:halt_on_error=0"},
    )
    assert (done.stdout, done.returncode) == ("all bytes came\n", 0), done.stderr
