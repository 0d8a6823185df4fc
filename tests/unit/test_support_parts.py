"""`make test` runs every part to its end and says at last which failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import parts
from tests.support.limits import LIMIT_S

MAKEFILE = """
good:
\t@echo well: $(WORD)
bad:
\t@exit 7
test:
\t@echo "FAILED tests/x.py::test_it - assert 1 == 2"; echo more; exit 1
heir:
\t@sleep 600 & echo $$! > heir
slow:
\t@echo begun; exec sleep 600
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "Makefile").write_text(MAKEFILE)

    def run(*words):
        return subprocess.Popen(
            [sys.executable, parts.__file__, *words],
            cwd=tmp_path,
            env={**os.environ, "MAKE": "make", "MAKEFLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    return run


def words_of(said):
    return [line.split() for line in said.splitlines()]


def test_a_part_that_fails_stops_no_other_and_is_named_at_last(start):
    process = start("good", "bad", "good", "WORD=done")
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert said.count("well: done") == 2
    assert said.endswith("\n2 passed, 1 failed\n")
    found = [words[:2] for words in words_of(said)]
    assert [words for words in found if words[1:] == ["failed"]] == [["bad", "failed"]]
    assert found.count(["good", "passed"]) == 2


def test_what_failed_is_named_once_more_at_the_end(start):
    said, _ = start("test", "good").communicate(timeout=LIMIT_S)
    named = "FAILED tests/x.py::test_it - assert 1 == 2\n"
    assert said.count(named) == 2
    assert said.rindex(named) > said.index("==== good ====")


def test_what_a_part_leaves_running_is_not_waited_for(start, tmp_path):
    process = start("heir", "good")
    said, _ = process.communicate(timeout=LIMIT_S)
    os.kill(int((tmp_path / "heir").read_text()), signal.SIGKILL)
    assert said.endswith("\n2 passed, 0 failed\n")


def test_all_that_pass_is_status_0(start):
    process = start("good")
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert said.endswith("\n1 passed, 0 failed\n")


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_summary_of_what_was_done(start, signo):
    process = start("good", "slow", "good")
    while process.stdout.readline() != "begun\n":
        pass
    os.killpg(process.pid, signo)
    said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert ["good", "passed"] in [words[:2] for words in words_of(said)]
    assert ["good", "not", "run"] in words_of(said)
    assert said.endswith("\n1 passed, 0 failed\n")


def test_each_part_is_a_target_of_the_makefile():
    text = (Path(__file__).parents[2] / "Makefile").read_text()
    (line,) = (x for x in text.splitlines() if x.startswith("PARTS"))
    names = line.partition(":=")[2].split()
    assert len(names) > 10
    for name in names:
        assert f"\n{name}: setup" in text, name
