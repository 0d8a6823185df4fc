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
    tsc_khz: int | None = None
    """Frequency of the host's tsc, which under tcg is the guest's, too."""


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
    vsock_socket: Path | None
    """The vhost-user backend's unix socket, which must listen before QEMU starts;
    None: no vsock device."""
    console: Path
    """File that the guest's console is written to."""
    qmp: Path | None
    """Unix socket that the machine listens on and QEMU connects to; None: no
    QMP, which `Machine` needs."""
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


KERNEL_PARAMETERS = (
    "console=ttyS0",
    "quiet",
    # A panic restarts at once, by a triple fault, and -no-reboot ends QEMU.
    "panic=-1",
    "reboot=t",
    # The crypto self-tests are a fifth of the boot under tcg.
    "cryptomgr.notests",
)


def argv(spec: VmSpec) -> list[str]:
    """QEMU's command line for `spec`; looks at nothing but its argument."""
    line = [
        spec.qemu,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-M",
        "microvm,rtc=on,pit=on,pic=on,memory-backend=ram",
        "-accel",
        spec.accel.kind,
        "-cpu",
        _cpu(spec.accel),
        "-smp",
        str(spec.cpus),
        "-m",
        f"{spec.memory_mib}M",
        # Shared, because the vhost-user backend maps it.
        "-object",
        f"memory-backend-memfd,id=ram,size={spec.memory_mib}M,share=on",
        "-global",
        "virtio-mmio.force-legacy=false",
        "-kernel",
        str(spec.kernel or spec.image.kernel),
        "-initrd",
        str(spec.image.initramfs),
        "-append",
        " ".join([*KERNEL_PARAMETERS, *_clock(spec.accel), *spec.append.split()]),
        "-chardev",
        f"file,id=console,path={_escaped(spec.console)}",
        "-serial",
        "chardev:console",
    ]
    if spec.qmp is not None:
        line += [
            "-chardev",
            f"socket,id=qmp,path={_escaped(spec.qmp)}",
            "-mon",
            "chardev=qmp,mode=control",
        ]
    if spec.vsock_socket is not None:
        line += [
            "-chardev",
            f"socket,id=vsock,path={_escaped(spec.vsock_socket)}",
            "-device",
            "vhost-user-vsock-device,chardev=vsock",
        ]
    if spec.net is not None:
        line += [
            "-netdev",
            f"tap,id=net,fd={spec.net.fd}",
            "-device",
            f"virtio-net-device,netdev=net,mac={spec.net.mac}",
        ]
    return line


def _cpu(accel: Accelerator) -> str:
    if accel.kind == "kvm":
        return "host,+invtsc"  # or the guest takes kvm-clock for its time
    # QEMU 7.2's cmpxchg16b makes Linux 6.12 panic at random. And a guest that sees
    # ERMS or FSRM copies by `rep movsb`, which TCG emulates byte by byte: without
    # them bulk over either path is two to three times as fast.
    return "max,cx16=off,erms=off,fsrm=off"


def _clock(accel: Accelerator) -> list[str]:
    """Parameters that give a steady tsc under tcg; kvm tells the guest itself."""
    if accel.kind == "kvm":
        return []
    known = [] if accel.tsc_khz is None else [f"tsc_early_khz={accel.tsc_khz}"]
    return ["tsc=reliable", "clocksource=tsc", *known]


def _escaped(path: Path) -> str:
    """A path in a QEMU option, where a comma is written twice."""
    return str(path).replace(",", ",,")
