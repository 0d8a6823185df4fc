"""Hand-off `pod`, the command: it starts in full or not at all, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastpath.datapath.netns import Namespace
from tests.support.limits import LIMIT_S, wait_until

pytestmark = pytest.mark.netns

HIDDEN = ("unshare", "--user", "--map-root-user")
"""Root of a user namespace that owns no network namespace."""


@pytest.fixture
def namespace():
    with Namespace() as there:
        yield there


@pytest.fixture
def config(tmp_path):
    """Write a configuration with one sandbox; the path is on its line 7."""

    def write(path):
        file = tmp_path / "z.yaml"
        (tmp_path / "mesh.yaml").write_text(
            "workloads:\n"
            "  - {name: a, namespace: d, workloadIps: [10.0.0.5], services: {}}\n"
        )
        file.write_text(
            f"mesh: {tmp_path}/mesh.yaml\n"
            "sandboxes:\n"
            "  - name: a\n"
            "    workload: d/a\n"
            f"    socket: {tmp_path}/s\n"
            "    cid: 3\n"
            f"    netns: {path}\n"
        )
        return file

    return write


def command(file):
    return [sys.executable, "-m", "fastpath", "ztunnel", "--config", str(file)]


def start(file):
    """Start it; return it when it is ready."""
    process = subprocess.Popen(command(file), stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert "ready" in process.stderr.readline()
    return process


def children(pid):
    """Those of its main thread."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/run/netns/there-is-none", "No such file or directory; hint: make it first"),
        ("/etc/passwd", "/etc/passwd is no network namespace; hint: name one as"),
        ("pod1", "must be a path as /run/netns/NAME, not 'pod1'"),
    ],
)
def test_a_bad_path_is_named_with_its_line_and_nothing_is_left(
    tmp_path, config, path, why
):
    done = subprocess.run(
        command(config(path)),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert f"{tmp_path}/z.yaml:7:5: sandboxes[0].netns: " in line
    assert why in line
    assert not (tmp_path / "s").exists()


def test_a_namespace_that_may_not_be_entered_is_an_error(config, namespace):
    path = f"/proc/{os.getpid()}/fd/{namespace.fileno()}"
    done = subprocess.run(
        [*HIDDEN, *command(config(path))],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "sandboxes[0].netns: " in line
    assert "hint: run as root" in line


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGKILL])
def test_the_process_in_the_namespace_ends_with_its_parent(config, namespace, signo):
    process = start(config(namespace.path))
    with process:
        (maker,) = children(process.pid)
        process.send_signal(signo)
        process.wait(LIMIT_S)
    wait_until(lambda: not Path(f"/proc/{maker}").exists())


def test_what_a_terminal_sends_to_all_is_for_the_parent(config, namespace):
    process = start(config(namespace.path))
    with process:
        (maker,) = children(process.pid)
        for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(maker, signo)
        process.send_signal(signal.SIGHUP)  # reads policies again
        assert children(process.pid) == [maker]
        process.terminate()
        assert process.wait(LIMIT_S) == 0
