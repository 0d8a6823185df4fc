"""Istio's own ztunnel decides from the same file as we do: `--ztunnel BIN`.

It runs in dedicated mode, for `client` of the file, in a namespace where nothing can be
reached. Its SOCKS5 listener takes destinations; its access log says what it made of
them. tests/unit/fastpath/test_istio_outbound.py holds ours to the same table.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest

from fastpath.datapath.netns import Namespace
from fastpath.ztunnel.model import ListenAddress
from tests.support.limits import LIMIT_S, wait_until
from tests.support.mesh_cases import CLIENT, ISTIOS, MESH, OUTBOUND
from tests.unit.fastpath.config_errors import ERRORS

pytestmark = [pytest.mark.netns, pytest.mark.ztunnel]

DOCS = Path(__file__).parents[2] / "docs"
SOCKS = ("127.0.0.1", 15080)


class Ztunnel:
    """It, and its log."""

    def __init__(self, binary, folder, namespace, mesh):
        self._namespace = namespace
        (folder / "mesh.yaml").write_text(mesh)
        make_root = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes"]
        make_root += ["-subj", "/O=t", "-pkeyopt", "ec_paramgen_curve:P-256"]
        make_root += ["-keyout", "key", "-out", "ca"]
        subprocess.run(make_root, check=True, capture_output=True, cwd=folder)
        settings = {
            "PATH": os.environ["PATH"],
            "XDS_ADDRESS": "",
            "LOCAL_XDS_PATH": f"{folder}/mesh.yaml",
            "PROXY_MODE": "dedicated",
            "PROXY_WORKLOAD_INFO": CLIENT,
            "NODE_NAME": "local",
            "UNSTABLE_ENABLE_SOCKS5": "true",
            "ZTUNNEL_WORKER_THREADS": "1",
            "CA_ADDRESS": "https://127.0.0.1:1",  # nobody's: no tunnel gets far
            "CA_ROOT_CA": f"{folder}/ca",
        }
        self.log = folder / "ztunnel.log"
        argv = namespace.command([str(binary.resolve()), "proxy", "ztunnel"])
        with self.log.open("w") as out:
            self.process = subprocess.Popen(argv, env=settings, stdout=out, stderr=out)

    def says(self, words):
        """Wait for words in its log."""
        wait_until(lambda: words in self.log.read_text(), what=words)

    def decides(self, to):
        """Ask for a destination; return the access log's line about it."""
        address = ListenAddress.parse(to)
        kind = 4 if address.host.version == 6 else 1
        request = struct.pack("!BBBB", 5, 1, 0, kind)
        request += address.host.packed + struct.pack("!H", address.port)
        with self._namespace.socket() as sock:
            sock.settimeout(LIMIT_S)
            sock.connect(SOCKS)
            source = f"src.addr=127.0.0.1:{sock.getsockname()[1]} "
            sock.sendall(b"\5\1\0" + request)
            return wait_until(lambda: self._line(source), what=to)

    def _line(self, source):
        lines = self.log.read_text().splitlines()
        found = (it for it in lines if "access" in it and source in it)
        return next(found, None)


@contextlib.contextmanager
def running(request, folder, mesh):
    binary = request.config.getoption("--ztunnel")
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        script = "ip link set lo up; ip route add prohibit 0.0.0.0/1"
        subprocess.run(namespace.command(["sh", "-ec", script]), check=True)
        there = Ztunnel(binary, folder, namespace, mesh)
        stack.callback(there.process.wait, LIMIT_S)
        stack.callback(there.process.kill)
        yield there


@pytest.fixture(scope="module")
def ztunnel(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ztunnel")
    with running(request, folder, MESH) as there:
        there.says("socks5")
        yield there


def field(line, name):
    """A field's value; empty: it is not there."""
    found = re.search(rf'{re.escape(name)}="?([^" ]*)', line)
    return found[1] if found else ""


@pytest.mark.parametrize("case", OUTBOUND.values(), ids=OUTBOUND.keys())
def test_it_decides_by_the_same_file_what_we_do(ztunnel, case):
    line = ztunnel.decides(case.to)
    if case.refused:
        assert "connection failed" in line
        assert ISTIOS[case.refused] in line
        return
    assert field(line, "dst.addr") == case.addr
    assert field(line, "dst.hbone_addr") == case.hbone
    assert field(line, "dst.service") == case.service
    assert field(line, "dst.workload") == case.workload


def test_it_reads_the_file_with_every_key(request, tmp_path):
    text = (DOCS / "mesh.example.yaml").read_text()
    with running(request, tmp_path, text) as there:
        there.says("local config initialized\tnum_workloads=7 num_policies=2")


WRONG = ["policy-rules-missing", "policy-dry-run-missing", "workload-services-missing"]
WRONG += [
    "our-settings",
    "unknown-key",
    "snake-case-is-unknown",
    "unknown-in-a-waypoint",
]
WRONG += ["presence-of-null", "prefix-without-length", "match-without-tag"]
WRONG += ["endpoint-without-status", "vip-without-network", "bad-enum", "key-twice"]


@pytest.mark.parametrize("name", WRONG)
def test_it_refuses_what_we_refuse(request, tmp_path, name):
    with running(request, tmp_path, ERRORS[name][0]) as there:
        assert there.process.wait(LIMIT_S) != 0
