"""What the VM tests share: images, the accelerator, and a microVM to run things in."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastpath.datapath import netns
from fastpath.datapath.netns import Namespace
from fastpath.image import images
from fastpath.vm import accel
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec
from tests import measured
from tests.support.limits import GUEST_LIMIT_S
from tests.support.uml import UmlSpec, UserModeLinux
from tests.vm import kernellog
from tests.vm.forms import FORMS
from tests.vm.world import NETWORK

if TYPE_CHECKING:
    from collections.abc import Iterator

FRONTENDS_HEAD = """\
# Front-ends that were tried

Each booted a guest on `vhost-user-vsock`, sent 4 MiB to it and back, and ended; the
back-end then ended with status 0. Written by `make frontends` from a run of
tests/vm/test_frontends.py, which `make test` runs, too. Features are those that the
guest's driver acknowledged. QEMU's vsock device has packed rings with `packed=on` only;
its device for any back-end, and user-mode Linux, take them where the back-end has them.

| front-end | machine | device | guest kernel | features |
|---|---|---|---|---|
"""


KERNELS_HEAD = """\
| kernel | builds | boots | cases passed |
|---|---|---|---|
"""


VSOCK_TEST_HEAD = """\
# Linux's vsock_test between siblings

tools/testing/vsock of Debian's linux-source packages, built by the test, between two
guests with a kernel of the same series: siblings of one `vhost-user-vsock`. Written by
`make vsock-test` from a run of tests/vm/test_linux_vsock.py, which `make test` runs.
"""


def pytest_addoption(parser):
    parser.addoption("--write-frontends", metavar="FILE", type=Path)
    parser.addoption("--write-vsock-test", metavar="FILE", type=Path)
    parser.addoption("--write-kernels", metavar="FILE", type=Path)
    parser.addoption(
        "--nightly", action="store_true", help="tests marked `nightly`, too"
    )
    parser.addoption(
        "--cpu-seconds",
        type=int,
        default=120,
        help="of random sequences, the guest's (default: %(default)s)",
    )
    parser.addoption("--first-seed", type=int, default=1000)
    parser.addoption(
        "--kernel-config",
        metavar="FRAGMENT",
        type=Path,
        help="run guests on a kernel of our own, with this configuration, too",
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--nightly"):
        gone = [item for item in items if item.get_closest_marker("nightly")]
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=gone)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Return a folder whose path is short enough for a run's sockets in it."""
    with tempfile.TemporaryDirectory(prefix="vm-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def frontend_rows(request):
    """Front-end -> version, machine, device, guest kernel and set of features."""
    rows: dict[str, tuple[str, str, str, str, set[str]]] = {}
    yield rows
    if file := request.config.getoption("--write-frontends", default=None):
        lines = (
            "| {} | {} | `{}` | {} | {} |\n".format(*row, ", ".join(sorted(features)))
            for *row, features in rows.values()
        )
        file.write_text(FRONTENDS_HEAD + "".join(lines))


@pytest.fixture(scope="session")
def vsock_test_results(request):
    """Kernel series -> pairs of a case's name and its result."""
    results: dict[str, list[tuple[str, str]]] = {}
    yield results
    if file := request.config.getoption("--write-vsock-test", default=None):
        text = VSOCK_TEST_HEAD
        for release, cases in results.items():
            text += f"\n## Linux {release}\n\n| | case | result |\n|---|---|---|\n"
            for number, (name, result) in enumerate(cases):
                text += f"| {number} | {name} | {result} |\n"
        file.write_text(text)


@pytest.fixture(scope="session")
def kernel_cases(request):
    """Kernel release -> whether each case was as TCP's, in the form of tsi_inet."""
    cases: dict[str, list[bool]] = {}
    yield cases
    if file := request.config.getoption("--write-kernels", default=None):
        rows = (
            f"| {release} | yes | yes | {sum(passed)} of {len(passed)} |\n"
            for release, passed in cases.items()
        )
        measured.write(file, "kernels", KERNELS_HEAD + "".join(rows).rstrip())


@pytest.fixture(scope="session")
def build_image(request):
    """Builds an image by its name; of a kernel of our own with --kernel-config."""
    fragment = request.config.getoption("--kernel-config", default=None)
    own_kernel = None if fragment is None else (fragment,)
    return functools.partial(images.build, own_kernel=own_kernel)


@pytest.fixture(scope="session")
def base_image(build_image):
    """The smallest image: busybox and our own programs."""
    return build_image("base")


@pytest.fixture(scope="session")
def apps_image(build_image):
    """The base image with curl and python3."""
    return build_image("apps")


@pytest.fixture(scope="session")
def services_image(build_image):
    """The base image with servers and clients as Debian has them."""
    return build_image("services")


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    """Who has the sockets of a test's programs, as in `fastpath run --sockets`."""
    return request.param


@pytest.fixture(scope="session")
def accelerator():
    """Kvm where it runs a guest, else tcg."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    return accel.choose("auto")


@pytest.fixture(scope="module")
def namespace():
    """Where the host's side of a `World` lives."""
    if not netns.may_configure():
        pytest.skip("CAP_NET_ADMIN is missing: run as root, or under unshare -Urn")
    with Namespace() as there:
        there.run(subprocess.run, ["sh", "-ec", NETWORK], check=True)
        yield there


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

    def run(spec, work, *, timeout_s=GUEST_LIMIT_S):
        async def bounded():
            async with asyncio.timeout(timeout_s):
                async with vsock_backend(vm_dir):
                    return await boot(spec, vm_dir / "vsock", work)

        return asyncio.run(bounded())

    return run


async def boot(spec, uds_path, work):
    """Boot a spec whose vsock backend runs; return what `work(machine, guest)` does."""
    machine: UserModeLinux | Machine
    with contextlib.ExitStack() as stack:
        if isinstance(spec, UmlSpec):
            machine = UserModeLinux(spec)
        else:
            machine = Machine(stack.enter_context(kernellog.watched(spec)))
        async with Guest(uds_path, console=spec.console) as guest, machine:
            await machine.watch(guest.ready(GUEST_LIMIT_S))
            return await machine.watch(work(machine, guest))


def vsock_backend(vm_dir, *options):
    """The project's own vhost-user-vsock, as a process."""
    sockets = ("--socket", str(vm_dir / "vhost"), "--uds-path", str(vm_dir / "vsock"))
    return backend("vhost_user.vsock.cli", *(options or sockets))


@contextlib.asynccontextmanager
async def backend(module, *options):
    """A back-end of the project as a process; it has to end well."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *options),
        stderr=asyncio.subprocess.PIPE,
    )
    said = b""
    try:
        assert process.stderr is not None
        while b"ready" not in said:
            line = await process.stderr.readline()
            assert line, said.decode()
            said += line
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        said += (await process.communicate())[1]
    assert process.returncode == 0, said.decode()
