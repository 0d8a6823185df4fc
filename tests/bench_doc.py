"""The table of README that `make bench` measured: ours beside vhost-device-vsock.

python -m pytest bench --out FILE
python -m tests.bench_doc FILE
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import report
from tests import measured

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.report import Figure

PAGE: Final = measured.ROOT / "README.md"
PART: Final = "bench"
ROWS: Final = (
    ("64 B round trip", ("rtt-64",)),
    ("guest to host, writes of 64 B / 4 KiB / 64 KiB", ("up-64", "up-4k", "up-64k")),
    ("host to guest, writes of 4 KiB / 64 KiB", ("down-4k", "down-64k")),
    ("connect + close, 1 / 64 in flight", ("churn-1", "churn-64")),
)
SETTINGS: Final = {"one core": "one", "two cores": "two", "two, polling": "two-poll"}


def table(on: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """Return the table, and what it holds for.

    Raises:
        KeyError: the run has not measured all of it.
    """
    by_key = {figure.key: figure for figure in figures}
    lines = [f"| | {' | '.join(SETTINGS)} |", "|---|---|---|---|"]
    for title, keys in ROWS:
        cells = [
            " / ".join(_ratio(by_key[f"{setting}-{key}"]) for key in keys)
            for setting in SETTINGS.values()
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    kib, fds = (_pair(by_key[key]) for key in ("memory", "fds"))
    cost = f"{kib[0]} KiB and {fds[0]} fd, not {kib[1]} KiB and {fds[1]} fds"
    lines.append(f"| memory a connection | {cost} | | |")
    where = (
        f"{on['cpus']} CPUs of an {on['cpu']} machine, Linux {on['kernel']},"
        f" {on['date']}; load average {on['load']:g}, the benches themselves included."
    )
    return "\n".join([*lines, "", measured.wrapped([where]), ""])


def _ratio(figure: Figure) -> str:
    assert figure.ratio is not None
    return f"{report.number(figure.ratio.median)}x"


def _pair(figure: Figure) -> tuple[str, str]:
    ours, other = map(statistics.median, (figure.ours, figure.other))
    return f"{ours:.2g}", f"{other:.2g}"


def main(arguments: list[str]) -> int:
    """Write the table of the run that is named."""
    (file,) = arguments
    measured.write(PAGE, PART, table(*report.load(Path(file))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
