"""The entropy device in a guest: the framework serves more than vsock."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace

import pytest

from tests.support.limits import GUEST_LIMIT_S as TIMEOUT_S
from tests.vm.conftest import backend, boot, vsock_backend

pytestmark = pytest.mark.vm

SIZE = 65536
SCRIPT = f"cat /sys/class/misc/hw_random/rng_current; head -c {SIZE} /dev/hwrng"


@pytest.mark.spec("VIRTIO 1.2 section 5.4.6")
def test_the_guests_hwrng_reads_from_our_device(vm_spec, vm_dir):
    spec = replace(vm_spec, rng_socket=vm_dir / "rng")

    async def work(machine, guest):
        said = bytearray()
        status = await guest.run(["sh", "-ec", SCRIPT], tsi=False, stdout=said.extend)
        return status, bytes(said)

    async def bounded():
        async with (
            asyncio.timeout(TIMEOUT_S),
            vsock_backend(vm_dir),
            backend("vhost_user.rng", "--socket", str(spec.rng_socket)),
        ):
            return await boot(spec, vm_dir / "vsock", work)

    status, said = asyncio.run(bounded())
    name, _, data = said.partition(b"\n")
    assert (status, len(data)) == (0, SIZE)
    assert name.startswith(b"virtio_rng")
    assert len(zlib.compress(data)) > SIZE  # there is nothing to find in it
