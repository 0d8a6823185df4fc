"""The tables of docs/handoffs.md that a run of `fastpath compare` measured.

    fastpath compare --paths tsi,tsi+pod,... --json FILE
    python -m tests.handoff_doc FILE

A run on a loaded machine says so, and so do the tables.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests import measured

if TYPE_CHECKING:
    from collections.abc import Mapping

DOC: Final = measured.ROOT / "docs/handoffs.md"
PART: Final = "measured"
MEDIANS: Final = "Medians, and ratios to no hand-off paired by rounds."
BASE: Final = "tsi"

NAMES: Final = {BASE: "none"}
"""What the page calls a path, where that is not the hand-off's name."""


def tables(report: Mapping[str, Any]) -> str:
    """Return both tables, and what they hold for.

    Raises:
        ValueError: there are no hand-offs in the report, or nothing to hold them to.
    """
    paths = report["paths"]
    if BASE not in paths or not any(name.startswith(f"{BASE}+") for name in paths):
        raise ValueError(f"no hand-offs beside {BASE} in this report")
    shown = {
        f"`{name.partition('+')[2]}`" if "+" in name else NAMES.get(name, name): name
        for name in paths
        if name.startswith(BASE)
    }
    made_of = [
        (
            "| hand-off | TCP connections left, program to server | copies up / down |"
            " system calls a round trip |"
        ),
        "|---|---|---|---|",
        *(f"| {label} | {_made_of(paths[name])} |" for label, name in shown.items()),
    ]
    costs = [
        (
            "| hand-off | connect(), us | 64 B round trip, us | the same, through to a"
            " server, us | bulk up, MB/s | bulk down, MB/s | host CPU a round trip, us"
            " |"
        ),
        "|---|---|---|---|---|---|---|",
        *(f"| {label} | {_costs(report, name)} |" for label, name in shown.items()),
    ]
    return "\n".join(
        [
            *made_of,
            "",
            measured.wrapped([*measured.setting(report), MEDIANS]),
            "",
            *costs,
            "",
        ]
    )


def _made_of(path: Mapping[str, Any]) -> str:
    left = path["tcp_connections"]
    calls = path["system_calls_per_rtt"] or {}
    each = " + ".join(f"{sum(of.values()):.0f}" for of in calls.values())
    copies = f"{len(path['copies_up'])} / {len(path['copies_down'])}"
    return f"{len(left)}: {'; '.join(left)} | {copies} | {each or 'not counted'}"


def _costs(report: Mapping[str, Any], name: str) -> str:
    path = report["paths"][name]
    ratios = report["ratios"].get(f"{name}/{BASE}")
    cells = [
        (path["connect_us"]["p50"], "connect"),
        (path["rtt_64_us"]["p50"], "rtt_64"),
        (path["through"]["rtt_64_us"]["p50"], "through_rtt_64"),
        (path["up_mb_per_s"], "up"),
        (path["down_mb_per_s"], "down"),
    ]
    words = [
        f"{value:.0f}" + (f" ({ratios[key]['median']:.2f}x)" if ratios else "")
        for value, key in cells
    ]
    return " | ".join([*words, f"{path['host_cpu_us_per_rtt']:.0f}"])


def main(arguments: list[str]) -> int:
    """Write the tables of the report that is named."""
    (file,) = arguments
    report = json.loads(Path(file).read_text(encoding="utf-8"))
    measured.write(DOC, PART, tables(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
