"""The tables of docs/handoffs.md that a run of `fastpath compare` measured.

    fastpath compare --paths tsi,tsi+pod,... --json FILE
    python -m tests.handoff_doc FILE

A run on a loaded machine says so, and so do the tables.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

DOC: Final = Path(__file__).parents[1] / "docs/handoffs.md"
BEGIN: Final = "<!-- measured: written by `make handoff-doc`, do not edit -->\n"
END: Final = "<!-- end of measured -->\n"
BASE: Final = "tsi"
WIDTH: Final = 100

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
    return "\n".join([*made_of, "", *_setting(report), "", *costs, ""])


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


def _setting(report: Mapping[str, Any]) -> list[str]:
    """What the figures hold for, in lines."""
    setting = report["setting"]
    day = setting["started"].partition("T")[0]
    warnings = (
        each for each in report["warnings"] if "too few for an interval" not in each
    )
    where = (
        f"{report['rounds']} rounds, {day}, accelerator {report['accel']}, guest"
        f" {report['guest_kernel']}; {setting['cpus']} CPUs of an"
        f" {setting['cpu_model']} machine, Linux {setting['host_kernel']}."
        " Medians, and ratios to no hand-off paired by rounds."
    )
    said = [where, *(f"Warning of that run: {each}." for each in warnings)]
    return [line for each in said for line in textwrap.wrap(each, WIDTH)]


def main(arguments: list[str]) -> int:
    """Write the tables of the report that is named."""
    (file,) = arguments
    report = json.loads(Path(file).read_text(encoding="utf-8"))
    text = DOC.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOC.write_text(f"{before}{BEGIN}\n{tables(report)}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
