"""`fastpath exec`, `ps` and `stop`, of a microVM that `fastpath run` has booted."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from tests.support.commands import FASTPATH, said_ready
from tests.support.limits import GUEST_LIMIT_S as TIMEOUT_S

pytestmark = pytest.mark.vm


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """What a run leaves behind is seen in here, and nothing else is."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def fastpath(*words, **kwargs):
    return subprocess.run(
        [*FASTPATH, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        **kwargs,
    )


def test_a_microvm_that_runs_is_seen_entered_and_stopped(tmp_path):
    script = "echo kept > /tmp/file; echo ready; exec sleep 600"
    with said_ready("run", "--name", "box", "--", "sh", "-c", script) as process:
        (listed,) = json.loads(fastpath("ps", "--json").stdout)
        assert (listed["name"], listed["pid"]) == ("box", process.pid)
        inside = "cat /tmp/file - && exit 7"
        done = fastpath("exec", "box", "--", "sh", "-c", inside, input="and input")
        assert (done.returncode, done.stdout) == (7, "kept\nand input")
        other = fastpath("run", "--name", "box", "--", "true")
        assert (other.returncode, other.stdout) == (2, "")
        assert "--name box: is a running microVM's" in other.stderr
        with said_ready(
            "exec", "box", "--", "sh", "-c", "echo ready; exec sleep 600"
        ) as command:
            command.send_signal(signal.SIGTERM)
            assert command.wait(TIMEOUT_S) == 143
        with said_ready(
            "exec", "box", "--", "sh", "-c", "echo ready; exec sleep 600"
        ) as command:
            assert fastpath("stop", "box").returncode == 0
            assert process.wait(TIMEOUT_S) == 143
            assert command.wait(TIMEOUT_S) == 2
            assert "box: has ended, and the command with it" in command.stderr.read()
    assert fastpath("ps", "--json").stdout == "[]\n"
    assert [*tmp_path.glob("fastpath-*")] == []


def test_a_program_that_does_not_heed_sigterm_is_stopped_all_the_same():
    script = "trap : TERM; echo ready; while :; do sleep 1; done"
    with said_ready("run", "--name", "deaf", "--", "sh", "-c", script) as process:
        assert fastpath("stop", "--grace", "0.1", "deaf").returncode == 0
        assert process.wait(TIMEOUT_S) == 143
