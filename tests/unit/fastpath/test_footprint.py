"""What stays in memory: a node's process imports what each run of it uses, no more."""

from __future__ import annotations

import subprocess
import sys

import pytest

OTHERS = (
    # of other commands
    *("typer", "rich", "pydantic", "pyroute2", "qemu", "fastpath.commands.cli"),
    # used when somebody asks, or something is wrong
    *("prometheus_client", "importlib.metadata", "difflib"),
    # with certificates only, and with a CA elsewhere
    *("cryptography", "grpc", "google.protobuf"),
    # what those bring with them
    *("cffi", "pycparser", "http.client", "http.server", "urllib.request", "email"),
    *("hashlib", "hmac", "multiprocessing", "decimal", "zipfile"),
)
"""Modules that take memory."""


@pytest.mark.parametrize("entry", ["fastpath.commands.ztunnel", "vhost_user.vsock.cli"])
def test_a_process_that_stays_is_without_what_it_does_not_use(entry):
    code = f"import sys, {entry}; print(*(n for n in {OTHERS} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []
