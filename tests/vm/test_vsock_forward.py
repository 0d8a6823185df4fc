"""Forwarding to AF_VSOCK, in a guest that plays the host: it has vsock_loopback.

Nothing here needs that of this machine.
"""

from __future__ import annotations

import importlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import vhost_user
from fastpath.image import images
from vhost_user import _vu

pytestmark = pytest.mark.vm

PROGRAM = Path(__file__).with_name("forward_client.py")
MODULES = "/opt/python"


def record_cipher() -> Path:
    """The library that the guest's packages don't bring."""
    ldd = ["ldd", _vu.__file__]
    said = subprocess.run(ldd, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in said.splitlines() if "libIPSec_MB" in line)
    return Path(line.split()[2])


def test_connections_are_forwarded_both_ways(in_vm, vm_spec, vm_dir, apps_image):
    package = Path(vhost_user.__file__).parent
    cffi = Path(importlib.import_module("_cffi_backend").__file__ or "")
    cipher = record_cipher()
    files = {
        f"/usr/lib/{cipher.name}": cipher.resolve(),
        f"{MODULES}/vhost_user": package,
        f"{MODULES}/{cffi.name}": cffi,
        f"{MODULES}/forward_client.py": PROGRAM,
    }
    image = images.with_files(apps_image, files, vm_dir / "initramfs")
    said = bytearray()

    async def work(machine, guest):
        return await guest.run(
            ["env", f"PYTHONPATH={MODULES}", "python3", f"{MODULES}/forward_client.py"],
            tsi=False,
            stdout=said.extend,
            stderr=said.extend,
        )

    status = in_vm(replace(vm_spec, image=image), work)
    lines = said.decode().splitlines()
    assert status == 0, said.decode()
    assert lines[1:] == ["guest to host", "host to guest", "status 0"]
