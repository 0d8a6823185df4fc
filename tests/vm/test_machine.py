"""A microVM from its boot to its end, whichever way that comes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from fastpath.errors import FastpathError
from fastpath.image import images
from fastpath.vm.machine import Machine, MachineDiedError
from tests.support.limits import GUEST_LIMIT_S, wait_until
from tests.vm.conftest import boot, vsock_backend
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op

pytestmark = pytest.mark.vm

FACTS = """
cat /proc/cmdline > /dev/null && touch /tmp/a /run/a /dev/shm/a
ls /dev/pts/ptmx /dev/vsock /proc/self/fd/0
cat /sys/class/net/lo/operstate; ping -c 1 -w 1 127.0.0.1 > /dev/null && echo lo
grep -c . /proc/modules; uname -r; stat -c %a /tmp /root
cat /sys/devices/system/clocksource/clocksource0/available_clocksource
[ $(date +%Y) -ge 2025 ] && echo time
probe clock
"""


def is_running(pid):
    return os.path.exists(f"/proc/{pid}")  # noqa: PTH110


async def output(guest, script):
    said = bytearray()
    command = ["sh", "-ec", script]
    status = await guest.run(command, tsi=False, stdout=said.extend, stderr=said.extend)
    assert status == 0, said
    return said.decode().splitlines()


def test_the_guest_has_what_programs_expect(in_vm, vm_spec):
    async def work(machine, guest):
        return await output(guest, FACTS)

    lines = in_vm(vm_spec, work)
    assert "lo" in lines
    assert "time" in lines
    assert vm_spec.image.kernel_release in lines
    assert {"1777", "700"} <= set(lines)
    assert any('"tsc_khz"' in line for line in lines)


def test_programs_run_one_after_another_with_their_streams(in_vm, vm_spec):
    async def work(machine, guest):
        back = bytearray()
        data = bytes(range(256)) * 1024
        statuses = [
            await guest.run(["cat"], tsi=False, stdin=data, stdout=back.extend),
            await guest.run(["sh", "-c", "exit 9"], tsi=False),
            await guest.run(["no-such-program"], tsi=False),
        ]
        return statuses, bytes(back) == data

    assert in_vm(vm_spec, work) == ([0, 9, 127], True)


def test_programs_run_beside_each_other(in_vm, vm_spec):
    async def work(machine, guest):
        came, stdin, said = asyncio.Event(), asyncio.StreamReader(), bytearray()

        def take(data):
            said.extend(data)
            came.set()

        await output(guest, "mkfifo /tmp/fifo")
        read, write = ["sh", "-c", "cat /tmp/fifo; exit 4"], ["tee", "/tmp/fifo"]
        reader = await guest.start(read, tsi=False, stdout=take)
        writer = await guest.start(write, tsi=False, stdin=stdin)
        stdin.feed_data(b"by way of the guest")
        await came.wait()
        statuses = [await guest.run(["true"], tsi=False)]
        stdin.feed_eof()
        statuses += [await writer.wait(), await reader.wait()]
        return statuses, bytes(said)

    assert in_vm(vm_spec, work) == ([0, 0, 4], b"by way of the guest")


def test_a_neighbour_gets_no_command_run(vm_spec, vm_dir):
    """It may connect to the port at which init serves the host."""

    def ask():
        with VsockGuest(vm_dir / "neighbour", cid=4) as guest:
            conn = guest.request(1029, cid=3)
            said = b""
            while (packet := conn.receive()).op not in {Op.RST, Op.SHUTDOWN}:
                said += packet.payload
            return said

    async def work(machine, guest):
        said = await asyncio.to_thread(ask)
        return said, await output(guest, "echo alive")

    async def bounded():
        vms = f"guest-cid=3,socket={vm_dir}/vhost,uds-path={vm_dir}/vsock,groups=x"
        options = (
            "--vm",
            vms,
            "--vm",
            f"guest-cid=4,socket={vm_dir}/neighbour,groups=x",
        )
        async with asyncio.timeout(GUEST_LIMIT_S), vsock_backend(vm_dir, *options):
            return await boot(vm_spec, vm_dir / "vsock", work)

    assert asyncio.run(bounded()) == (b"", ["alive"])


def test_files_of_the_host_are_in_the_guest_with_their_modes(
    in_vm, vm_spec, vm_dir, tmp_path
):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho from the host\n")
    script.chmod(0o755)
    where = {"/bin/mine": script, "/tmp/deep/er/mine": script}
    image = images.with_files(vm_spec.image, where, vm_dir / "initramfs")

    async def work(machine, guest):
        return await output(guest, "mine; /tmp/deep/er/mine; stat -c %a /tmp")

    lines = in_vm(replace(vm_spec, image=image), work)
    assert lines == ["from the host", "from the host", "1777"]


def test_the_threads_are_pinned(in_vm, vm_spec):
    cpu = min(os.sched_getaffinity(0))

    async def work(machine, guest):
        (vcpu,) = machine.vcpu_thread_ids
        return os.sched_getaffinity(vcpu), os.sched_getaffinity(machine.pid)

    assert in_vm(replace(vm_spec, cpu_affinity=frozenset({cpu})), work) == ({cpu},) * 2


def test_leaving_ends_qemu(in_vm, vm_spec):
    async def work(machine, guest):
        return machine.pid

    assert not is_running(in_vm(vm_spec, work))


def test_a_panic_is_named_with_the_console_log(in_vm, vm_spec):
    async def work(machine, guest):
        await guest.run(["sh", "-c", "echo c > /proc/sysrq-trigger"], tsi=False)

    with pytest.raises(MachineDiedError, match=r"panicked: sysrq.*console") as caught:
        in_vm(vm_spec, work)
    assert str(vm_spec.console) in str(caught.value)
    assert caught.value.console_tail


@pytest.mark.parametrize("level", [3, 4])
def test_what_a_kernel_finds_wrong_fails_its_test(in_vm, vm_spec, level):
    async def work(machine, guest):
        said = f"<{level}>WARNING: possible circular locking dependency detected"
        await output(guest, f"echo '{said}' > /dev/kmsg")

    with pytest.raises(AssertionError, match="possible circular locking"):
        in_vm(vm_spec, work)


def test_a_kernel_that_cannot_start_is_named(in_vm, vm_spec):
    with pytest.raises(MachineDiedError, match="panicked"):
        in_vm(replace(vm_spec, append="rdinit=/no/such init=/no/such"), None)


def without_timer(vm_dir, times):
    """A QEMU whose guest has no timer, the first `times` times."""
    qemu = vm_dir / "qemu"
    qemu.write_text(
        f"""#!/usr/bin/env python3
import os, pathlib, sys
starts = pathlib.Path({str(vm_dir / "starts")!r})
with starts.open("a") as file:
    file.write("x")
if starts.stat().st_size <= {times}:
    at = sys.argv.index("-append") + 1
    sys.argv[at] += " nolapic_timer"
os.execvp("qemu-system-x86_64", ["qemu-system-x86_64", *sys.argv[1:]])
"""
    )
    qemu.chmod(0o755)
    return str(qemu)


def test_a_guest_whose_kernel_has_no_timer_is_booted_again(in_vm, vm_spec, vm_dir):
    async def work(machine, guest):
        await machine.execute("query-status", {})
        return await guest.run(["sleep", "0.1"], tsi=False)

    assert in_vm(replace(vm_spec, qemu=without_timer(vm_dir, 2)), work) == 0
    assert (vm_dir / "starts").read_text() == "xxx"


def test_a_guest_that_never_has_a_timer_is_named(in_vm, vm_spec, vm_dir):
    with pytest.raises(MachineDiedError, match=r"no timer, 3 times.*hint: run less"):
        in_vm(replace(vm_spec, qemu=without_timer(vm_dir, 9)), None)
    assert (vm_dir / "starts").read_text() == "xxx"


def test_a_qemu_that_is_killed_is_named(in_vm, vm_spec):
    async def work(machine, guest):
        os.kill(machine.pid, signal.SIGKILL)
        await guest.run(["sleep", "6000"], tsi=False)

    with pytest.raises(MachineDiedError, match="killed by signal 9"):
        in_vm(vm_spec, work)


def test_a_qemu_that_refuses_its_command_line_is_quoted(vm_spec):
    async def work():
        async with Machine(replace(vm_spec, vsock_socket=None, memory_mib=1)):
            raise AssertionError

    with pytest.raises(FastpathError, match="qemu"):
        asyncio.run(work())


def test_a_missing_backend_is_an_error_and_not_a_wait(vm_spec):
    async def work():
        async with Machine(vm_spec):
            raise AssertionError

    with pytest.raises(FastpathError, match="vhost"):
        asyncio.run(work())


def test_qemu_dies_with_the_process_that_started_it(vm_spec, vm_dir):
    program = f"""
import asyncio, os, pathlib
from fastpath.image import images
from fastpath.vm import accel
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec
d = pathlib.Path({str(vm_dir)!r})
spec = VmSpec(image=images.build("base"), accel=accel.choose("tcg"),
              vsock_socket=None, console=d / "console", qmp=d / "qmp")
async def main():
    async with Machine(spec) as machine:
        print(machine.pid, flush=True)
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_until(lambda: not is_running(int(done.stdout)))
    (vm_dir / "qmp").unlink()
