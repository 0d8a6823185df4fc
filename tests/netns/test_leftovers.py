"""However the process that holds a path ends, nothing of the path remains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from fastpath.datapath.links import Links
from fastpath.datapath.netns import Namespace
from tests.support.limits import LIMIT_S, wait_until

pytestmark = pytest.mark.netns

HOLDER = """
import sys, time
from fastpath.datapath import catalogue
from fastpath.datapath.build import Built
with Built(catalogue.possible("ambient-geneve")) as path:
    print(*(each.fileno() for each in path.netns.values()), flush=True)
    end = sys.stdin.readline().strip()
    if end == "exception":
        raise RuntimeError
"""

ENDS = {
    "exit": lambda holder: holder.stdin.write("exit\n"),
    "exception": lambda holder: holder.stdin.write("exception\n"),
    "ctrl-c": lambda holder: holder.send_signal(signal.SIGINT),
    "sigterm": lambda holder: holder.send_signal(signal.SIGTERM),
    "sigkill": lambda holder: holder.send_signal(signal.SIGKILL),
}


def host_state():
    """What a path could leave in the namespace that it is started from."""
    commands = (
        ["ip", "-o", "-4", "address"],
        ["ip", "rule"],
        ["ip", "route", "show", "table", "all"],
        ["ip", "netns"],
        ["iptables-save", "-t", "mangle"],
        ["iptables-save", "-t", "nat"],
    )
    lines = []
    for argv in commands:
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        lines += [x for x in done.stdout.splitlines() if not x.startswith("#")]
    return lines


def watch(device, pid, fd):
    """Join two namespaces, the thread's and a process's, by a veth: both keep it."""
    theirs = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDONLY)
    try:
        with Links() as ip:
            ip.veth(device, peer="watched", peer_netns=theirs)
    finally:
        os.close(theirs)


def devices(where):
    table = where.run(Path("/proc/thread-self/net/dev").read_text)
    return {line.split(":")[0].strip() for line in table.splitlines()[2:]}


@pytest.fixture
def holder(path):
    """A process that built a path of its own and holds it."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=root,
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_nothing_of_the_path_remains_after(end, holder):
    before = host_state()
    fds = holder.stdout.readline().split()
    assert len(fds) == 5
    with closing(Namespace()) as observer:
        for index, fd in enumerate(fds):
            observer.run(watch, f"watch{index}", holder.pid, fd)
        watching = partial(devices, observer)
        assert {f"watch{i}" for i in range(5)} <= watching()

        end(holder)
        if holder.stdin is not None:
            holder.stdin.close()
        holder.wait(timeout=LIMIT_S)
        wait_until(lambda: not [d for d in watching() if d.startswith("watch")])
    assert host_state() == before


def test_a_program_started_inside_keeps_its_namespace_alive_no_longer_than_itself(path):
    with closing(Namespace()) as observer, closing(Namespace()) as inside:
        observer.run(watch, "watch", os.getpid(), inside.fileno())
        argv = inside.command(["sleep", "600"])
        with subprocess.Popen(argv) as process:
            # nsenter has moved once it has become the program.
            comm = Path(f"/proc/{process.pid}/comm")
            wait_until(lambda: comm.read_text() == "sleep\n")
            inside.close()
            assert "watch" in devices(observer)
            process.kill()
        wait_until(lambda: "watch" not in devices(observer))
