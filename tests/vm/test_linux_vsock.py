"""Linux's own tests of vsock, between guests that are siblings of one back-end.

With `--write-vsock-test FILE` the results become docs/vsock-test.md.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from fastpath.image import images
from tests.support import linux_tests
from tests.support.limits import GUEST_LIMIT_S as TIMEOUT_S
from tests.vm.conftest import backend

pytestmark = pytest.mark.vm

CIDS = (3, 4)

KERNELS = [
    pytest.param("6.1", "base", id="linux-6.1"),
    pytest.param("6.12", "linux-6.12", id="linux-6.12"),
]

CASES = {"6.1": 11, "6.12": 26}
LEFT_OUT: dict[str, dict[int, str]] = {}
"""Release -> case -> what the guest's kernel does wrong in it."""


@contextlib.asynccontextmanager
async def siblings(vm_spec, vm_dir, release, image):
    """Two guests with the programs of `release`, in one group of one back-end."""
    tests = linux_tests.programs(linux_tests.build(release))
    image = images.with_files(images.build(image), tests, vm_dir / "initramfs")
    uds_paths = tuple(vm_dir / f"vsock{cid}" for cid in CIDS)
    sockets = tuple(vm_dir / f"vhost{cid}" for cid in CIDS)
    options = [
        f"--vm=guest-cid={cid},socket={socket},uds-path={uds_path}"
        for cid, socket, uds_path in zip(CIDS, sockets, uds_paths, strict=True)
    ]
    specs = tuple(
        replace(
            vm_spec,
            image=image,
            vsock_socket=socket,
            console=vm_dir / f"console{cid}",
            qmp=vm_dir / f"qmp{cid}",
            memory_mib=256,
        )
        for cid, socket in zip(CIDS, sockets, strict=True)
    )
    async with (
        backend("vhost_user.vsock.cli", *options),
        linux_tests.pair(specs, uds_paths, CIDS, TIMEOUT_S) as both,
    ):
        yield both


@pytest.mark.parametrize(("release", "image"), KERNELS)
def test_vsock_test_passes_between_siblings(
    release, image, vm_spec, vm_dir, vsock_test_results
):
    async def bounded():
        async with (
            asyncio.timeout(TIMEOUT_S),
            siblings(vm_spec, vm_dir, release, image) as both,
        ):
            return await linux_tests.vsock_test(both, list(left_out))

    left_out = LEFT_OUT.get(release, {})
    cases = asyncio.run(bounded())
    vsock_test_results[release] = [
        (case.name, left_out.get(case.number, case.result)) for case in cases
    ]
    wrong = [each for each in cases if each.result != "ok"]
    assert [each.number for each in wrong if each.result == "skipped"] == [*left_out]
    assert [each for each in wrong if each.result != "skipped"] == []
    assert len(cases) == CASES[release]


@pytest.mark.parametrize("to_second", [True, False], ids=["there", "back"])
def test_vsock_perf_sends_between_siblings(to_second, vm_spec, vm_dir):
    async def bounded():
        async with (
            asyncio.timeout(TIMEOUT_S),
            siblings(vm_spec, vm_dir, "6.12", "base") as both,
        ):
            return await linux_tests.vsock_perf(
                both, to_second=to_second, size=64 << 20, buffer=64 << 10
            )

    assert min(asyncio.run(bounded())) > 0
