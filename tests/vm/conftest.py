"""What the VM tests share: images, the accelerator, and a microVM to run things in."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from fastpath.vm import accel, images
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec

BACKEND = "vhost_user.vsock.cli"
READY_S = 30.0


@pytest.fixture(scope="session")
def base_image():
    """The smallest image: busybox and our own programs."""
    return images.build("base")


@pytest.fixture(scope="session")
def apps_image():
    """The base image with curl and python3."""
    return images.build("apps")


@pytest.fixture(scope="session")
def accelerator():
    """Kvm where it runs a guest, else tcg."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    return accel.choose("auto")


@pytest.fixture
def vm_dir():
    """A directory with a short path; no unix socket may be left in it at the end."""
    with tempfile.TemporaryDirectory(prefix="fp-") as name:
        yield Path(name)
        left = [path.name for path in Path(name).iterdir() if path.is_socket()]
        assert left == []


@pytest.fixture
def vm_spec(base_image, accelerator, vm_dir):
    """A microVM that `in_vm` boots; change it with dataclasses.replace."""
    return VmSpec(
        image=base_image,
        accel=accelerator,
        vsock_socket=vm_dir / "vhost",
        console=vm_dir / "console",
        qmp=vm_dir / "qmp",
    )


@pytest.fixture
def in_vm(vm_dir):
    """Boots a spec on a vsock backend of its own and runs `work(machine, guest)`."""

    def run(spec, work, *, timeout_s=60.0):
        async def bounded():
            async with asyncio.timeout(timeout_s):
                async with _backend(spec, vm_dir / "vsock"):
                    return await _boot(spec, vm_dir / "vsock", work)

        return asyncio.run(bounded())

    return run


async def _boot(spec, uds_path, work):
    async with (
        Guest(uds_path, console=spec.console) as guest,
        Machine(spec) as machine,
    ):
        await machine.watch(guest.ready(READY_S))
        return await machine.watch(work(machine, guest))


@contextlib.asynccontextmanager
async def _backend(spec, uds_path):
    """The project's own vhost-user-vsock, as a process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", BACKEND),
        *("--socket", str(spec.vsock_socket), "--uds-path", str(uds_path)),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        assert b"ready" in await process.stderr.readline()
        yield
    finally:
        process.terminate()
        await process.communicate()
