"""Kernel modules of ours: built with the headers of an image's kernel, and kept."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fastpath.errors import FastpathError
from fastpath.image import kbuild
from tests.unit.fastpath.kernel_sources import kernel_sources

RELEASE = "6.1.0-1-test"
OWN = ("tsi",)
KBUILD = """
modules:
\techo built >> {log}
\tfor each in $(OWN); do cc -c -g -o $(M)/$$each.ko $(M)/$$each.c || exit; done
"""


@pytest.fixture
def guest(tmp_path):
    return kernel_sources(tmp_path / "guest", "Kbuild", "obj-m := tsi.o\n")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def headers(tmp_path, log):
    """A package like Debian's: its Makefile includes another by an absolute path."""
    root = tmp_path / "root"
    own = root / "usr" / "src" / f"linux-headers-{RELEASE}"
    common = root / "usr" / "src" / "linux-headers-common"
    for folder in (own, common, root / "DEBIAN"):
        folder.mkdir(parents=True)
    (own / ".kernelvariables").touch()
    (own / "Makefile").write_text("include /usr/src/linux-headers-common/Makefile\n")
    (common / "Makefile").write_text(KBUILD.format(log=log))
    (root / "DEBIAN" / "control").write_text(
        f"Package: linux-headers-{RELEASE}\nVersion: 1\n"
        "Architecture: all\nMaintainer: m\nDescription: d\n"
    )
    deb = tmp_path / f"linux-headers-{RELEASE}_1_all.deb"
    command = ["dpkg-deb", "-b", str(root), str(deb)]
    subprocess.run(command, check=True, capture_output=True)
    return [deb]


MAKE_IN_ROOT = """#!/bin/sh
/bin/busybox test -e /dev/null -a -e /proc/self -a ! -e {log} || exit 1
/bin/busybox cp /bin/busybox /kernel/tsi.ko
echo "$@" > /dev/shm/{name}
"""
ROOT_NEEDED = pytest.mark.skipif(
    shutil.which("busybox") is None or shutil.which("unshare") is None,
    reason="needs a static busybox and unshare",
)


@pytest.fixture
def root(tmp_path, headers, log):
    """A package with a make and a shell, for whoever has no other."""
    tree = tmp_path / "tools"
    (tree / "usr" / "bin").mkdir(parents=True)
    (tree / "DEBIAN").mkdir()
    for name in ("busybox", "sh"):
        shutil.copy(str(shutil.which("busybox")), tree / "usr" / "bin" / name)
    said = Path("/dev/shm") / tmp_path.name
    make = tree / "usr" / "bin" / "make"
    make.write_text(MAKE_IN_ROOT.format(log=log.parent, name=said.name))
    make.chmod(0o755)
    (tree / "DEBIAN" / "control").write_text(
        "Package: tools\nVersion: 1\nArchitecture: all\nMaintainer: m\nDescription: d\n"
    )
    deb = tmp_path / "tools_1_all.deb"
    command = ["dpkg-deb", "-b", str(tree), str(deb)]
    subprocess.run(command, check=True, capture_output=True)
    yield [*headers, deb], said
    said.unlink(missing_ok=True)


@ROOT_NEEDED
def test_packages_that_have_a_make_are_the_root_that_it_runs_in(guest, root, tmp_path):
    debs, said = root
    assert list(kbuild.build(guest, OWN, debs, tmp_path / "cache")) == ["tsi"]
    assert said.read_text() == (
        f"-C /usr/src/linux-headers-{RELEASE} {kbuild.NO_BTF} M=/kernel "
        "-s OWN=tsi modules\n"
    )


@ROOT_NEEDED
def test_nothing_stays_mounted(guest, root, tmp_path):
    before = Path("/proc/self/mountinfo").read_text()
    kbuild.build(guest, OWN, root[0], tmp_path / "cache")
    assert Path("/proc/self/mountinfo").read_text() == before
    assert not list((tmp_path / "cache").glob(".new-*"))


def test_the_headers_are_those_of_the_kernel():
    kernels = ["linux-image-6.1.0-56-cloud-amd64", "linux-image-cloud-amd64"]
    assert kbuild.headers_of(kernels) == ["linux-headers-6.1.0-56-cloud-amd64"]


def test_a_kernel_without_headers_is_said():
    with pytest.raises(FastpathError, match="not one with headers"):
        kbuild.headers_of(["user-mode-linux"])


def test_a_module_is_built_once(guest, headers, tmp_path, log):
    first = kbuild.build(guest, OWN, headers, tmp_path / "cache")
    again = kbuild.build(guest, OWN, headers, tmp_path / "cache")
    assert list(first) == ["tsi"]
    assert first["tsi"].startswith(b"\x7fELF")
    assert b".debug_info" not in first["tsi"]
    assert again == first
    assert log.read_text() == "built\n"


@pytest.mark.parametrize(
    "changed", ["include/shared.h", "kernel/tsi.c", "kernel/Kbuild"]
)
def test_a_change_of_a_source_builds_it_again(guest, headers, tmp_path, log, changed):
    kbuild.build(guest, OWN, headers, tmp_path / "cache")
    with (guest / changed).open("a") as file:
        file.write("\n")
    kbuild.build(guest, OWN, headers, tmp_path / "cache")
    assert log.read_text() == "built\n" * 2


def test_other_modules_are_built_apart(guest, headers, tmp_path, log):
    (guest / "kernel" / "inet").mkdir()
    (guest / "kernel" / "inet" / "one.h").write_text("#define ONE 1\n")
    (guest / "kernel" / "one.c").write_text('#include "inet/one.h"\nint one = ONE;\n')
    assert list(kbuild.build(guest, OWN, headers, tmp_path / "cache")) == ["tsi"]
    both = kbuild.build(guest, ("tsi", "one"), headers, tmp_path / "cache")
    assert list(both) == ["one", "tsi"]
    assert log.read_text() == "built\n" * 2


def test_an_error_of_the_compiler_is_told_and_nothing_kept(guest, headers, tmp_path):
    (guest / "kernel" / "tsi.c").write_text("#error no such thing\n")
    with pytest.raises(FastpathError, match="no such thing"):
        kbuild.build(guest, OWN, headers, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_package_is_named(guest, tmp_path):
    deb = tmp_path / "linux-headers-x_1_all.deb"
    deb.write_bytes(b"no package")
    with pytest.raises(FastpathError, match=str(deb)):
        kbuild.build(guest, OWN, [deb], tmp_path / "cache")


def test_a_missing_tool_is_named(guest, headers, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FastpathError, match="dpkg-deb is missing"):
        kbuild.build(guest, OWN, headers, tmp_path / "cache")
