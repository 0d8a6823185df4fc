"""Both back-ends without a VM: a driver in user space plays the guest.

Through hybrid unix sockets to a server in another process, as programs on the host
would be. The peer is measured in each setting: everything on one CPU, or the driver on
one and back-end and server on the other; our back-end blocking, or polling as it does
by default.

Where two cores sleep between messages, waking them costs more than all else, and on a
virtual machine it costs what its host makes of it. So there is a setting in which they
sleep, and one in which they are kept awake, as hosts with halt polling or idle=poll
keep them (`harness.awake`). With polling the driver spins, too. Whatever the setting,
it is the same for both back-ends.
"""

from __future__ import annotations

import statistics
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from bench.harness import (
    ECHO,
    ONE_CORE,
    SINK,
    SOURCE_4K,
    SOURCE_64,
    SOURCE_64K,
    TWO_CORES,
    Backend,
    Guest,
    Pins,
    against,
    awake,
    bound,
    guest_on,
    ours,
    theirs,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
POLL_US = 200
"""Our default."""


@dataclass(frozen=True)
class Setting:
    """Who runs where, and who sleeps."""

    name: str
    title: str
    pins: Pins
    poll_us: int
    spin: bool = False
    awake: bool = False


ONE_BLOCKING = Setting("one", "one core, blocking", ONE_CORE, 0)
ONE_POLLING = Setting("one-poll", "one core, polling", ONE_CORE, POLL_US)
TWO_BLOCKING = Setting("two", "two cores, blocking", TWO_CORES, 0, awake=True)
TWO_ASLEEP = Setting("two-asleep", "two cores that sleep, blocking", TWO_CORES, 0)
TWO_POLLING = Setting("two-poll", "two cores, polling", TWO_CORES, POLL_US, spin=True)
SETTINGS = (ONE_BLOCKING, ONE_POLLING, TWO_BLOCKING, TWO_ASLEEP, TWO_POLLING)


@dataclass(frozen=True)
class Load:
    """What the guest does; `prepare` returns what gives one figure."""

    name: str
    title: str
    unit: str
    less: bool
    prepare: Callable[[Guest], Callable[[], float]]
    targets: tuple[float | None, float | None, float | None]
    """One core; two cores, blocking; two cores, polling."""


def _rtt(size, count, conns=1):
    def prepare(guest):
        conn = guest.connect(ECHO, conns)
        return lambda: statistics.median(guest.rtt_ns(conn, size, count, conns)) / 1e3

    return prepare


def _send(size, total):
    def prepare(guest):
        conn = guest.connect(SINK)
        return lambda: total * 8 / guest.send_ns(conn, size, total)

    return prepare


def _receive(port, total):
    def prepare(guest):
        def measure():
            conn = guest.connect(port)
            guest.receive_ns(conn, 1)
            rate = total * 8 / guest.receive_ns(conn, total)
            guest.close_conn(conn)  # or the source goes on, under what comes next
            return rate

        return measure

    return prepare


def _churn(in_flight, count):
    """Take long enough that the last RST, which polling holds for 2 ms, is nothing."""
    return lambda guest: lambda: count * 1e6 / guest.churn_ns(ECHO, in_flight, count)


LOADS = (
    Load("rtt-64", "round trip 64 B, p50", "us", True, _rtt(64, 2000), (0.5, 0.5, 0.2)),
    Load(
        "rtt-4k", "round trip 4 KiB, p50", "us", True, _rtt(4096, 2000), (0.5, 0.5, 0.2)
    ),
    Load(
        "up-64", "guest to host 64 B", "Gbit/s", False, _send(64, 4 * MIB), (10, 3, 3)
    ),
    Load(
        "up-4k",
        "guest to host 4 KiB",
        "Gbit/s",
        False,
        _send(4096, 64 * MIB),
        (4, 5, 5),
    ),
    Load(
        "up-64k",
        "guest to host 64 KiB",
        "Gbit/s",
        False,
        _send(65536, 128 * MIB),
        (1.6, 6, 6),
    ),
    Load(
        "down-64",
        "host to guest 64 B",
        "Gbit/s",
        False,
        _receive(SOURCE_64, 4 * MIB),
        (None, None, None),
    ),
    Load(
        "down-4k",
        "host to guest 4 KiB",
        "Gbit/s",
        False,
        _receive(SOURCE_4K, 64 * MIB),
        (3.5, 3.5, 3.5),
    ),
    Load(
        "down-64k",
        "host to guest 64 KiB",
        "Gbit/s",
        False,
        _receive(SOURCE_64K, 64 * MIB),
        (7, 3.5, 3.5),
    ),
    Load(
        "churn-1",
        "connect + close, 1 in flight",
        "k/s",
        False,
        _churn(1, 4000),
        (1.8, 1.5, 1.5),
    ),
    Load(
        "churn-64",
        "connect + close, 64 in flight",
        "k/s",
        False,
        _churn(64, 8000),
        (2.8, 2, 2),
    ),
    Load(
        "conns-1000",
        "1000 connections in turn, 64 B, p50",
        "us",
        True,
        _rtt(64, 3000, 1000),
        (0.55, 0.55, 0.55),
    ),
)


def _target(load, setting):
    column = 0 if setting.pins is ONE_CORE else 2 if setting.spin else 1
    target = load.targets[column]
    return None if target is None else bound(target, less=load.less)


def _side(kind: Backend, setting: Setting, load: Load):
    @contextmanager
    def side():
        with guest_on(kind, setting.pins, spin=setting.spin) as (guest, _pid):
            yield load.prepare(guest)

    return side


@pytest.mark.parametrize(
    ("setting", "load"),
    [
        pytest.param(
            setting,
            load,
            id=f"{setting.name}-{load.name}",
            marks=[] if setting in (ONE_BLOCKING, TWO_POLLING) else pytest.mark.long,
        )
        for setting in SETTINGS
        for load in LOADS
    ],
)
def bench_native(bench, setting, load):
    with awake() if setting.awake else nullcontext():
        bench.pair(
            _side(ours(setting.poll_us), setting, load),
            _side(theirs(poll_us=setting.poll_us), setting, load),
            key=f"{setting.name}-{load.name}",
            group=setting.title,
            title=load.title,
            unit=load.unit,
            less=load.less,
            target=_target(load, setting),
            against=against(),
        )
