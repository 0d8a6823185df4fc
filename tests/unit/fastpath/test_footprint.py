"""What stays in memory: a node's process imports what each run of it uses, no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

OTHERS = (
    # of other commands
    *("rich", "pydantic", "pyroute2", "qemu", "shtab", "fastpath.vm"),
    # used when somebody asks, or something is wrong
    *("prometheus_client", "importlib.metadata", "difflib"),
    # with certificates only, and with a CA elsewhere
    *("cryptography", "grpc", "google.protobuf"),
    # what those bring with them
    *("cffi", "pycparser", "http.client", "http.server", "urllib.request", "email"),
    *("hashlib", "hmac", "multiprocessing", "decimal", "zipfile"),
)
"""Modules that take memory."""
ENTRIES = ("fastpath.commands.cli, fastpath.commands.ztunnel", "vhost_user.vsock.cli")


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_process_that_stays_is_without_what_it_does_not_use(entry):
    code = f"import sys, {entry}; print(*(n for n in {OTHERS} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []


CONFIG = """
mesh: {folder}/mesh.yaml
certificates: {{embedded: {folder}/ca}}
sandboxes:
  - {{name: a, workload: default/a, socket: {folder}/s, cid: 3}}
"""
MESH = """
workloads:
- {uid: u, name: a, namespace: default, workloadIps: [127.0.7.5], services: {}}
"""


def test_a_node_with_certificates_is_without_what_makes_them(tmp_path):
    (tmp_path / "mesh.yaml").write_text(MESH)
    (tmp_path / "z.yaml").write_text(CONFIG.format(folder=tmp_path))
    argv = ("-m", "fastpath", "ztunnel", "--config", f"{tmp_path}/z.yaml")
    with subprocess.Popen([sys.executable, *argv], stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr
            assert any(b": ready: " in line for line in process.stderr)
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        finally:
            process.terminate()
    assert (tmp_path / "ca" / "root-cert.pem").exists()
    assert "/cryptography/" not in maps
    assert "/_ssl." not in maps  # the engine has OpenSSL, and asyncio no use for it
