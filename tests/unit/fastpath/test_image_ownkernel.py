"""A kernel of our own: its source as it is, ours beside it, and what was asked for."""

from __future__ import annotations

import subprocess

import pytest

from fastpath.errors import FastpathError
from fastpath.image import ownkernel
from fastpath.image.packages import Package
from tests.unit.fastpath.kernel_sources import kernel_sources

RELEASE = "6.1.9-tsi"
MAKEFILE = """
allnoconfig:
\tcp $(KCONFIG_ALLCONFIG) $(O)/.config
\tsed -i /NEVER/d $(O)/.config
bzImage:
\techo built >> {log}
\tgrep -h . net/Kconfig net/Makefile net/tsi/kernel/tsi.c > {log}.seen
\tmkdir -p $(O)/arch/x86/boot $(O)/include/config
\techo kernel > $(O)/arch/x86/boot/bzImage
\techo kernel/net/tsi/tsi.ko > $(O)/modules.builtin
\techo {release} > $(O)/include/config/kernel.release
modules:
\tcc -c -g -o $(O)/tsi.ko net/tsi/kernel/tsi.c
"""


@pytest.fixture
def guest(tmp_path):
    text = "# ours\nCONFIG_TSI=y\n"
    return kernel_sources(tmp_path / "guest", "own.config", text)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def deb(tmp_path, log):
    """A package like Debian's, its kernel being a Makefile."""
    tree = tmp_path / "linux-source-6.1"
    (tree / "net").mkdir(parents=True)
    (tree / "Makefile").write_text(MAKEFILE.format(log=log, release=RELEASE))
    (tree / "net" / "Kconfig").write_text("config NET\n")
    (tree / "net" / "Makefile").write_text("obj-y := socket.o\n")
    root = tmp_path / "root"
    (root / "usr" / "src").mkdir(parents=True)
    (root / "DEBIAN").mkdir()
    packed = root / "usr" / "src" / "linux-source-6.1.tar.xz"
    command = ["tar", "-cJf", str(packed), "-C", str(tmp_path), tree.name]
    subprocess.run(command, check=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: linux-source-6.1\nVersion: 1\n"
        "Architecture: all\nMaintainer: m\nDescription: d\n"
    )
    out = tmp_path / "linux-source-6.1_1_all.deb"
    command = ["dpkg-deb", "-b", str(root), str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture
def build(guest, deb, tmp_path):
    """Build with fragments, given as text."""

    def run(*texts):
        fragments = []
        for number, text in enumerate(texts):
            fragments.append(tmp_path / f"{number}.config")
            fragments[-1].write_text(text)
        return ownkernel.build(guest, deb, fragments, tmp_path / "cache")

    return run


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("kernel", "source"),
    [
        ("linux-image-6.1.0-57-cloud-amd64", "linux-source-6.1"),
        ("linux-image-6.12.95+deb12-cloud-amd64", "linux-source-6.12"),
    ],
)
def test_the_source_is_of_the_kernels_series_and_version(kernel, source):
    kernels = [
        Package("linux-image-cloud-amd64", "9", "a"),
        Package(kernel, "6.1.192-3", "b"),
    ]
    assert ownkernel.source_of(kernels) == Package(source, "6.1.192-3", "")


def test_a_kernel_without_a_source_is_said():
    with pytest.raises(FastpathError, match="none that has a source"):
        ownkernel.source_of([Package("user-mode-linux", "7.2um1", "a")])


def test_a_kernel_has_what_a_package_has(build):
    made = build()
    assert files(made) == [
        f"boot/config-{RELEASE}",
        f"boot/vmlinuz-{RELEASE}",
        f"lib/modules/{RELEASE}/modules.builtin",
    ]
    assert (made / f"boot/vmlinuz-{RELEASE}").read_text() == "kernel\n"


def test_one_line_each_in_two_files_names_ours(build, log):
    build()
    assert (log.parent / "log.seen").read_text().splitlines() == [
        "config NET",
        'source "net/tsi/kernel/Kconfig"',
        "obj-y := socket.o",
        "obj-$(CONFIG_TSI) += tsi/kernel/",
        '#include "../include/shared.h"',
        "int answer = ANSWER;",
    ]


def test_a_kernel_is_built_once_and_again_for_a_change(build, guest, log):
    assert build() == build()
    assert log.read_text() == "built\n"
    (guest / "kernel" / "tsi.c").write_text("int other;\n")
    build()
    assert log.read_text() == "built\n" * 2
    assert (log.parent / "log.seen").read_text().endswith("int other;\n")


def test_a_file_that_is_gone_is_gone_from_the_kernels_source(build, guest, tmp_path):
    (guest / "kernel" / "old.c").write_text("int old;\n")
    build()
    (laid,) = (tmp_path / "cache").glob("*/source/net/tsi/kernel/old.c")
    (guest / "kernel" / "old.c").unlink()
    build()
    assert not laid.exists()


def test_a_kernel_with_modules_brings_them(build):
    made = build("CONFIG_MODULES=y\n")
    module = made / "lib/modules" / RELEASE / "tsi.ko"
    assert module.read_bytes().startswith(b"\x7fELF")
    assert b".debug_info" not in module.read_bytes()


def test_a_later_fragment_has_the_last_word():
    texts = [("a", "CONFIG_A=y\nCONFIG_B=y\n"), ("b", "# CONFIG_A is not set\n")]
    assert ownkernel.wanted(texts) == {"CONFIG_A": "n", "CONFIG_B": "y"}


def test_what_is_no_line_of_a_configuration_is_named(build):
    with pytest.raises(FastpathError, match=r"0\.config:2: 'PROVE_LOCKING=y'"):
        build("# locks\nPROVE_LOCKING=y\n")


def test_what_does_not_take_effect_is_an_error(build, log):
    with pytest.raises(FastpathError, match="CONFIG_NEVER=y: it is n for this kernel"):
        build("CONFIG_NEVER=y\n")
    assert not log.exists()


def test_what_is_off_may_be_missing():
    ownkernel.check({"CONFIG_A": "n"}, "CONFIG_B=y\n")
    with pytest.raises(FastpathError, match="CONFIG_B=n: it is y"):
        ownkernel.check({"CONFIG_B": "n"}, "CONFIG_B=y\n")


def test_a_missing_fragment_is_named(guest, deb, tmp_path):
    with pytest.raises(FastpathError, match=r"no\.config: No such file"):
        ownkernel.build(guest, deb, [tmp_path / "no.config"], tmp_path / "cache")


def test_another_versions_source_goes(build, tmp_path):
    old = tmp_path / "cache" / "linux-source-6.1_0_all"
    other = tmp_path / "cache" / "linux-source-6.12_0_all"
    for folder in (old, other):
        folder.mkdir(parents=True)
    build()
    assert (old.exists(), other.exists()) == (False, True)


def test_a_damaged_package_leaves_nothing(guest, deb, tmp_path):
    deb.write_bytes(b"no package")
    with pytest.raises(FastpathError, match=str(deb)):
        ownkernel.build(guest, deb, [], tmp_path / "cache")
    assert list((tmp_path / "cache" / deb.stem).iterdir()) == []
