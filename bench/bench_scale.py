"""What a connection, a VM, idleness and polling cost.

Ours alone, in two settings of its own, or beside the peer.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import procfs
from bench.bench_native import LOADS, POLL_US
from bench.harness import (
    CID,
    ECHO,
    ENGINE_ECHO,
    ONE_CORE,
    SINK,
    TWO_CORES,
    Guest,
    backend,
    guest_on,
    ours,
    pinned,
    server,
    theirs,
)
from bench.report import Target

SCALE = "Scale: connections, VMs, idleness"
HARM = "Polling where everything shares one core"
CONNS, CONNS_BEFORE = 8000, 1000
"""What is counted, and what fills the heap's holes before. Two fds each, for the peer,
must be below the hard limit that a container has (20,000)."""
IDLE = 10_000
MANY = 100_000
MANY_LIMITS = ",max-conns=131072,max-queued-bytes=536870912"
VMS = 16
STREAM_S = 0.5
IDLE_S = 5.0


# ---- what a connection costs ----


def _cost(kind):
    """Return KiB and fds of one of CONNS connections, each used once."""
    with guest_on(kind, TWO_CORES) as (guest, pid):
        guest.connect(ECHO, CONNS_BEFORE)
        memory, fds = procfs.kib(pid, "RssAnon"), procfs.descriptors(pid)
        first = guest.connect(ECHO, CONNS)
        guest.rtt_ns(first, 64, CONNS, CONNS)
        memory = procfs.kib(pid, "RssAnon") - memory
        return memory / CONNS, (procfs.descriptors(pid) - fds) / CONNS


def bench_cost_of_a_connection(bench):
    rounds = bench.each(lambda: (_cost(ours(0)), _cost(theirs())), rounds=1)
    ((kib, fds), (peer_kib, peer_fds)) = rounds[0]
    about = {"group": SCALE, "less": True}
    bench.note(
        ours=(kib,),
        other=(peer_kib,),
        key="memory",
        title=f"memory a connection, of {CONNS}",
        unit="KiB",
        target=Target(2, "ours"),
        **about,
    )
    bench.note(
        ours=(fds,),
        other=(peer_fds,),
        key="fds",
        title="fds a connection",
        unit="",
        target=Target(1, "ours"),
        **about,
    )


@pytest.mark.long
def bench_many_connections(bench):
    """On the echo in the engine: their fds would be more than a process may have."""

    def sitting():
        with guest_on(ours(0, more=MANY_LIMITS), ONE_CORE) as (guest, pid):
            first = guest.connect(ENGINE_ECHO, MANY)
            guest.rtt_ns(first, 64, MANY, MANY)
            return procfs.kib(pid, "VmRSS") / 1024

    bench.note(
        ours=tuple(bench.each(sitting, rounds=1)),
        key="many-conns",
        group=SCALE,
        title=f"the whole back-end with {MANY} connections of one VM open",
        unit="MiB",
        less=True,
        target=Target(250, "ours"),
    )


def _beside(idle):
    """Round trips on one connection with `idle` more that say nothing."""

    @contextmanager
    def side():
        with guest_on(ours(0), ONE_CORE) as (guest, _pid):
            if idle:
                guest.connect(ECHO, idle)
            conn = guest.connect(ECHO)
            yield lambda: statistics.median(guest.rtt_ns(conn, 64, 2000)) / 1e3

    return side


@pytest.mark.long
def bench_round_trip_beside_idle_connections(bench):
    bench.pair(
        _beside(IDLE),
        _beside(0),
        key="idle-conns",
        group=SCALE,
        title=f"round trip 64 B beside {IDLE} idle connections",
        unit="us",
        less=True,
        against="alone",
        target=Target(1.1),
    )


# ---- many VMs ----


@contextmanager
def _fleet(vms):
    """Run one engine with `vms` VMs; yield their guests."""
    cids = range(CID, CID + vms)
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="vsock-bench-"))
        stack.enter_context(pinned(TWO_CORES.driver))
        host = stack.enter_context(server(Path(name), TWO_CORES.server))
        kind = ours(POLL_US, cids)
        running = backend(kind, Path(name), host, TWO_CORES.backend, cids)
        socket, _pid = stack.enter_context(running)
        guests = [Guest(Path(f"{socket}{cid}"), cid=cid) for cid in cids]
        for guest in guests:
            stack.callback(guest.close)
        yield guests


def _streams(guests, conns):
    """Have every guest send for a time, each from its own thread; return the rates."""
    rates = [0.0] * len(guests)

    def send(at):
        done = guests[at].send_for(conns[at], 4096, STREAM_S)
        rates[at] = done * 8 / STREAM_S / 1e9

    threads = [threading.Thread(target=send, args=(at,)) for at in range(len(guests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rates


@pytest.mark.long
def bench_many_vms(bench):
    least = []

    def side(vms):
        @contextmanager
        def run():
            with _fleet(vms) as guests:
                conns = [guest.connect(SINK) for guest in guests]

                def measure():
                    rates = _streams(guests, conns)
                    if vms > 1:
                        least.append(min(rates) / statistics.mean(rates))
                    return sum(rates)

                yield measure

        return run

    bench.pair(
        side(VMS),
        side(1),
        key="vms-sum",
        group=SCALE,
        title=f"{VMS} VMs on one engine, guest to host 4 KiB, sum",
        unit="Gbit/s",
        less=False,
        against="one VM",
        target=Target(0.8),
    )
    bench.note(
        ours=tuple(least),
        key="vms-fair",
        group=SCALE,
        title="least of them to their mean",
        unit="",
        less=False,
        target=Target(0.5, "ours"),
    )


# ---- polling and idleness ----


@pytest.mark.long
def bench_echo_in_the_engine(bench):
    def sitting():
        with guest_on(ours(POLL_US), TWO_CORES, spin=True) as (guest, _pid):
            conn = guest.connect(ENGINE_ECHO)
            guest.rtt_ns(conn, 64, 5000)
            return statistics.median(guest.rtt_ns(conn, 64, 50_000)) / 1e3

    bench.note(
        ours=tuple(bench.each(sitting, rounds=5)),
        key="engine-echo",
        group=SCALE,
        title="round trip 64 B, echo in the engine, both sides spin, p50",
        unit="us",
        less=True,
        target=Target(1.5, "ours"),
    )


@pytest.mark.long
def bench_idle(bench):
    def sitting():
        with guest_on(ours(POLL_US), TWO_CORES) as (guest, pid):
            conn = guest.connect(ECHO)
            guest.rtt_ns(conn, 64, 5000)
            time.sleep(0.5)
            before = procfs.cpu_ns(pid)
            time.sleep(IDLE_S)
            return (procfs.cpu_ns(pid) - before) / IDLE_S / 1e7

    bench.note(
        ours=tuple(bench.each(sitting, rounds=1)),
        key="idle-cpu",
        group=SCALE,
        title="CPU of an idle back-end after traffic, polling",
        unit="%",
        less=True,
        target=Target(0.01, "ours"),
    )


@pytest.mark.long
@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def bench_polling_harm(bench, load):
    def side(poll_us):
        @contextmanager
        def run():
            with guest_on(ours(poll_us), ONE_CORE) as (guest, _pid):
                yield load.prepare(guest)

        return run

    bench.pair(
        side(POLL_US),
        side(0),
        key=f"harm-{load.name}",
        group=HARM,
        title=load.title,
        unit=load.unit,
        less=load.less,
        against="blocking",
        target=Target(1.05 if load.less else 0.95),
    )
