"""Kernel modules of ours: built with the headers of an image's kernel, and kept."""

from __future__ import annotations

import subprocess

import pytest

from fastpath.errors import FastpathError
from fastpath.image import kbuild

RELEASE = "6.1.0-1-test"
OWN = ("tsi",)
KBUILD = """
modules:
\techo built >> {log}
\tfor each in $(OWN); do cc -c -g -o $(M)/$$each.ko $(M)/$$each.c || exit; done
"""


@pytest.fixture
def guest(tmp_path):
    """Sources of a module that takes a header from the folder beside it."""
    folder = tmp_path / "guest"
    (folder / "kernel").mkdir(parents=True)
    (folder / "include").mkdir()
    (folder / "include" / "shared.h").write_text("#define ANSWER 42\n")
    (folder / "kernel" / "Kbuild").write_text("obj-m := tsi.o\n")
    source = '#include "../include/shared.h"\nint answer = ANSWER;\n'
    (folder / "kernel" / "tsi.c").write_text(source)
    return folder


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
