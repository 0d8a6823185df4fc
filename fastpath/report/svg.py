"""The pictures of the HTML report, as inline SVG without any asset.

Colours and fonts come from the page's style sheet by class name, so that one
picture serves a light and a dark page: `path0`, `path1`, ... for the paths in
the report's order, `axis`, `grid`, `label`, `target`.
"""

from __future__ import annotations

import bisect
import math
from html import escape
from typing import TYPE_CHECKING, Final

from fastpath.report.model import Outcome
from fastpath.report.stats import quantile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastpath.report.model import Verdict

WIDTH: Final = 520
HEIGHT: Final = 300
LEFT: Final = 46
RIGHT: Final = 14
TOP: Final = 12
BOTTOM: Final = 44
MOST_TICKS: Final = 7
"""More labels than this run into each other."""
LADDERS: Final = ((1, 2, 3, 4, 6), (1, 2, 5), (1, 3), (1,))
NARROW: Final = 360
"""Width of a picture for a phone."""
POINTS: Final = 240
"""Points of a curve: more cannot be seen."""
KINDS: Final = {
    None: "none",
    Outcome.MET: "met",
    Outcome.MISSED: "missed",
    Outcome.NOT_SHOWN: "open",
}
"""Style-sheet classes of what a verdict says."""


class LogAxis:
    """Maps values to pixels on a logarithmic axis.

    Args:
        low, high: the values at the ends, above zero.
        start, end: the pixels there.
    """

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, max(high, low * 1.01)
        self._start, self._span = start, end - start
        self._log_low = math.log(self.low)
        self._log_span = math.log(self.high) - self._log_low

    def at(self, value: float) -> float:
        """Return the pixel of `value`, held inside the axis."""
        inside = min(max(value, self.low), self.high)
        share = (math.log(inside) - self._log_low) / self._log_span
        return self._start + share * self._span

    def ticks(self, most: int = MOST_TICKS) -> list[float]:
        """Return round values inside the axis, at most `most` of them.

        The finest of some ladders that has no more; beyond them every second decade,
        every third and so on.
        """
        for digits in LADDERS:
            values = self._round_values(digits)
            if len(values) <= most:
                return values
        decades = self._round_values((1,))
        return decades[:: math.ceil(len(decades) / most)]

    def _round_values(self, digits: Sequence[int]) -> list[float]:
        first = math.floor(math.log10(self.low))
        last = math.ceil(math.log10(self.high))
        values = [m * 10.0**d for d in range(first, last + 1) for m in digits]
        return [v for v in values if self.low <= v <= self.high]


def ecdf(title: str, samples_us: Mapping[str, Sequence[float]]) -> str:
    """Draw the share of samples at or below each time, one curve a path.

    Args:
        title: what screen readers say.
        samples_us: microseconds by path name, none empty.
    """
    curves = [sorted(samples) for samples in samples_us.values()]
    axis = LogAxis(
        min(quantile(c, 0.0) for c in curves) * 0.95,
        max(quantile(c, 0.995) for c in curves) * 1.05,
        LEFT,
        WIDTH - RIGHT,
    )
    parts = [_frame(title, HEIGHT, kind="ecdf"), _shares(), _times(axis)]
    for place, (name, curve) in enumerate(zip(samples_us, curves, strict=True)):
        median = quantile(curve, 0.5)
        points = _curve(curve, axis)
        parts.append(f'<polyline class="curve path{place}" points="{points}"/>')
        tip = f"{name}: p50 {median:.1f} us"
        parts.append(_dot(f"dot path{place}", axis.at(median), _height(0.5), tip))
    return "".join([*parts, "</svg>"])


def forest(verdicts: Sequence[Verdict], *, narrow: bool = False) -> str:
    """Draw each ratio as a point with its interval, and its target as a tick.

    Args:
        verdicts: in the order that they are drawn in.
        narrow: for a phone: names are above the points and not beside them.
    """
    row, head = (46, 8) if narrow else (34, 8)
    height = head + row * len(verdicts) + 40
    width, left = (NARROW, 12) if narrow else (760, 280)
    right = width - 20
    values = [v for x in verdicts for v in (x.ratio.median, *(x.ratio.interval or ()))]
    bounds = [x.metric.bound for x in verdicts if x.metric.bound is not None]
    axis = LogAxis(
        min(*values, *bounds, 1.0) * 0.9, max(*values, *bounds, 1.0) * 1.1, left, right
    )
    floor = height - 36
    title = "Ratios with their 95 % intervals and targets"
    kind = "forest narrow" if narrow else "forest wide"
    parts = [_frame(title, height, width, kind=kind)]
    for value in axis.ticks(5 if narrow else MOST_TICKS):
        x = axis.at(value)
        parts += [_line("grid", x, head, x, floor), _tick_text(x, floor, f"{value:g}x")]
    parts.append(_line("one", axis.at(1.0), head, axis.at(1.0), floor))
    for place, verdict in enumerate(verdicts):
        top = head + row * place
        name = (
            _text("above", left, top + 14, verdict.metric.title)
            if narrow
            else _text("name", left - 12, top + row / 2 + 4, verdict.metric.title)
        )
        parts += [name, _forest_row(verdict, axis, top + (30 if narrow else row / 2))]
    parts.append(_text("label", (left + right) / 2, height - 4, "ratio (log scale)"))
    return "".join([*parts, "</svg>"])


def _forest_row(verdict: Verdict, axis: LogAxis, y: float) -> str:
    ratio, bound = verdict.ratio, verdict.metric.bound
    kind = KINDS[verdict.outcome]
    parts = []
    tip = f"{ratio.median:.3f}"
    if ratio.interval is not None:
        low, high = ratio.interval
        parts.append(_line(f"interval {kind}", axis.at(low), y, axis.at(high), y))
        tip += f" ({low:.3f} to {high:.3f})"
    parts.append(_dot(f"point {kind}", axis.at(ratio.median), y, tip))
    if bound is not None:
        x = axis.at(bound)
        inward = 6 if verdict.metric.more_is_better else -6
        parts += [
            _line("target", x, y - 11, x, y + 11),
            f'<path class="target" d="M{x:.1f} {y - 11:.1f}h{inward}"/>',
            f'<path class="target" d="M{x:.1f} {y + 11:.1f}h{inward}"/>',
        ]
    return "".join(parts)


def _frame(title: str, height: float, width: float = WIDTH, *, kind: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" class="{kind}" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">'
    )


def _shares() -> str:
    """Draw the vertical axis: shares of the samples."""
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = _height(percent / 100)
        parts += [
            _line("grid", LEFT, y, WIDTH - RIGHT, y),
            _text("share", LEFT - 6, y + 4, f"{percent} %"),
        ]
    return "".join(parts)


def _times(axis: LogAxis) -> str:
    """Draw the horizontal axis: microseconds."""
    floor = HEIGHT - BOTTOM
    parts = [_line("axis", LEFT, floor, WIDTH - RIGHT, floor)]
    for value in axis.ticks():
        x = axis.at(value)
        parts += [_line("grid", x, TOP, x, floor), _tick_text(x, floor, span(value))]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text("label", middle, HEIGHT - 6, "time (log scale)"))
    return "".join(parts)


def span(us: float) -> str:
    """Say a time of a tick in its largest unit: `200 us`, `2 ms`, `10 s`."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:g} {unit}"
    return f"{us:g} us"


def _curve(ordered: Sequence[float], axis: LogAxis) -> str:
    """Return the polyline: the empirical distribution at evenly spaced pixels."""
    places = []
    for i in range(POINTS + 1):
        value = axis.low * (axis.high / axis.low) ** (i / POINTS)
        share = bisect.bisect_right(ordered, value) / len(ordered)
        places.append(f"{axis.at(value):.1f},{_height(share):.1f}")
    return " ".join(places)


def _height(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    start = f'x1="{x1:.1f}" y1="{y1:.1f}"'
    return f'<line class="{kind}" {start} x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(kind: str, x: float, y: float, tip: str) -> str:
    circle = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5">'
    return f"{circle}<title>{escape(tip)}</title></circle>"


def _text(kind: str, x: float, y: float, words: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _tick_text(x: float, floor: float, words: str) -> str:
    return _text("tick", x, floor + 16, words)
