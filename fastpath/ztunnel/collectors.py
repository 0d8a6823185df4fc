"""What Prometheus's library reads when somebody asks: counters that others keep.

Each is a collector of its; the objects that it makes are `tally`'s.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fastpath.tsi.datagram_limits import DatagramStats
from fastpath.tsi.stats import TsiStats
from fastpath.ztunnel.tally import new_family
from vhost_user.engine import GAUGES
from vhost_user.hbone import HboneStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        Metric,
    )

    from fastpath.ztunnel.dns import DnsStats
    from fastpath.ztunnel.tally import Kind
    from vhost_user.engine import DeviceStats, EngineStats

_CURRENT = frozenset(
    {"streams", "flows", "tokens", "held", "listeners", "tunnels", "shakes"}
)
"""Values of UDP's, DNS's, TSI's and HBONE's that also fall."""


class EngineCollector:
    """Reads the engine's and the devices' counters when somebody asks.

    Args:
        engines: gives each engine's.
        devices: gives each sandbox's, by its name.
        dropped_lines: access-log lines dropped so far.
    """

    def __init__(
        self,
        engines: Callable[[], Sequence[EngineStats]],
        devices: Callable[[], Mapping[str, DeviceStats]],
        dropped_lines: Callable[[], int],
    ) -> None:
        self._engines = engines
        self._devices = devices
        self._dropped_lines = dropped_lines

    def collect(self) -> Iterator[Metric]:
        """One family a counter, one sample an engine or a sandbox."""
        dropped = "Access-log lines dropped: the reader is too slow"
        lines = new_family("counter", "fastpath_access_log_dropped", dropped, ())
        lines.add_metric((), self._dropped_lines())
        yield lines
        engines = {f"{at}": stats for at, stats in enumerate(self._engines())}
        yield from _families("engine", "engine", engines)
        yield from _families("device", "sandbox", self._devices())


def _families(
    part: str, label: str, stats: Mapping[str, EngineStats] | Mapping[str, DeviceStats]
) -> Iterator[Metric]:
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for whose, of_it in stats.items():
        for name, value in _numbers(of_it):
            if name not in families:
                families[name] = _family(part, name, (label,))
            families[name].add_metric((whose,), value)
    yield from families.values()


class DatagramCollector:
    """Reads the counters of UDP and DNS when somebody asks.

    Args:
        datagrams: gives each sandbox's, by its name.
        dns: gives those of DNS.
    """

    def __init__(
        self,
        datagrams: Callable[[], Mapping[str, DatagramStats]],
        dns: Callable[[], DnsStats],
    ) -> None:
        self._datagrams = datagrams
        self._dns = dns

    def collect(self) -> Iterator[Metric]:
        """One family a counter, one sample a sandbox."""
        for name, value in _numbers(self._dns()):
            family = _family("dns", name, (), "fastpath/ztunnel/dns.py")
            family.add_metric((), value)
            yield family
        yield from _of_sandboxes(
            "datagram",
            DatagramStats,
            self._datagrams(),
            "fastpath/tsi/datagram_limits.py",
        )


class TsiCollector:
    """Reads the counters of the TSI services when somebody asks.

    Args:
        services: gives each sandbox's, by its name.
    """

    def __init__(self, services: Callable[[], Mapping[str, TsiStats]]) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """One family a counter, one sample a sandbox."""
        where = "fastpath/tsi/service.py"
        yield from _of_sandboxes("tsi", TsiStats, self._services(), where)


class GateCollector:
    """Reads the counters of the sandboxes' gates when somebody asks.

    Args:
        gates: gives each sandbox's, by its name.
    """

    def __init__(self, gates: Callable[[], Mapping[str, HboneStats]]) -> None:
        self._gates = gates

    def collect(self) -> Iterator[Metric]:
        """One family a counter, one sample a sandbox."""
        where = "vhost_user/native/vu_hbone.h"
        yield from _of_sandboxes("gate", HboneStats, self._gates(), where)


def _of_sandboxes(
    part: str,
    kind: type[DatagramStats | TsiStats | HboneStats],
    stats: Mapping[str, DatagramStats]
    | Mapping[str, TsiStats]
    | Mapping[str, HboneStats],
    where: str,
) -> Iterator[Metric]:
    for field in dataclasses.fields(kind):
        family = _family(part, field.name, ("sandbox",), where)
        for sandbox, of_it in stats.items():
            family.add_metric((sandbox,), getattr(of_it, field.name))
        yield family


def _family(
    part: str,
    name: str,
    labels: tuple[str, ...],
    where: str = "vhost_user/native/vu.h",
) -> CounterMetricFamily | GaugeMetricFamily:
    kind: Kind = "gauge" if name in GAUGES or name in _CURRENT else "counter"
    what = f"{name} of the {part}, as in {where}"
    return new_family(kind, f"fastpath_{part}_{name}", what, labels)


def _numbers(stats: EngineStats | DeviceStats | DnsStats) -> Iterator[tuple[str, int]]:
    for field in dataclasses.fields(stats):
        yield field.name, getattr(stats, field.name)
