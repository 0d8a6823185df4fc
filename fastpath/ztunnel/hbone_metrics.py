"""Counters of the tunnels that we make, summed up for each identity of ours.

They are the engine's (`struct vu_hbone_stats`).
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final

from fastpath.ztunnel.tally import new_family
from vhost_user.hbone import HboneStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from fastpath.identity import Identity
    from fastpath.ztunnel.tally import Kind

GAUGES: Final = frozenset({"tunnels", "streams", "shakes"})
"""Values that also fall."""
NONE: Final = HboneStats(*(0 for _ in fields(HboneStats)))


def add(one: HboneStats, other: HboneStats) -> HboneStats:
    """The sum of two."""
    names = (each.name for each in fields(HboneStats))
    return HboneStats(*(getattr(one, name) + getattr(other, name) for name in names))


class PoolCollector:
    """Reads them when somebody asks.

    Args:
        engines: gives each engine's, by identity; callable on any thread.
    """

    def __init__(
        self, engines: Callable[[], Iterable[Mapping[Identity, HboneStats]]]
    ) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """One family a counter, one sample an identity."""
        sums: dict[Identity, HboneStats] = {}
        for engine in self._engines():
            for identity, stats in engine.items():
                sums[identity] = add(sums.get(identity, NONE), stats)
        for each in fields(HboneStats):
            kind: Kind = "gauge" if each.name in GAUGES else "counter"
            what = f"{each.name} of the pool, as in vhost_user/native/vu_hbone.h"
            name = f"fastpath_pool_{each.name}"
            family = new_family(kind, name, what, ("identity",))
            for identity, stats in sums.items():
                family.add_metric((f"{identity}",), getattr(stats, each.name))
            yield family
