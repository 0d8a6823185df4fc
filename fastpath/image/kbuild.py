"""Kernel modules of ours, from guest/kernel, for the kernel of an image.

Debian's headers of that kernel are unpacked beside the sources and kbuild does the
rest; nothing is installed. What was built stays in the cache, by all that went in.

The headers of another release than the host's bring programs for its C library, and
options for its compiler. For those the release's own compiler, make and shell are
unpacked with the headers, and what comes of it is the root that kbuild runs in.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KERNEL: Final = re.compile(r"linux-image-(?P<release>\d.*)")
"""Name of a package with a kernel that there are headers for."""
NEEDED: Final = ("linux-headers-", "linux-kbuild-")
"""Packages that count, of those that a kernel's headers depend on."""

TOOLS: Final = (
    "binutils",
    "coreutils",
    "dash",
    "findutils",
    "gawk",
    "grep",
    "make",
    "sed",
)
"""What kbuild runs, besides the compiler that a kernel's headers depend on."""
LINKS: Final = {
    "usr/bin/awk": "gawk",
    "usr/bin/sh": "dash",
    **{each: f"usr/{each}" for each in ("bin", "lib", "lib64", "sbin")},
}
"""What the installation of a release and of those would make."""
IN_ROOT: Final = (
    'for each in dev proc; do mount --rbind "/$each" "$0/$each" || exit; done; '
    'exec chroot "$0" "$@"'
)

MAKE: Final = "usr/bin/make"
"""Is there where the packages are such a root."""
NO_BTF: Final = "CONFIG_DEBUG_INFO_BTF_MODULES="
"""Type information would take a tool more, and the kernel itself."""
NEEDS: Final = "apt-get install gcc make libelf-dev util-linux"


@dataclass(frozen=True, slots=True)
class Target:
    """What a module is compiled for."""

    options: tuple[str, ...]
    """Of make, for kbuild."""
    prefix: str = ""
    """Of the names of GNU's tools."""


HOST: Final = Target(("CC=cc",))
"""Any compiler will do."""
ARM64: Final = Target(
    ("ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", "CC=aarch64-linux-gnu-gcc"),
    "aarch64-linux-gnu-",
)


def headers_of(kernels: Iterable[str]) -> list[str]:
    """The packages with the headers of kernels.

    Args:
        kernels: packages; those that only depend on a kernel are left out.

    Raises:
        FastpathError: none is one of Debian's kernels.
    """
    found = list(filter(None, map(KERNEL.fullmatch, kernels)))
    if not found:
        raise FastpathError("modules of ours", "the kernel is not one with headers")
    return [f"linux-headers-{each['release']}" for each in found]


def build(
    guest: Path,
    names: Sequence[str],
    headers: Sequence[Path],
    cache: Path,
    target: Target = HOST,
) -> dict[str, bytes]:
    """Build modules of guest/kernel, or return what the cache has.

    Args:
        guest: folder of the guest's sources.
        names: which modules.
        headers: packages with the kernel's headers and its kbuild; with all that
            those and `TOOLS` depend on, unless the host is of their release.
        cache: directory to keep them in; made when missing.
        target: what the kernel runs on. Of another than the host, kbuild's own
            programs have to be the host's, in a package of the same version.

    Returns:
        name -> ELF file.

    Raises:
        FastpathError: they can't be compiled.
    """
    found = sources(guest)
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(" ".join((*names, *target.options)).encode())
    for deb in headers:
        digest.update(f"{deb.name}\0".encode())
    for source in found:
        path = source.relative_to(guest)
        digest.update(f"{path}\0".encode() + source.read_bytes())
    built = cache / digest.hexdigest()[:16]
    if not built.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as name:
            _make(guest, names, headers, Path(name), target).rename(built)
    return {path.stem: path.read_bytes() for path in sorted(built.glob("*.ko"))}


def sources(guest: Path) -> list[Path]:
    """What modules are made of: `kernel` and what it includes."""
    found = [*guest.glob("kernel/**/*"), *guest.glob("include/*")]
    return sorted(path for path in found if path.is_file())


def _make(
    guest: Path,
    names: Sequence[str],
    headers: Sequence[Path],
    work: Path,
    target: Target,
) -> Path:
    """Build the modules in `work`; returns the folder that has nothing else."""
    for deb in headers:
        run(["dpkg-deb", "-x", str(deb), str(work)], f"package {deb}", f"rm {deb}")
    for source in sources(guest):
        copy = work / source.relative_to(guest)
        copy.parent.mkdir(exist_ok=True, parents=True)
        copy.write_bytes(source.read_bytes())
    tree = next(work.glob("usr/src/linux-headers-*/.kernelvariables")).parent
    own = f"OWN={' '.join(names)}"
    kernel = work / "kernel"
    if (work / MAKE).exists():
        command = [*_into(work), f"/{MAKE}", "-C", f"/{tree.relative_to(work)}"]
        command += [NO_BTF, "M=/kernel"]
    else:
        makefile = tree / "Makefile"
        makefile.write_text(makefile.read_text().replace("/usr/", f"{work}/usr/"))
        command = ["make", "-C", str(tree), *target.options, NO_BTF, f"M={kernel}"]
    run([*command, "-s", own, "modules"], f"modules of {guest / 'kernel'}", NEEDS)
    out = work / "modules"
    out.mkdir()
    for module in kernel.glob("*.ko"):
        strip(module, out / module.name, target)
    return out


def _into(root: Path) -> list[str]:
    """What runs a command in a root; our user is its root, if we aren't.

    The mounts are in a namespace of its own and go with the command.
    """
    for path, target in LINKS.items():
        if not (root / path).exists():
            (root / path).symlink_to(target)
    for path in ("dev", "proc", "tmp"):
        (root / path).mkdir(exist_ok=True)
    options = ["-m"] if os.geteuid() == 0 else ["-r", "-m"]
    return ["unshare", *options, "sh", "-c", IN_ROOT, str(root)]


def strip(module: Path, to: Path, target: Target = HOST) -> None:
    """Copy a module, but for what only a debugger needs.

    Raises:
        FastpathError: there is no strip, or it fails.
    """
    command = [f"{target.prefix}strip", "-g", "-o", str(to), str(module)]
    run(command, f"module {module.name}", "apt-get install binutils")


def run(command: list[str], what: str, hint: str) -> None:
    """Run a tool that builds.

    Args:
        command: the tool and its arguments.
        what: what it builds, for the error.
        hint: for when it fails.

    Raises:
        FastpathError: it failed, or is missing.
    """
    # Our caller may be a make of its own; its flags are not for this one.
    env = {key: value for key, value in os.environ.items() if key != "MAKEFLAGS"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=env, check=False
        )
    except FileNotFoundError as error:
        raise FastpathError(what, f"{command[0]} is missing", hint) from error
    if done.returncode != 0:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if "error" in line or "***" in line]
        raise FastpathError(
            what, (errors or lines or [f"{command[0]} failed"])[0], hint
        )
