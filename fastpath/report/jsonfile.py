"""The report as JSON: the keys of the project's contract, and more beside them.

docs/compare.schema.json describes each key, and docs/compare.md what is stable.
`VERSION` grows where a key goes or changes its meaning, not where one is added.
Times in us, rates in 10**6 bytes a second, samples in ns.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastpath import files
from fastpath.errors import FastpathError
from fastpath.report.figures import BY_KEY, METRICS, Round
from fastpath.report.model import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from fastpath.report.difference import Difference
    from fastpath.report.model import PathResult, Report, Verdict
    from fastpath.report.stats import Summary

VERSION: Final = 2
"""Of the file. 1 had no `version`, and other names in `samples`."""
WRITTEN_BY: Final = "write it with fastpath compare --json FILE"
_MET: Final = {Outcome.MET: True, Outcome.MISSED: False, Outcome.NOT_SHOWN: None}


TIMES: Final = {"connect_us": "connect", "rtt_64_us": "rtt_64"}
"""The contract's names of what has samples, there twice: also through ztunnel."""
NUMBERS: Final = {
    "up_mb_per_s": "up",
    "down_mb_per_s": "down",
    "host_cpu_us_per_rtt": "host_cpu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a file has of a run: enough to compare it with another."""

    paths: Mapping[str, tuple[Round, ...]]
    started: str
    host: str
    """The machine, in words."""
    accel: str
    warnings: tuple[str, ...]


def read(path: Path) -> Run:
    """Read a file that `write` wrote.

    Raises:
        FastpathError: it can't be read, or is no such file.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise FastpathError(f"cannot read {path}", f"{exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise FastpathError(f"{path}", f"is no JSON: {exc}", WRITTEN_BY) from exc
    version = loaded.get("version") if isinstance(loaded, dict) else None
    if version != VERSION:
        why = f"has version {version}, and this program reads version {VERSION}"
        raise FastpathError(f"{path}", why, WRITTEN_BY)
    try:
        return _run(loaded)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        why = f"is no report of fastpath compare ({type(exc).__name__}: {exc})"
        raise FastpathError(f"{path}", why, WRITTEN_BY) from exc


def _run(loaded: dict[str, Any]) -> Run:
    setting = loaded["setting"]
    return Run(
        paths={
            str(name): tuple(_round(each) for each in rounds)
            for name, rounds in loaded["samples"].items()
        },
        started=str(setting["started"]),
        host=f"{setting['cpu_model']}, {setting['cpus']} CPUs, "
        f"{setting['host_kernel']}",
        accel=str(loaded["accel"]),
        warnings=tuple(str(each) for each in loaded["warnings"]),
    )


def _round(loaded: dict[str, Any]) -> Round:
    """Read a round; what can't be compared is an error, as a ratio has no zeros."""
    own = Round(
        times_ns={k: tuple(map(int, ns)) for k, ns in loaded["times_ns"].items()},
        values={k: float(value) for k, value in loaded["values"].items()},
    )
    for key in (*own.times_ns, *own.values):
        figure, metric = own.figure(key), BY_KEY.get(key)
        may_be_0 = metric is not None and metric.counted
        if not (math.isfinite(figure) and (figure > 0 or (may_be_0 and figure == 0))):
            raise ValueError(f"{key} is {own.figure(key)}")
    return own


def to_dict(report: Report) -> dict[str, Any]:
    """Return the report as what `json.dumps` takes."""
    setting = report.setting
    return {
        "version": VERSION,
        "accel": setting.accel,
        "geneve": setting.geneve,
        "guest_kernel": setting.guest_kernel,
        "rounds": report.rounds,
        "warnings": list(report.warnings),
        "paths": {name: _path(path) for name, path in report.paths.items()},
        "ratios": {
            pair: {v.metric.key: _ratio(v) for v in verdicts}
            for pair, verdicts in report.verdicts.items()
        },
        "differences": {
            pair: {each.metric.key: _difference(each) for each in differences}
            for pair, differences in report.differences.items()
        },
        "variants": [dataclasses.asdict(each) for each in report.variants],
        "left_out": [dataclasses.asdict(each) for each in report.left_out],
        "thresholds": dataclasses.asdict(report.thresholds),
        "targets": {
            pair: {
                v.metric.key: {
                    "at_least" if v.metric.more_is_better else "at_most": v.metric.bound
                }
                for v in verdicts
                if v.metric.bound is not None
            }
            for pair, verdicts in report.standard.items()
        },
        "setting": {
            "started": setting.started,
            "accel_reason": setting.accel_reason,
            "clocksource": setting.clocksource,
            "host_kernel": setting.host_kernel,
            "cpu_model": setting.cpu_model,
            "cpus": setting.cpus,
            "qemu": setting.qemu,
            "pinning": setting.pinning,
            "command": setting.command,
            "version": setting.version,
            "cpu_note": setting.cpu_note,
            "calls_note": setting.calls_note,
            "method": list(setting.method),
            "checks": list(setting.checks),
        },
        "samples": dict(_all_samples(report)),
    }


def _all_samples(report: Report) -> Iterator[tuple[str, Any]]:
    for name, path in report.paths.items():
        yield name, _samples(path)
        if path.beside:
            yield f"{path.beside.name} beside {name}", _samples(path.beside)


def write(report: Report, path: Path) -> None:
    """Write the report to `path`.

    Raises:
        OSError: the file cannot be written.
    """
    files.replace(path, json.dumps(to_dict(report), indent=1) + "\n")


def _path(path: PathResult) -> dict[str, Any]:
    facts = path.facts
    through = {
        name: _summary(path.summary(f"through_{key}"))
        for name, key in TIMES.items()
        if path.has(f"through_{key}")
    }
    return {
        **{n: _summary(path.summary(k)) for n, k in TIMES.items() if path.has(k)},
        **{n: round(path.median(k), 3) for n, k in NUMBERS.items() if path.has(k)},
        **({"through": through} if through else {}),
        "figures": {
            metric.key: {"median": round(path.median(metric.key), 3)}
            | {"unit": metric.unit}
            for metric in METRICS
            if path.has(metric.key)
        },
        "rounds": len(path.rounds),
        "tcp_ip_stacks": list(facts.stacks),
        "copies_up": list(facts.copies_up),
        "copies_down": list(facts.copies_down),
        "tcp_connections": list(facts.connections),
        "answers": facts.answers,
        "system_calls_per_rtt": path.calls or None,
    }


def _summary(summary: Summary) -> dict[str, float | int]:
    return {
        "p50": round(summary.p50, 3),
        "p99": round(summary.p99, 3),
        "min": round(summary.min, 3),
        "n": summary.n,
    }


def _ratio(verdict: Verdict) -> dict[str, Any]:
    ratio, outcome = verdict.ratio, verdict.outcome
    return {
        "median": round(ratio.median, 4),
        "ci95": ratio.interval and [round(end, 4) for end in ratio.interval],
        **({} if outcome is None else {"met": _MET[outcome]}),
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "ratio": round(difference.ratio, 4),
        "ci95": difference.interval and [round(x, 4) for x in difference.interval],
        "p": round(difference.p, 6),
        "verdict": difference.verdict.value,
    }


def _samples(path: PathResult) -> list[dict[str, Any]]:
    return [
        {
            "times_ns": {key: list(ns) for key, ns in each.times_ns.items()},
            "values": {key: round(value, 6) for key, value in each.values.items()},
        }
        for each in path.rounds
    ]
