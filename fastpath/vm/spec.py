"""What to boot, and QEMU's command line for it, as a pure function.

Spec: QEMU 7.2, "'microvm' virtual platform" and qemu-system-x86_64(1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: what `fastpath.vm.images.build` returns."""

    name: str
    kernel: Path
    initramfs: Path
    kernel_release: str


@dataclass(frozen=True, slots=True)
class Accelerator:
    """How the guest's instructions run, and why this way."""

    kind: Literal["kvm", "tcg"]
    reason: str


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap device, open, that becomes the guest's eth0."""

    fd: int
    """Borrowed: QEMU inherits it, the caller closes it."""
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """A microVM with one vhost-user-vsock device."""

    image: Image
    accel: Accelerator
    vsock_socket: Path
    """The vhost-user backend's unix socket; must listen before QEMU starts."""
    console: Path
    """File that the guest's console is written to."""
    qmp: Path
    """Unix socket that QEMU makes; its directory must exist."""
    memory_mib: int = 512
    cpus: int = 1
    net: Tap | None = None
    qemu: str = "qemu-system-x86_64"
    kernel: Path | None = None
    """A kernel other than the image's; all drivers built in."""
    append: str = ""
    """More kernel parameters."""
    cpu_affinity: frozenset[int] | None = None
    """Host CPUs that QEMU's threads may use; None: all."""


def argv(spec: VmSpec) -> list[str]:
    """QEMU's command line for `spec`; looks at nothing but its argument."""
    raise NotImplementedError
