"""Counters of the engine and its devices, as Python reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """Counters of a device; `struct vu_dev_stats` says what each counts."""

    conns: int
    queued_bytes: int
    window_bytes: int
    opened: int
    failed: int
    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    kicks: int
    calls: int
    rst_unknown: int
    bad_packets: int
    credit_violations: int
    limit_conns: int
    limit_bytes: int
    limit_rate: int
    no_fds: int
    no_memory: int
    backlog_full: int
    message_errors: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters of an engine; `struct vu_engine_stats` says what each counts."""

    conns: int
    wakeups: int
    spins: int
    spin_hits: int
    events_lost: int
    refused: int


GAUGES: Final = frozenset({"conns", "queued_bytes", "window_bytes"})
"""Counters that also fall."""
