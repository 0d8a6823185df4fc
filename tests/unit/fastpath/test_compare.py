"""The comparison's parts that need no microVM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time

import pytest

from fastpath.commands import compare
from fastpath.commands.compare import cpu
from fastpath.commands.compare.child import READY_FD, Child
from fastpath.commands.compare.sandboxes import ECHO
from fastpath.commands.compare.scenario import IDENTITY
from fastpath.commands.compare.selfcheck import judge
from fastpath.errors import FastpathError

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
WANTED = (f"{ECHO}:7", "10.200.4.2:7007")


def _line(destination, identity=IDENTITY):
    return (
        "2026-01-31T09:59:05.028709Z\tinfo\taccess\tconnection complete\t"
        f'src.addr=10.200.1.2:40000 src.identity="{identity}" dst.addr={destination} '
        'direction="outbound"'
    )


def _lines(**kwargs):
    return [_line(destination, **kwargs) for destination in WANTED]


def test_the_fast_path_passes_when_the_tunnel_stood_still():
    judge("tsi", _lines(), WANTED, packets=0)


def test_the_standard_path_passes_when_the_tunnel_moved():
    judge("ambient-geneve", _lines(), WANTED, packets=300)
    judge("ambient-geneve-alpha", _lines(), WANTED, packets=2)
    judge("inpod-l3forwarding", _lines(), WANTED, packets=0)


def test_ztunnel_must_not_see_what_has_no_mesh():
    judge("plain", [], (), packets=0)
    with pytest.raises(FastpathError, match="there is no mesh"):
        judge("plain", _lines()[:1], (), packets=0)


@pytest.mark.parametrize(
    ("path", "lines", "packets", "why"),
    [
        ("tsi", _lines(), 300, "300 packets took the tunnel"),
        ("ambient-geneve", _lines(), 3, "but 3 packets took the tunnel"),
        ("tsi", _lines()[:1], 0, "ztunnel saw 0"),
        ("tsi", [_line(WANTED[0])] * 2 + _lines()[1:], 0, "ztunnel saw 2"),
        ("tsi", _lines(identity="spiffe://other"), 0, "for spiffe://other"),
    ],
    ids=["tunnelled", "not tunnelled", "lost", "twice", "somebody else"],
)
def test_a_path_that_goes_elsewhere_is_found_out(path, lines, packets, why):
    with pytest.raises(FastpathError, match=why):
        judge(path, lines, WANTED, packets)


def test_cpu_time_grows_with_work_and_not_with_sleep():
    """By as much as the kernel's own clock of the process says, more or less a tick."""

    def used_ns(work):
        before = time.process_time_ns(), cpu.used_ns(os.getpid())
        work()
        inner = cpu.used_ns(os.getpid()) - before[1]
        return inner, time.process_time_ns() - before[0]

    def spin():
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass

    slept, most = used_ns(lambda: time.sleep(0.05))
    assert slept <= most + TICK_NS
    worked, most = used_ns(spin)
    assert 100e6 - TICK_NS <= worked <= most + TICK_NS


def test_rounds_that_the_budget_cut_are_a_warning():
    assert compare.cut(20, 20, 180) == ()
    (told,) = compare.cut(4, 20, 9.5)
    assert told == "4 of 20 rounds: --budget 9.5 has no room for more"


def test_cpu_time_of_a_thread_that_ended_stays():
    def spin():
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass

    before = cpu.used_ns(os.getpid())
    thread = threading.Thread(target=spin)
    thread.start()
    thread.join()
    assert cpu.used_ns(os.getpid()) - before >= 50e6


def test_cpu_time_can_leave_a_thread_out():
    assert cpu.used_ns(os.getpid(), without={os.getpid()}) < cpu.used_ns(os.getpid())


def test_pinning_takes_two_of_the_cpus_we_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {5, 3, 9})
    assert cpu.Pinning.choose() == cpu.Pinning(vcpu=3, host=5)


def test_one_cpu_is_shared_and_said(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {4})
    assert "CPU 4, the only one" in str(cpu.Pinning.choose())


def _python(code):
    return (sys.executable, "-c", f"import os, sys, time; {code}", READY_FD)


def _child(code, tmp_path):
    cpu_id = min(os.sched_getaffinity(0))
    return Child("test", _python(code), cpu=cpu_id, log=tmp_path / "log")


READY = "os.write(int(sys.argv[1]), b'ready')"


def test_a_child_is_gone_when_its_context_is_left(tmp_path):
    async def main():
        async with _child(
            f"{READY}; os.close(int(sys.argv[1])); time.sleep(60)", tmp_path
        ) as child:
            assert os.sched_getaffinity(child.pid) == {min(os.sched_getaffinity(0))}
            return child.pid

    pid = asyncio.run(main())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_a_child_that_dies_first_is_an_error_with_its_last_words(tmp_path):
    async def main():
        async with _child("sys.exit('fastpath: no such thing')", tmp_path):
            pass

    with pytest.raises(FastpathError, match="no such thing"):
        asyncio.run(main())


def test_work_stops_when_the_child_dies_under_it(tmp_path):
    async def main():
        code = f"{READY}; os.close(int(sys.argv[1])); time.sleep(0.2); sys.exit(3)"
        async with _child(code, tmp_path) as child:
            await child.watch(asyncio.sleep(60))

    with pytest.raises(FastpathError, match="exit status 3"):
        asyncio.run(main())
