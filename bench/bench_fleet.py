"""A thousand VMs of one process: what they cost before they do anything.

Round trips of one guest beside idle VMs, whose VMMs are there and whose rings run; and
what the command takes to start for a thousand VMs, in time and in memory.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bench import procfs
from bench.harness import CID, ENGINE_ECHO, TWO_CORES, Guest, pinned, process
from bench.report import Target
from vhost_user.closing import Closing
from vhost_user.driver import Ram, Virtqueue
from vhost_user.frontend import ALL_FEATURES, Frontend

GROUP = "A thousand VMs of one process"
VMS = 1000
MEMBERS = 10
"""VMs of each group."""
TRIPS = 5000
POLL_US = 200
RING, RAM = 16, 64 << 10
START_S = 300.0


@contextmanager
def _command(vms, *, threads=1, uds=False):
    """Run the command with VMs from a file; yield its sockets' folder, pid and start.

    The last figure is seconds until all listen. Sockets are in tmpfs, as below /run.
    """
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="vsock-bench-", dir="/dev/shm")
        )
        folder = Path(name)
        lines = [f"threads: {threads}", "vms:"]
        for at in range(vms):
            lines += [f"- guest_cid: {CID + at}", f"  socket: {folder}/{CID + at}"]
            lines.append(f"  groups: g{at // MEMBERS}")
            if uds:
                lines.append(f"  uds_path: {folder}/u{CID + at}")
        (folder / "vms.yaml").write_text("\n".join(lines))
        argv = [sys.executable, "-m", "vhost_user.vsock.cli"]
        argv += [f"--config={folder}/vms.yaml", f"--echo-port={ENGINE_ECHO}"]
        argv += [f"--poll-us={POLL_US}", f"--stats-socket={folder}/stats"]
        start = time.monotonic()
        child = stack.enter_context(process(argv, TWO_CORES.backend))
        while not (folder / "stats").exists():  # the last socket
            assert child.poll() is None
            assert time.monotonic() < start + START_S
            time.sleep(0.001)
        yield folder, child.pid, time.monotonic() - start


class _Idle(Closing):
    """A VM whose driver is ready and has nothing to do."""

    def __init__(self, socket: Path) -> None:
        self._frontend = Frontend(socket)
        features = self._frontend.negotiate(ALL_FEATURES)
        self._ram = Ram(RAM)
        self._frontend.set_memory(self._ram)
        self._queues = [Virtqueue(self._ram, RING, features=features) for _ in range(2)]
        for index, queue in enumerate(self._queues):
            self._frontend.start(index, queue)

    def close(self) -> None:
        self._frontend.close()
        for queue in self._queues:
            queue.close()
        self._ram.close()


def _beside(idle):
    """Round trips of one guest: their median, and CPU time of the back-end each."""

    @contextmanager
    def side():
        with contextlib.ExitStack() as stack:
            stack.enter_context(pinned(TWO_CORES.driver))
            folder, pid, _ = stack.enter_context(_command(1 + idle))
            for cid in range(CID + 1, CID + 1 + idle):
                stack.enter_context(_Idle(folder / f"{cid}"))
            guest = Guest(folder / f"{CID}", spin=True)
            stack.callback(guest.close)
            conn = guest.connect(ENGINE_ECHO)

            def measure():
                before = procfs.cpu_ns(pid)
                trips = guest.rtt_ns(conn, 64, TRIPS)
                return median(trips) / 1e3, (procfs.cpu_ns(pid) - before) / 1e3 / TRIPS

            yield measure

    return side


@pytest.mark.long
@pytest.mark.parametrize("idle", [63, VMS - 1])
def bench_round_trip_beside_idle_vms_of_a_process(bench, idle):
    about: dict[str, Any] = {"group": GROUP, "unit": "us", "less": True}
    about |= {"against": "alone", "target": Target(1.05)}
    what = f"64 B, echo in the engine, both sides spin, beside {idle} idle VMs"
    figures = [
        {"key": f"fleet-rtt-{idle}", "title": f"round trip {what}, p50"},
        {"key": f"fleet-cpu-{idle}", "title": f"CPU of one, {what}"},
    ]
    bench.pairs(_beside(idle), _beside(0), [about | figure for figure in figures])


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 2])
def bench_start_of_a_thousand_vms(bench, threads):
    def sitting():
        with _command(VMS, threads=threads, uds=True) as (_, pid, start_s):
            memory, cpu_s = procfs.kib(pid, "RssAnon"), procfs.cpu_ns(pid) / 1e9
        with _command(1, uds=True) as (_, pid, _):
            return start_s, cpu_s, (memory - procfs.kib(pid, "RssAnon")) / (VMS - 1)

    starts, cpu, memory = zip(*bench.each(sitting, rounds=3), strict=True)
    about = {"group": GROUP, "less": True}
    engines = f"{VMS} VMs in groups of {MEMBERS}, {threads} engines"
    bench.note(
        ours=starts,
        key=f"fleet-start-{threads}",
        title=f"start of {engines}, three sockets each",
        unit="s",
        **about,
    )
    bench.note(
        ours=cpu,
        key=f"fleet-start-cpu-{threads}",
        title=f"CPU of the start of {engines}",
        unit="s",
        target=Target(5, "ours"),
        **about,
    )
    bench.note(
        ours=memory,
        key=f"fleet-memory-{threads}",
        title=f"memory of an idle VM, of {engines}",
        unit="KiB",
        target=Target(16, "ours"),
        **about,
    )
