"""What to boot, and QEMU's command line for it, as a pure function.

Spec: QEMU 7.2, "'microvm' virtual platform" and qemu-system-x86_64(1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from fastpath.image.images import Image

BOOT_TIMEOUT_S: Final = {"kvm": 30.0, "tcg": 180.0}
"""A hundred times what a boot takes on a machine with nothing else to do."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """How the guest's instructions run, and why this way."""

    kind: Literal["kvm", "tcg"]
    reason: str
    tsc_khz: int | None = None
    """Frequency of the host's tsc, which under tcg is the guest's, too."""

    @property
    def boot_timeout_s(self) -> float:
        """How long a guest may take to boot before it counts as dead."""
        return BOOT_TIMEOUT_S[self.kind]


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap device, open, that becomes the guest's eth0."""

    fd: int
    """Borrowed: QEMU inherits it, the caller closes it."""
    mac: str


@dataclass(frozen=True, slots=True)
class VhostUserNet:
    """A vhost-user network back-end, which becomes the guest's eth0."""

    socket: Path
    """The back-end listens there before QEMU starts."""
    mac: str


Nic: TypeAlias = Tap | VhostUserNet
"""What a guest's eth0 is attached to outside of QEMU."""


@dataclass(frozen=True, slots=True)
class UserNet:
    """QEMU's own network: the guest's eth0 reaches the host's loopback at 10.0.2.2."""

    forward: tuple[int, int] | None = None
    """TCP port of the host's loopback, and the guest's port that it leads to."""


VSOCK = "vhost-user-vsock"
"""The vsock device of QEMU that has its features from a list of its own."""
GENERIC_VSOCK = "vhost-user-test-device,virtio-id=19,num_vqs=3,config_size=8"
"""QEMU 11's device for any back-end, as a vsock device: all features and all three
queues are the back-end's."""


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
    net: Nic | UserNet | None = None
    machine: Literal["microvm", "microvm-pci", "q35"] = "microvm"
    """Virtio devices are on the mmio bus of a microvm, else on PCI."""
    vsock_device: str = VSOCK
    """Its name without the bus, and properties."""
    rng_socket: Path | None = None
    """Unix socket of a vhost-user-rng backend; None: no such device."""
    hotplug_mib: int = 0
    """Memory that can be added while it runs; a q35's only."""
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
        MACHINES[spec.machine] + ",memory-backend=ram",
        "-accel",
        spec.accel.kind,
        "-cpu",
        _cpu(spec.accel),
        "-smp",
        str(spec.cpus),
        "-m",
        _memory(spec),
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
    line += _backend(spec, "vsock", spec.vsock_device, spec.vsock_socket)
    line += _backend(spec, "rng", "vhost-user-rng", spec.rng_socket)
    return [*line, *_net(spec)]


MACHINES = {
    "microvm": "microvm,rtc=on,pit=on,pic=on",
    "microvm-pci": "microvm,rtc=on,pit=on,pic=on,pcie=on",
    "q35": "q35",
}


def _memory(spec: VmSpec) -> str:
    if not spec.hotplug_mib:
        return f"{spec.memory_mib}M"
    return f"{spec.memory_mib}M,slots=4,maxmem={spec.memory_mib + spec.hotplug_mib}M"


BARE = {"vhost-user-rng", "vhost-user-test-device"}
"""Devices that have no "-device" added to their name on the mmio bus."""


def _device(spec: VmSpec, name: str) -> str:
    """The name of a virtio device on the machine's bus."""
    if spec.machine != "microvm":
        return f"{name}-pci"
    return name if name in BARE else f"{name}-device"


def _backend(spec: VmSpec, own: str, device: str, socket: Path | None) -> list[str]:
    """A vhost-user device, with a name of ours, on its backend's socket."""
    if socket is None:
        return []
    name, *properties = device.split(",")
    return [
        "-chardev",
        f"socket,id={own},path={_escaped(socket)}",
        "-device",
        ",".join([_device(spec, name), f"chardev={own}", *properties]),
    ]


def _net(spec: VmSpec) -> list[str]:
    device = f"{_device(spec, 'virtio-net')},netdev=net"
    chardev: list[str] = []
    netdev = "user,id=net"
    match spec.net:
        case None:
            return []
        case Tap(fd, mac):
            device += f",mac={mac}"
            netdev = f"tap,id=net,fd={fd}"
        case VhostUserNet(path, mac):
            device += f",mac={mac}"
            chardev = ["-chardev", f"socket,id=net,path={_escaped(path)}"]
            netdev = "vhost-user,id=net,chardev=net"
        case UserNet(forward):
            if forward is not None:
                netdev += ",hostfwd=tcp:127.0.0.1:{}-:{}".format(*forward)
    return [*chardev, "-netdev", netdev, "-device", device]


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
