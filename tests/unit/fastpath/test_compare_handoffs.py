"""Hand-offs as paths of a comparison: what is asked for, planned and counted."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from fastpath import tools
from fastpath.commands.compare import calls, cpu, paths, sandboxes, scenario
from fastpath.commands.compare.calls import Counted, NotCountedError
from fastpath.commands.compare.selfcheck import judge
from fastpath.commands.compare.site import HostSite
from fastpath.errors import FastpathError
from fastpath.vm.spec import Accelerator
from fastpath.ztunnel import config

from .test_compare import WANTED, _lines

ALL = "tsi,tsi+unix,tsi+ring"


def plan(names, folder):
    with ExitStack() as stack:
        return sandboxes.plan(paths.parse(names), HostSite(), folder, stack)


def whole(sandboxes_, folder):
    return scenario.Plan(
        site=HostSite(),
        sandboxes=sandboxes_,
        folder=folder,
        image=None,  # type: ignore[arg-type]
        accel=Accelerator("tcg", "asked for"),
        qemu="qemu",
        pinning=cpu.Pinning(0, 1),
        boot_timeout_s=1.0,
    )


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("tsi+uinx", "no path 'tsi+uinx'; there are tsi, inpod-l3forwarding, "),
        ("tsi+unix,tsi,tsi+unix", "a path is named twice"),
        ("tsi+", "no path 'tsi+'"),
        ("", "no path ''"),
    ],
)
def test_a_path_that_is_not_there_or_there_twice_is_refused(value, why):
    with pytest.raises(FastpathError, match=why.replace("+", r"\+")):
        paths.parse(value)


def test_only_the_standard_path_and_pods_take_namespaces():
    taking = {name for name, path in paths.PATHS.items() if path.namespaces}
    assert taking >= {
        "inpod-l3forwarding",
        "ambient-geneve",
        "tsi+pod",
        "tsi+inpod",
        "tsi+socks5",
    }
    assert not taking & {"tsi", "tsi+unix", "tsi+ring"}


def test_each_hand_off_has_a_sandbox_and_the_others_share_one(tmp_path):
    found = plan("tsi+unix,tsi,tsi+ring", tmp_path)
    assert [each.paths for each in found] == [("tsi",), ("tsi+unix",), ("tsi+ring",)]
    assert len({each.cid for each in found}) == 3
    assert len({each.ip for each in found}) == 3
    assert len({each.socket for each in found}) == 3
    assert {each.echo for each in found} == {"198.18.0.1", "198.18.0.3"}


def test_of_raw_vsock_only_a_foreign_device_has_a_sandbox(tmp_path):
    found = plan("vsock,vsock-rust-vmm,tsi", tmp_path)
    assert [each.paths for each in found] == [("vsock", "tsi"), ("vsock-rust-vmm",)]
    told = scenario.ztunnel_config(whole(found, tmp_path))["sandboxes"]
    assert [each["name"] for each in told] == ["sandbox"]


def test_a_variants_back_end_is_of_the_shared_sandbox_alone(tmp_path):
    with ExitStack() as stack:
        (only,) = sandboxes.plan(
            ("vsock",), HostSite(), tmp_path, stack, backend="/opt/patched"
        )
    assert only.device[0] == "/opt/patched"
    assert f"guest-cid={only.cid},socket={only.socket}," in only.device[1]
    assert scenario.ztunnel_config(whole((only,), tmp_path))["sandboxes"] == []


def test_a_hand_off_alone_has_no_other_sandbox(tmp_path):
    (only,) = plan("tsi+unix", tmp_path)
    assert only.handoff is paths.Handoff.UNIX


def test_ztunnels_settings_name_each_hand_off(tmp_path):
    """Written as a file, and read by what reads a user's."""
    made = whole(plan(ALL, tmp_path), tmp_path)
    made.mesh.write_text(yaml.safe_dump(scenario.mesh_config(made)))
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(scenario.ztunnel_config(made)))
    read = config.load(file)
    assert made.hands_on
    ways = {box.name: box.handoff for box in read.fastpath.sandboxes}
    assert ways["sandbox"] is None
    assert ways["unix"]
    assert ways["unix"].unix == tmp_path / "unix-proxy.sock"
    assert ways["ring"]
    assert ways["ring"].ring == tmp_path / "ring-proxy.sock"
    identities = {
        str(read.workload(box.workload).identity) for box in read.fastpath.sandboxes
    }
    assert identities == {scenario.IDENTITY}


def test_a_pods_sandbox_is_in_its_namespace_and_its_proxy_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sandboxes, "proxy_program", lambda: Path("/p"))

    class Netns:
        path = "/proc/1/fd/9"

        def command(self, argv):
            return ["in-the-pod", *argv]

    pod = sandboxes.Sandbox(
        name="socks5",
        paths=("tsi+socks5",),
        cid=4,
        ip="10.200.101.2",
        folder=tmp_path,
        handoff=paths.Handoff.SOCKS5,
        netns=Netns(),  # type: ignore[arg-type]
    )
    said = pod.config(["0.0.0.0/0"])
    assert said["netns"] == "/proc/1/fd/9"
    assert said["handoff"] == {"socks5": "127.0.0.1:15080"}
    argv = pod.proxy("5", HostSite())
    assert argv == [
        *("in-the-pod", "/p", "5", "198.18.0.3", "198.18.0.2", "127.0.0.1", "socks5")
    ]


def meminfo(tmp_path, mib):
    file = tmp_path / "meminfo"
    file.write_text(f"MemTotal: 9999999 kB\nMemAvailable:   {mib * 1024} kB\n")
    return file


def test_microvms_that_do_not_fit_into_memory_are_refused(tmp_path):
    names = paths.parse(ALL)
    sandboxes.check_memory(names, meminfo(tmp_path, 3 * 512))
    with pytest.raises(FastpathError) as caught:
        sandboxes.check_memory(names, meminfo(tmp_path, 3 * 512 - 1))
    assert "3 microVMs of 512 MiB are up at once, and 1535 MiB" in str(caught.value)
    assert caught.value.hint == "name fewer hand-offs"


def test_one_microvm_is_booted_however_little_memory_there_is(tmp_path):
    sandboxes.check_memory(paths.DEFAULT, meminfo(tmp_path, 1))


def test_a_hand_off_that_took_the_tunnel_is_found_out():
    judge("tsi+unix", _lines(), WANTED, packets=0)
    with pytest.raises(FastpathError, match="9 packets took the tunnel"):
        judge("tsi+unix", _lines(), WANTED, packets=9)


SUMMARY = """\
strace: Process 12 detached
syscall              calls
---------------- ---------
epoll_wait             412
sendmsg                200
clock_nanosleep          3
---------------- ---------
total                  615
"""


def test_calls_are_read_from_straces_summary():
    assert calls.parse(SUMMARY) == {
        "epoll_wait": 412,
        "sendmsg": 200,
        "clock_nanosleep": 3,
    }


def test_calls_of_a_round_trip_are_those_of_many_less_those_of_one():
    many = {"epoll_wait": 412, "sendmsg": 201, "clock_nanosleep": 3, "accept4": 1}
    few = {"epoll_wait": 14, "sendmsg": 2, "accept4": 1}
    each = calls.less(many, few, 199)
    assert each == {"epoll_wait": 2.0, "sendmsg": 1.0}
    assert list(each) == ["epoll_wait", "sendmsg"]


@dataclasses.dataclass
class FakeBench:
    """Makes system calls where the guest would have a round trip made."""

    pids: dict[str, int]
    made: list[int] = dataclasses.field(default_factory=list)

    def processes(self, path):
        return self.pids

    async def near(self, path, port, mode, trips, size):
        self.made.append(int(trips))


async def count(bench):
    on = min(os.sched_getaffinity(0))
    return await calls.count(bench, ["tsi+unix"], cpu=on, say=print)


def test_without_strace_they_are_not_counted_and_it_is_said(monkeypatch):
    monkeypatch.setattr(tools, "find", lambda name: None)
    result = asyncio.run(count(FakeBench({"ztunnel": os.getpid()})))
    assert result == Counted(
        note="System calls were not counted: strace is missing"
        " (sudo apt-get install strace)."
    )


def test_a_process_that_is_gone_is_not_counted_and_it_is_said():
    result = asyncio.run(count(FakeBench({"ztunnel": 2**22 + 1})))
    assert result.by_path == {}
    assert result.note.startswith("System calls were not counted: ")


ECHO = "import os\nwhile line := os.read(0, 9): os.write(1, line)"


class EchoBench(FakeBench):
    def __init__(self, process):
        super().__init__({"proxy": process.pid})
        self._to, self._back = process.stdin, process.stdout

    async def near(self, path, port, mode, trips, size):
        for _ in range(int(trips)):
            self._to.write(b"x\n")
            assert await self._back.readline() == b"x\n"


def test_a_process_is_traced_while_it_works_and_not_before_or_after():
    async def main():
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ECHO),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        bench = EchoBench(process)
        await bench.near("", 0, "", "1", "")  # it has started
        found = await count(bench)
        await process.communicate(b"")
        return found

    found = asyncio.run(main())
    if not found.by_path:  # ptrace is forbidden here, or strace missing
        pytest.skip(found.note)
    each = found.by_path["tsi+unix"]["proxy"]  # one more where strace comes late
    assert each == pytest.approx({"read": 1.0, "write": 1.0}, abs=0.02)


def test_strace_that_says_something_else_is_quoted():
    with pytest.raises(NotCountedError, match="Operation not permitted"):
        calls._check_attached(b"strace: attach: ptrace: Operation not permitted\n")
