"""Counters with labels, which Prometheus's library reads once somebody asks.

That library, with the servers and clients that it imports, takes 4 MB, and most
processes are asked by nobody. So what counts is plain, and it is the library's only
when a page is made: `collect()` is what a collector of its has to have.

The event loop's thread counts; any thread may collect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        Metric,
    )

Kind = Literal["counter", "gauge"]


@dataclass(slots=True)
class Value:
    """One number."""

    now: float = 0

    def inc(self, by: float = 1) -> None:
        """Add to it."""
        self.now += by

    def dec(self) -> None:
        """Take one from it; a gauge's only."""
        self.now -= 1


class Tally:
    """Numbers of one name, by the values of their labels.

    Args:
        name: Prometheus's; a counter's without `_total`.
        what: it is, in words.
        labels: their names.
        kind: a gauge's numbers also fall.
    """

    def __init__(
        self, name: str, what: str, labels: Sequence[str], kind: Kind = "counter"
    ) -> None:
        self._name = name
        self._what = what
        self._labels = labels
        self._kind: Kind = kind
        self._values: dict[tuple[str, ...], Value] = {}

    def labels(self, *values: str) -> Value:
        """The number with these labels; the same one for the same labels."""
        found = self._values.get(values)
        return found or self._values.setdefault(values, Value())

    def collect(self) -> Iterator[Metric]:
        """The one family."""
        made = new_family(self._kind, self._name, self._what, self._labels)
        for labels, value in tuple(self._values.items()):
            made.add_metric(labels, value.now)
        yield made


def new_family(
    kind: Kind, name: str, what: str, labels: Iterable[str]
) -> CounterMetricFamily | GaugeMetricFamily:
    """A family of Prometheus's library, empty."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    made = GaugeMetricFamily if kind == "gauge" else CounterMetricFamily
    return made(name, what, labels=tuple(labels))
