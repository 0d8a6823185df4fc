"""Modules of ours, as kbuild made them: for which kernels, and what they call.

What they do there is test_tsi_module.py's to say.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from fastpath import data
from fastpath.image import images, kbuild, packages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

MODULE = "tsi_inet"
KERNELS = [
    pytest.param("base", id="linux-6.1"),
    pytest.param("linux-6.12", id="linux-6.12"),
    pytest.param("linux-7", id="linux-7"),
    pytest.param("linux-sid", id="linux-sid", marks=pytest.mark.nightly),
]
FINDERS = ("kallsyms", "kprobe", "symbol_get", "ftrace", "set_memory", "text_poke")
"""What a function of the kernel that isn't exported is found, or replaced, by."""
ENDBR64 = "f30f1efa"
IBT = "7."
"""Debian builds the kernels of these releases for CPUs that enforce IBT."""
SECTION = re.compile(r"^Relocation section '\.rela(?P<name>[^']+)'")
MEMORY = (".data", ".rodata", ".text", ".init.text")
ADDRESS = re.compile(
    r" R_X86_64_(?:64|32S) +[0-9a-f]+ (?P<name>\S+) \+ (?P<offset>[0-9a-f]+)$"
)
FUNCTION = re.compile(
    r"^(?P<at>[0-9a-f]+) [lg] +F \.text\t[0-9a-f]+ (?:\.hidden )?(?P<name>\S+)$"
)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module", params=KERNELS)
def image(request):
    return images.build(request.param)


@pytest.fixture
def module(image):
    return image.initramfs.parent / f"{MODULE}.ko"


def taken(module: Path, functions: dict[str, int]) -> Iterator[int]:
    """Where functions are whose address the module's code or data has."""
    counts = False
    for line in run("readelf", "-rW", str(module)).splitlines():
        if section := SECTION.match(line):
            counts = section["name"].startswith(MEMORY)
        elif counts and (match := ADDRESS.search(line)):
            base = 0 if match["name"] == ".text" else functions.get(match["name"])
            if base is not None and base + int(match["offset"], 16) in {
                *functions.values()
            }:
                yield base + int(match["offset"], 16)


def begins(module: Path, at: int) -> str:
    """The first instruction of a function."""
    listing = run(
        *("objdump", "-d", "-j", ".text", f"--start-address={at:#x}"),
        *(f"--stop-address={at + 4:#x}", str(module)),
    )
    words = re.search(rf"^ *{at:x}:\t(?P<bytes>[0-9a-f ]+)", listing, re.MULTILINE)
    return words["bytes"].replace(" ", "") if words else ""


def test_a_module_is_built_for_the_kernel(image, module):
    (magic,) = re.findall(rb"\0vermagic=(\S+) ", b"\0" + module.read_bytes())
    assert magic.decode() == image.kernel_release


def test_a_module_finds_no_function_at_run_time(module):
    """So it calls by address what the kernel keeps addresses of, for that."""
    wanted = run("nm", "-u", str(module)).split()
    assert "vsock_for_each_connected_socket" in wanted or "sock_create_kern" in wanted
    assert [name for name in wanted if any(way in name for way in FINDERS)] == []


def test_a_function_that_is_called_by_address_says_so(image, module):
    """ENDBR64: or a CPU that enforces IBT would end the guest."""
    found = map(FUNCTION.match, run("objdump", "-t", str(module)).splitlines())
    functions = {each["name"]: int(each["at"], 16) for each in found if each}
    called = set(taken(module, functions))
    assert functions["tsi_connect"] in called
    begun = {begins(module, at) for at in called}
    if image.kernel_release.startswith(IBT):
        assert begun == {ENDBR64}


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None,
    reason="gcc-aarch64-linux-gnu is not installed",
)
def test_a_module_is_built_for_arm64():
    """With kbuild's programs for this machine, and the headers for that one."""
    cache = images.cache_directory()
    with images.locked(cache / "lock"):
        theirs = packages.Archive(cache, "bookworm", "arm64")
        theirs.update()
        found = theirs.resolve(["linux-headers-cloud-arm64"])
        headers = [each for each in found if each.name.startswith("linux-headers-6")]
        (kbuilds,) = (each for each in found if each.name.startswith("linux-kbuild-"))
        ours = packages.Archive(cache, "bookworm")
        if not ours.has_lists():
            ours.update()
        same = ours.resolve([f"{kbuilds.name}={kbuilds.version}"])
        tools = [each for each in same if each.name == kbuilds.name]
        debs = [
            *theirs.fetch(headers, lambda _share: None),
            *ours.fetch(tools, lambda _share: None),
        ]
        modules = cache / "modules"
        built = kbuild.build(data.GUEST, [MODULE], debs, modules, kbuild.ARM64)
    assert built[MODULE][:20].endswith((0xB7).to_bytes(2, "little"))  # EM_AARCH64
    assert b"aarch64" in built[MODULE]


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None,
    reason="gcc-aarch64-linux-gnu is not installed",
)
def test_init_and_the_agent_are_built_for_arm64(tmp_path):
    command = ["make", "-s", "-C", str(data.GUEST), "CC=aarch64-linux-gnu-gcc"]
    command += [f"OUT={tmp_path}", "init", "tsi-agent"]
    subprocess.run(command, check=True)
    for name in ("init", "tsi-agent"):
        machine = (tmp_path / name).read_bytes()[18:20]
        assert machine == (0xB7).to_bytes(2, "little")
