"""The programs that tests put into a guest: compiled here, and what they say.

A program of checks prints "ok NAME" or "FAIL NAME: WHY" for each, and counts them in
its last line (checks.h).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastpath.image import images, packages
from tests.support.limits import GUEST_LIMIT_S, LIMIT_S

HERE = Path(__file__).parent
MUSL_LIB = "usr/lib/x86_64-linux-musl"
MUSL_INCLUDE = "usr/include/x86_64-linux-musl"
KILL_AGENT = "until kill -9 $(pidof tsi-agent) 2> /dev/null; do :; done"
"""For a shell: one that has ended may still be listed, the next not yet."""


def compile_c(out, *sources):
    """Compile a static program of C files; return `out`."""
    limit = f"-DLIMIT_S={LIMIT_S:.0f}"
    command = ["cc", "-O2", "-static", "-pthread", limit, "-o", out, *sources]
    subprocess.run(command, check=True)
    return out


def compile_go(out, source):
    """Compile a static program in Go; return `out`."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed (Debian package golang-go)")
    environment = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off"}
    limit = f"-X main.limit={LIMIT_S:.0f}s"
    command = ["go", "build", "-ldflags", limit, "-o", out, source]
    subprocess.run(command, check=True, env=environment)
    return out


def unpack_musl(folder):
    """Unpack Debian's musl: its static library and what compiles for it."""
    with images.locked(images.cache_directory() / "lock"):
        archive = packages.Archive(images.cache_directory(), "bookworm")
        if not archive.has_lists():
            archive.update()
        found = [each for each in archive.resolve(["musl-dev"]) if "musl" in each.name]
        debs = archive.fetch(found, lambda _share: None)
    for deb in debs:
        subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)


def python_checks(source):
    """What a Python program of checks consists of: path in the guest -> file."""
    names = [f"vm/{source}", "vm/checks.py", "support/limits.py"]
    return {f"/tests/{name}": HERE.parent / name for name in names}


def c_files(source):
    """The files of a C program, which is one or a folder of them."""
    path = HERE / source
    return sorted(path.glob("*.c")) if path.is_dir() else [path]


def checks(source):
    """The names of the checks of a C program."""
    row = re.compile(r"^    (?:CHECK|SANDBOX)\((\w+)\),", re.MULTILINE)
    return [name for path in c_files(source) for name in row.findall(path.read_text())]


def results(said):
    """A program's line for each check."""
    return {line.split()[1].rstrip(":"): line for line in said.splitlines()[:-1]}


def run_natively(namespace, *argv):
    """Run a program of checks on the host: else they state what TSI does."""
    done = subprocess.run(
        namespace.command([str(word) for word in argv]),
        env={**os.environ, "NATIVE": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=GUEST_LIMIT_S,
    )
    assert done.returncode == 0, done.stdout
