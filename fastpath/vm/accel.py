"""Which accelerator runs the guest: kvm where it works, else tcg.

/dev/kvm can open, make a VM, and still not run an ordinary guest: on a host that
is itself a guest of a certain kind the kernel dies early, or hangs. So "auto"
boots the base image under kvm once, without any device but a console, and waits
for the first line that init writes. The answer is kept until the host's boot,
QEMU or the CPU model changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import time
from pathlib import Path

from fastpath import files
from fastpath.errors import FastpathError
from fastpath.image import images
from fastpath.scratch import scratch
from fastpath.vm.spec import Accelerator, VmSpec, argv

__all__ = ["BOOTED", "Accelerator", "choose", "kvm_failure", "remembered"]

KVM = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
BOOTED = "a guest booted under it"
PROBE_S = 8.0
SIGN_OF_LIFE = b"init: alive"
POLL_S = 0.02


def choose(want: str, *, qemu: str = QEMU) -> Accelerator:
    """Decide between kvm and tcg.

    Blocks for up to 8 s the first time on a host with /dev/kvm, and to build the
    base image; call it through `asyncio.to_thread` from a coroutine.

    Args:
        want: "auto", "kvm" or "tcg"; kvm and tcg are taken at their word.
        qemu: the QEMU program.

    Raises:
        FastpathError: QEMU is missing, or kvm is asked for without /dev/kvm.
    """
    if shutil.which(qemu) is None:
        raise FastpathError(
            qemu, "there is no such program", "apt-get install qemu-system-x86"
        )
    if want == "tcg":
        return _tcg("asked for")
    unusable = _why_not_openable()
    if want == "kvm":
        if unusable:
            raise FastpathError("accelerator kvm", *unusable)
        return Accelerator("kvm", "asked for")
    if want != "auto":
        raise FastpathError(
            f"accelerator {want}", "unknown", "--accel auto, kvm or tcg"
        )
    if unusable:
        return _tcg(unusable[0])
    failure = kvm_failure(qemu)
    if failure is None:
        return Accelerator("kvm", BOOTED)
    return _tcg(failure)


def remembered(qemu: str = QEMU) -> str | None:
    """Why a guest did not boot under kvm; empty: it did; None: none was tried."""
    try:
        known = json.loads(_answers().read_text())
        return str(known["failure"] or "") if known["key"] == _key(qemu) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def kvm_failure(qemu: str = QEMU) -> str | None:
    """Why a guest does not boot under kvm; None if it does.

    The first time one is tried, which takes the image.

    Raises:
        FastpathError: as `images.build`.
    """
    if (known := remembered(qemu)) is not None:
        return known or None
    failure = _probe(qemu)
    with contextlib.suppress(OSError):  # asked again, where the cache may only be read
        answer = {"key": _key(qemu), "failure": failure}
        files.replace(_answers(), json.dumps(answer) + "\n")
    return failure


def _tcg(reason: str) -> Accelerator:
    return Accelerator("tcg", reason, _tsc_khz())


def _why_not_openable() -> tuple[str, str] | None:
    """Why /dev/kvm is of no use, and what fixes that; None if it opens."""
    if not KVM.exists():
        return f"there is no {KVM}", "--accel tcg"
    try:
        KVM.open("rb+", buffering=0).close()
    except OSError as error:
        return f"{KVM}: {error.strerror}", "adduser $USER kvm, and log in again"
    return None


def _answers() -> Path:
    return images.cache_directory() / "kvm.json"


def _key(qemu: str) -> str:
    """What the answer depends on."""
    version = subprocess.run(
        [qemu, "--version"], capture_output=True, text=True, check=False
    ).stdout
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    model = [line for line in cpu.splitlines() if line.startswith("model name")]
    return hashlib.sha256(f"{version}{boot}{model}".encode()).hexdigest()


def _probe(qemu: str) -> str | None:
    """Boot the base image under kvm until init lives, QEMU ends or time is up."""
    image = images.build("base")
    with scratch() as directory:
        spec = VmSpec(
            image=image,
            accel=Accelerator("kvm", "probe"),
            vsock_socket=None,
            console=directory / "console",
            qmp=None,
            memory_mib=256,
            qemu=qemu,
        )
        with subprocess.Popen(
            argv(spec),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                return _watch(process, spec.console)
            finally:
                process.kill()


def _watch(process: subprocess.Popen[str], console: Path) -> str | None:
    end = time.monotonic() + PROBE_S
    while time.monotonic() < end:
        ended = process.poll() is not None
        if console.exists() and SIGN_OF_LIFE in console.read_bytes():
            return None
        if ended:
            assert process.stderr is not None
            said = process.stderr.read().strip().splitlines()
            why = said[0] if said else f"QEMU ended with {process.returncode}"
            return f"a guest under kvm died: {why}"
        time.sleep(POLL_S)
    return f"a guest under kvm did not boot within {PROBE_S:.0f} s"


def _tsc_khz() -> int | None:
    """The frequency of the host's tsc, as guest/probe measures it; None without."""
    try:
        measured = subprocess.run(
            [str(images.program("probe")), "clock"],
            capture_output=True,
            timeout=5,
            check=True,
        )
        answer = json.loads(measured.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    # Where the host itself does not trust its tsc, the guest shall find out.
    return int(answer["tsc_khz"]) if answer["clocksource"] == "tsc" else None
