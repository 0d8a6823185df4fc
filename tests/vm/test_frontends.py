"""Real front-ends: each boots a guest on our back-end, and a payload goes both ways.

With `--write-frontends FILE` what was seen becomes the table in docs/frontends.md.
"""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass, replace

import pytest

from fastpath.image import images
from fastpath.image.programs import Program, unpack
from fastpath.vm.spec import GENERIC_VSOCK, VSOCK
from tests.support import programs
from tests.support.limits import GUEST_LIMIT_S as TIMEOUT_S
from tests.support.uml import UmlSpec
from tests.vm.conftest import boot, vsock_backend

pytestmark = pytest.mark.vm

PAYLOAD = bytes(range(256)) * 4096 * 4  # 4 MiB

FACTS = """
uname -r
for each in /sys/bus/virtio/devices/*; do
  test $(cat $each/device) != 0x0013 || cat $each/features
done
"""
BITS = {
    1: "SEQPACKET",
    28: "INDIRECT_DESC",
    29: "EVENT_IDX",
    32: "VERSION_1",
    34: "RING_PACKED",
    35: "IN_ORDER",
    40: "RING_RESET",
}
"""VIRTIO 1.2 sections 5.10.3 and 6."""

VSOCK_PACKED = f"{VSOCK},packed=on"
"""QEMU offers its guest packed rings where it is told to."""

COMMON = frozenset({"EVENT_IDX", "INDIRECT_DESC", "VERSION_1"})
PACKED = COMMON | {"RING_PACKED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontend:
    """A front-end that is tried."""

    id: str
    image: str = "base"
    qemu: Program | None = None
    """None: the host's."""
    machine: str = "microvm"
    device: str = VSOCK
    features: frozenset[str] = COMMON
    """Negotiated, at least."""


FRONTENDS = [
    Frontend(id="qemu-7.2-mmio"),
    Frontend(id="qemu-7.2-pci", machine="microvm-pci"),
    Frontend(id="qemu-7.2-mmio-linux-6.12", image="linux-6.12"),
    Frontend(
        id="qemu-7.2-pci-packed",
        machine="microvm-pci",
        device=VSOCK_PACKED,
        features=PACKED,
    ),
    Frontend(id="qemu-10-mmio", qemu=programs.QEMU_10),
    Frontend(
        id="qemu-10-q35-linux-6.12",
        image="linux-6.12",
        qemu=programs.QEMU_10,
        machine="q35",
    ),
    Frontend(
        id="qemu-10-mmio-linux-6.12-packed",
        image="linux-6.12",
        qemu=programs.QEMU_10,
        device=VSOCK_PACKED,
        features=PACKED,
    ),
    Frontend(
        id="qemu-sid-generic",
        qemu=programs.QEMU_SID,
        device=GENERIC_VSOCK,
        features=PACKED,
    ),
    Frontend(id="uml", image="uml", features=PACKED),
]


@pytest.mark.parametrize("frontend", FRONTENDS, ids=lambda each: each.id)
def test_a_payload_goes_both_ways_and_the_end_is_clean(
    frontend, vm_spec, vm_dir, frontend_rows
):
    spec, version = _spec(frontend, vm_spec)

    async def work(machine, guest):
        facts, back = bytearray(), bytearray()
        statuses = [
            await guest.run(["sh", "-ec", FACTS], tsi=False, stdout=facts.extend),
            await guest.run(["cat"], tsi=False, stdin=PAYLOAD, stdout=back.extend),
        ]
        return statuses, facts.decode().split(), bytes(back) == PAYLOAD

    async def bounded():
        async with asyncio.timeout(TIMEOUT_S), vsock_backend(vm_dir):
            return await boot(spec, vm_dir / "vsock", work)

    statuses, (kernel, features), same = asyncio.run(bounded())
    assert statuses == [0, 0]
    assert same
    negotiated = {BITS[i] for i, bit in enumerate(features) if bit == "1"}
    frontend_rows[frontend.id] = (version, *_device(frontend), kernel, negotiated)
    assert negotiated >= frontend.features


def _spec(frontend, vm_spec):
    """What to boot, and the version of the front-end."""
    image = images.build(frontend.image)
    if frontend.image == "uml":
        unpacked = unpack(programs.UML)
        spec = UmlSpec(
            image=image,
            start=unpacked.start,
            vsock_socket=vm_spec.vsock_socket,
            console=vm_spec.console,
        )
        return spec, f"user-mode Linux {image.kernel_release}"
    spec = replace(
        vm_spec, image=image, machine=frontend.machine, vsock_device=frontend.device
    )
    if frontend.qemu is not None:
        spec = replace(spec, qemu=str(unpack(frontend.qemu).start))
    said = subprocess.run(
        [spec.qemu, "--version"], capture_output=True, text=True, check=True
    )
    return spec, "QEMU " + said.stdout.split()[3]


def _device(frontend):
    """The machine and the device, for the table."""
    if frontend.image == "uml":
        return "um", "virtio_uml"
    name = frontend.device.partition(",virtio-id=")[0]
    bus = "mmio" if frontend.machine == "microvm" else "pci"
    return frontend.machine, f"{name} ({bus})"
