"""Counters of tunnels: those that we make (`client`), those that others do (`server`).

They are the engine's (`struct vu_hbone_stats`), summed up for each identity of ours.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from vhost_user.hbone import HboneStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

    from fastpath.identity import Identity

    Sides = Mapping[str, Mapping[Identity, HboneStats]]

GAUGES: Final = frozenset({"tunnels", "streams", "shakes"})
"""Values that also fall."""
NONE: Final = HboneStats(*(0 for _ in fields(HboneStats)))


def add(one: HboneStats, other: HboneStats) -> HboneStats:
    """The sum of two."""
    names = (each.name for each in fields(HboneStats))
    return HboneStats(*(getattr(one, name) + getattr(other, name) for name in names))


class HboneCollector:
    """Reads them when somebody asks.

    Args:
        sides: gives each side's, by its name; callable on any thread.
    """

    def __init__(self, sides: Callable[[], Sides]) -> None:
        self._sides = sides

    def collect(self) -> Iterator[Metric]:
        """One family a counter, one sample a side and an identity."""
        sides = self._sides()
        for each in fields(HboneStats):
            kind = GaugeMetricFamily if each.name in GAUGES else CounterMetricFamily
            what = f"{each.name} of tunnels, as in vhost_user/native/vu_hbone.h"
            name = f"fastpath_hbone_{each.name}"
            family = kind(name, what, labels=("side", "identity"))
            for side, stats in sides.items():
                for identity, of_it in stats.items():
                    value = getattr(of_it, each.name)
                    family.add_metric((side, f"{identity}"), value)
            yield family
