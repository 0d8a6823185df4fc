"""Kernel modules of ours, from guest/kernel, for the kernel of an image.

Debian's headers of that kernel are unpacked beside the sources and kbuild does the
rest; nothing is installed. What was built stays in the cache, by all that went in.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KERNEL: Final = re.compile(r"linux-image-(?P<release>\d.*)")
"""Name of a package with a kernel that there are headers for."""
NEEDED: Final = ("linux-headers-", "linux-kbuild-")
"""Packages that count, of those that a kernel's headers depend on."""

OPTIONS: Final = ("CC=cc", "CONFIG_DEBUG_INFO_BTF_MODULES=")
"""Any compiler will do, and type information would take a tool more."""


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
    guest: Path, names: Sequence[str], headers: Sequence[Path], cache: Path
) -> dict[str, bytes]:
    """Build modules of guest/kernel, or return what the cache has.

    Args:
        guest: folder of the guest's sources.
        names: which modules.
        headers: packages with the kernel's headers and its kbuild.
        cache: directory to keep them in; made when missing.

    Returns:
        name -> ELF file.

    Raises:
        FastpathError: they can't be compiled.
    """
    sources = _sources(guest)
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(" ".join(names).encode())
    for deb in headers:
        digest.update(f"{deb.name}\0".encode())
    for source in sources:
        path = source.relative_to(guest)
        digest.update(f"{path}\0".encode() + source.read_bytes())
    built = cache / digest.hexdigest()[:16]
    if not built.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as name:
            _make(guest, names, headers, Path(name)).rename(built)
    return {path.stem: path.read_bytes() for path in sorted(built.glob("*.ko"))}


def _sources(guest: Path) -> list[Path]:
    """What modules are made of: `kernel` and what it includes."""
    found = [*guest.glob("kernel/**/*"), *guest.glob("include/*")]
    return sorted(path for path in found if path.is_file())


def _make(
    guest: Path, names: Sequence[str], headers: Sequence[Path], work: Path
) -> Path:
    """Build the modules in `work`; returns the folder that has nothing else."""
    for deb in headers:
        run(["dpkg-deb", "-x", str(deb), str(work)], f"package {deb}", f"rm {deb}")
    tree = next(work.glob("usr/src/linux-headers-*/.kernelvariables")).parent
    makefile = tree / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/", f"{work}/usr/"))
    for source in _sources(guest):
        copy = work / source.relative_to(guest)
        copy.parent.mkdir(exist_ok=True, parents=True)
        copy.write_bytes(source.read_bytes())
    kernel = work / "kernel"
    own = f"OWN={' '.join(names)}"
    command = ["make", "-s", "-C", str(tree), *OPTIONS, own, f"M={kernel}", "modules"]
    run(
        command, f"modules of {guest / 'kernel'}", "apt-get install gcc make libelf-dev"
    )
    out = work / "modules"
    out.mkdir()
    for module in kernel.glob("*.ko"):
        run(
            ["strip", "-g", "-o", str(out / module.name), str(module)],
            f"module {module.name}",
            "apt-get install binutils",
        )
    return out


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
