"""Memory that QEMU plugs into a running guest carries its vsock connections."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.limits import GUEST_LIMIT_S as TIMEOUT_S
from tests.vm.conftest import boot, vsock_backend

pytestmark = pytest.mark.vm

PLUGGED = 256 << 20
PAYLOAD = bytes(range(256)) * 4096 * 4  # 4 MiB

# Plugged memory lies above 4 GiB, where a guest of 192 MiB has nothing yet: so its
# kernel takes pages from there first.
ONLINE = """
until test $(awk '/MemTotal/ {print $2}' /proc/meminfo) -gt 300000; do sleep 0.1; done
"""


def touched(pid, size):
    """Bytes of a mapping of `size` bytes that the process has touched; None: has none.

    Spec: proc(5), /proc/PID/smaps.
    """
    text = Path(f"/proc/{pid}/smaps").read_text()
    found = re.findall(r"(?ms)^Size: +(\d+) kB$.*?^Rss: +(\d+) kB$", text)
    sizes = {int(kib) << 10: int(rss) << 10 for kib, rss in found}
    return sizes.get(size)


def test_plugged_memory_carries_the_guests_payload(vm_spec, vm_dir):
    spec = replace(
        vm_spec,
        machine="q35",
        memory_mib=192,
        hotplug_mib=PLUGGED >> 20,
        append="memhp_default_state=online",
    )

    async def bounded():
        async with asyncio.timeout(TIMEOUT_S), vsock_backend(vm_dir) as process:

            async def work(machine, guest):
                assert touched(process.pid, PLUGGED) is None
                await machine.execute(
                    "object-add",
                    {
                        "qom-type": "memory-backend-memfd",
                        "id": "more",
                        "size": PLUGGED,
                        "share": True,
                    },
                )
                device = {"driver": "pc-dimm", "id": "dimm", "memdev": "more"}
                await machine.execute("device_add", device)
                back = bytearray()
                statuses = [
                    await guest.run(["sh", "-ec", ONLINE], tsi=False),
                    await guest.run(
                        ["cat"], tsi=False, stdin=PAYLOAD, stdout=back.extend
                    ),
                ]
                return statuses, back, touched(process.pid, PLUGGED)

            return await boot(spec, vm_dir / "vsock", work)

    statuses, back, there = asyncio.run(bounded())
    assert statuses == [0, 0]
    assert back == PAYLOAD
    assert there > 0
