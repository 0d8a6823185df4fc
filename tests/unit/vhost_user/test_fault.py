"""Guest memory whose file the front-end truncates: SIGBUS ends a session at most."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.support.limits import LIMIT_S
from tests.support.procfs import vm_flags
from vhost_user._native import ffi, lib
from vhost_user.errors import FrontendError
from vhost_user.memory import GuestMemory, Region, SharedArea

PAGE = 4096


@pytest.fixture
def memfd():
    fd = os.memfd_create("ram", os.MFD_CLOEXEC)
    os.ftruncate(fd, 16 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def make_memory(memfd):
    made = []

    def make(offset=0, size=8 * PAGE):
        region = Region(gpa=0, uva=1 << 40, size=size, fd=memfd, offset=offset)
        made.append(GuestMemory([region]))
        return made[-1]

    yield make
    for memory in made:
        memory.close()


def test_what_a_guest_knows_is_in_no_core_dump(memfd):
    area = SharedArea(memfd, PAGE)
    assert "dd" in vm_flags(area.address)
    area.close()


@pytest.mark.parametrize("offset", [0, PAGE, 100], ids=["0", "a-page", "100"])
def test_a_truncated_file_is_the_front_ends_fault(memfd, make_memory, offset):
    memory = make_memory(offset)
    os.pwrite(memfd, b"guest", offset + 7 * PAGE)
    assert memory.read(7 * PAGE, 5) == b"guest"
    assert not memory.lost
    os.ftruncate(memfd, PAGE)
    with pytest.raises(FrontendError, match="truncated"):
        memory.read(7 * PAGE, 5)
    assert memory.lost
    with pytest.raises(FrontendError, match="truncated"):  # for good
        memory.read(0, 1)


def test_only_the_memory_that_was_touched_is_lost(memfd, make_memory):
    one, other, third = make_memory(), make_memory(size=PAGE), make_memory()
    os.pwrite(memfd, b"guest", 0)
    os.ftruncate(memfd, PAGE)
    with pytest.raises(FrontendError):
        one.read(4 * PAGE, 1)
    assert other.read(0, 5) == b"guest"
    assert third.read(0, 5) == b"guest"  # it was not touched where the hole is
    assert not third.lost


def test_many_memories_are_guarded(memfd, make_memory):
    """More than one chunk of the table of guards."""
    memories = [make_memory() for _ in range(200)]
    for memory in memories[::2]:
        memory.close()
    os.ftruncate(memfd, 0)
    for memory in memories[1::2]:
        with pytest.raises(FrontendError):
            memory.read(3 * PAGE, 1)


@pytest.mark.parametrize(
    ("gpa", "uva", "size"),
    [
        pytest.param(2**64 - PAGE, 0, 2 * PAGE, id="gpa-wraps"),
        pytest.param(1 << 30, 2**64 - PAGE, 2 * PAGE, id="uva-wraps"),
        pytest.param(0, 0, PAGE, id="same-gpa"),
        pytest.param(7 * PAGE, 0, PAGE, id="gpa-overlaps-the-end"),
        pytest.param(2**64 - PAGE, 0, PAGE, id="last-page-is-fine"),
        pytest.param(1 << 30, 1 << 40, PAGE, id="same-uva"),
        pytest.param(1 << 30, (1 << 40) - PAGE, 2 * PAGE, id="uva-overlaps-the-start"),
        pytest.param(8 * PAGE, (1 << 40) + 8 * PAGE, PAGE, id="adjacent-is-fine"),
    ],
)
def test_regions_neither_wrap_nor_overlap(make_memory, gpa, uva, size, request):
    memory = make_memory()
    room = ffi.new("char[]", 2 * PAGE)
    got = lib.vu_mem_add(memory.native, gpa, uva, size, room)
    fine = request.node.callspec.id.endswith("is-fine")
    assert got == (0 if fine else -lib.VU_ERR_REGION)


def test_a_region_can_be_taken_out_again(memfd, make_memory):
    memory = make_memory()
    assert lib.vu_mem_del(memory.native, 0, 1 << 40, PAGE) == -lib.VU_ERR_GONE
    assert lib.vu_mem_del(memory.native, 0, 1 << 40, 8 * PAGE) == 0
    assert lib.vu_mem_del(memory.native, 0, 1 << 40, 8 * PAGE) == -lib.VU_ERR_GONE
    room = ffi.new("char[]", PAGE)
    assert lib.vu_mem_add(memory.native, 0, 1 << 40, PAGE, room) == 0


# ---- any other SIGBUS ----

GUARDED = """
    import faulthandler, mmap, os, signal
    from vhost_user.memory import GuestMemory, Region, SharedArea

    def truncated():
        fd = os.memfd_create("x")
        os.ftruncate(fd, 4096)
        return fd

    def guard():
        return GuestMemory([Region(gpa=0, uva=0, size=4096, fd=truncated())])

    def touch():
        fd = truncated()
        mapping = mmap.mmap(fd, 4096)
        os.ftruncate(fd, 0)
        mapping[0]
"""
ELSEWHERE = {
    "no-handler": "m = guard(); touch()",
    "faulthandler-before": "faulthandler.enable(); m = guard(); touch()",
    "faulthandler-after": "m = guard(); faulthandler.enable(); touch()",
    "after-a-memory-is-closed": "guard().close(); touch()",
    "sent": "m = guard(); os.kill(os.getpid(), signal.SIGBUS)",
    "sent-faulthandler-after": (
        "m = guard(); faulthandler.enable(); os.kill(os.getpid(), signal.SIGBUS)"
    ),
}


@pytest.mark.parametrize("then", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_a_sigbus_elsewhere_keeps_its_effect(then):
    script = textwrap.dedent(GUARDED) + "\n" + then
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    sanitized = "ASAN_OPTIONS" in os.environ  # reports it and exits
    assert sanitized or done.returncode == -signal.SIGBUS, done.stderr
    assert done.stderr.count("Fatal Python error: Bus error") == ("faulth" in then)
