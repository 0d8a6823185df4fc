"""The report as pytest-benchmark's JSON, for what reads that.

A benchmark is one figure of one path, its data the rounds' numbers: seconds where it is
a time. What is a rate there stands as it is, so that more is better; `extra_info` has
the unit.
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING, Any, Final

from fastpath import files
from fastpath.report.figures import METRICS
from fastpath.report.stats import quantile

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastpath.report.figures import Metric
    from fastpath.report.model import PathResult, Report

VERSION: Final = "4.0.0"
"""Of pytest-benchmark, whose format this is."""
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def write(report: Report, path: Path) -> None:
    """Write the report to `path`.

    Raises:
        OSError: the file cannot be written.
    """
    files.replace(path, json.dumps(to_dict(report), indent=1) + "\n")


def to_dict(report: Report) -> dict[str, Any]:
    """Return the report as what `json.dumps` takes."""
    setting = report.setting
    return {
        "machine_info": {
            "node": "",
            "processor": setting.cpu_model,
            "machine": setting.cpu_model,
            "release": setting.host_kernel,
            "system": "Linux",
            "cpu": {"brand_raw": setting.cpu_model, "count": setting.cpus},
        },
        "commit_info": {"id": "", "time": None, "dirty": False, "branch": ""},
        "benchmarks": [
            _benchmark(path, metric)
            for metric in METRICS
            for path in report.paths.values()
            if path.has(metric.key)
        ],
        "datetime": setting.started,
        "version": VERSION,
    }


def _benchmark(path: PathResult, metric: Metric) -> dict[str, Any]:
    scale = _SECONDS.get(metric.unit, 1.0)
    data = [each.figure(metric.key) * scale for each in path.rounds]
    name = f"{metric.key}[{path.name}]"
    return {
        "group": metric.title,
        "name": name,
        "fullname": f"fastpath compare::{name}",
        "params": {"path": path.name},
        "param": path.name,
        "extra_info": {"unit": "s" if metric.unit in _SECONDS else metric.unit},
        "options": {"disable_gc": False, "timer": "guest", "warmup": True}
        | {"min_rounds": len(data), "max_time": 0.0, "min_time": 0.0},
        "stats": _stats(data),
    }


def _stats(data: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(data)
    mean, spread = statistics.fmean(data), statistics.pstdev(data)
    q1, median, q3 = (quantile(ordered, share) for share in (0.25, 0.5, 0.75))
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    inside = [value for value in ordered if low <= value <= high]
    far = sum(abs(value - mean) > spread for value in data)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": mean,
        "stddev": statistics.stdev(data) if len(data) > 1 else 0.0,
        "rounds": len(data),
        "median": median,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": len(data) - len(inside),
        "stddev_outliers": far,
        "outliers": f"{far};{len(data) - len(inside)}",
        "ld15iqr": inside[0],
        "hd15iqr": inside[-1],
        "ops": 1 / mean if mean else 0.0,
        "total": sum(data),
        "data": list(data),
        "iterations": 1,
    }
