"""Two nodes, each with a microVM: examples/two_nodes, as a stranger runs it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastpath.datapath import netns
from tests.support.limits import GUEST_LIMIT_S, LIMIT_S

pytestmark = pytest.mark.vm

COMMAND = [sys.executable, "-m", "examples.two_nodes.run"]
CLIENT, SERVER = "10.0.0.5", "10.0.0.6"
DATA = bytes(range(256)) * 4096


@pytest.fixture
def left(apps_image, accelerator):
    """The example's folders; a test leaves none."""
    if not netns.may_configure():
        pytest.skip("CAP_NET_ADMIN is missing: run as root, or under unshare -Urn")
    assert shutil.which("ip"), "iproute2"
    before = {*Path("/tmp").glob("two-*")}
    yield lambda: {*Path("/tmp").glob("two-*")} - before
    assert {*Path("/tmp").glob("two-*")} == before


def who(name):
    return f'"spiffe://cluster.local/ns/default/sa/{name}"'


def test_a_program_in_a_microvm_asks_one_in_another_by_hbone(left):
    """Bytes, half-close, the client's IP, names, and both identities in both logs."""
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, timeout=GUEST_LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"hello {CLIENT}, this is node b" in done.stdout
    digest = hashlib.sha256(DATA).hexdigest()
    assert f"{len(DATA)} bytes of {CLIENT}, sha256 {digest}" in done.stdout
    _, of_a, of_b = re.split("--- access log of node .\n", done.stdout)
    for log, direction in ((of_a, "outbound"), (of_b, "inbound")):
        http, count = log.splitlines()[:2]
        assert f"dst.hbone_addr={SERVER}:8080" in http
        assert f"dst.hbone_addr={SERVER}:9090" in count
        for line in (http, count):
            assert f'direction="{direction}"' in line
            assert f"src.identity={who('client')}" in line
            assert f"dst.identity={who('server')}" in line
            assert " error=" not in line


def test_ctrl_c_leaves_nothing(left):
    process = subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert "two ztunnels are ready" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert left() == set()
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError):
            assert b"node-b.yaml" not in place.read_bytes()
