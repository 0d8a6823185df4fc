"""The tables of a comparison in README and docs/measurements.md.

fastpath compare --json FILE
python -m tests.compare_doc FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastpath.report.figures import DEFAULT_GROUPS, FAST_PATH, HEADLINE, metrics
from tests import measured

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGES: Final = (measured.ROOT / "README.md", measured.ROOT / "docs/measurements.md")
PART: Final = "compare"
OURS, STANDARD = FAST_PATH, HEADLINE
UNITS: Final = {"connect": "us", "rtt_64": "us", "up": "MB/s", "down": "MB/s"}
VERDICTS: Final = {True: "met", False: "not met", None: "not shown"}


def table(report: Mapping[str, Any]) -> str:
    """Return the table, and what it holds for."""
    ours, standard = (report["paths"][name] for name in (OURS, STANDARD))
    ratios = report["ratios"][f"{OURS}/{STANDARD}"]
    lines = [
        (
            f"| sandbox to ztunnel | `{OURS}` | `{STANDARD}` | ratio, 95 % interval"
            " | target | |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for metric in metrics(STANDARD):
        if metric.group not in DEFAULT_GROUPS:
            continue
        ratio = ratios[metric.key]
        row = [
            f"{metric.title}, {UNITS.get(metric.key, 'us')}",
            _figure(ours, metric.key),
            _figure(standard, metric.key),
            f"{ratio['median']:.2f}{_interval(ratio['ci95'])}",
        ]
        if metric.bound is None:
            row += ["", ""]
        else:
            sign = ">=" if metric.more_is_better else "<="
            row += [f"{sign} {metric.bound:.2f}", VERDICTS[ratio["met"]]]
        lines.append(f"| {' | '.join(row)} |")
    stacks = [str(len(path["tcp_ip_stacks"])) for path in (ours, standard)]
    lines.append(f"| TCP/IP stacks crossed | {' | '.join(stacks)} | | | |")
    return "\n".join([*lines, "", measured.wrapped(measured.setting(report)), ""])


def _figure(path: Mapping[str, Any], key: str) -> str:
    if key.startswith("through_"):
        return _figure(path["through"], key.removeprefix("through_"))
    if key == "host_cpu":
        return f"{path['host_cpu_us_per_rtt']:.0f}"
    if f"{key}_us" in path:
        return f"{path[f'{key}_us']['p50']:.0f}"
    return f"{path[f'{key}_mb_per_s']:.0f}"


def _interval(ends: Mapping[str, float] | list[float] | None) -> str:
    if ends is None:
        return ""
    low, high = ends
    return f" ({low:.2f} - {high:.2f})"


def main(arguments: list[str]) -> int:
    """Write the tables of the report that is named."""
    (file,) = arguments
    report = json.loads(Path(file).read_text(encoding="utf-8"))
    for page in PAGES:
        measured.write(page, PART, table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
