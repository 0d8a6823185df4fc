"""The report as JSON: the keys of the project's contract, and more beside them.

The contract (accel, geneve, guest_kernel, rounds, paths, ratios) is stable;
`setting`, `targets` and `samples` are there for people who draw their own
pictures. `ci95` is null where there are too few rounds for one, `met` where a target
is neither shown to be met nor not to be. Times in us, rates in 10**6 bytes a second,
samples in ns. `system_calls_per_rtt` is null where they were not counted, else calls by
process and name; `tcp_connections` are those that are left from the program to a server
behind who answers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from fastpath import files
from fastpath.report.model import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from fastpath.report.model import PathResult, Report, Verdict
    from fastpath.report.stats import Summary

_MET: Final = {Outcome.MET: True, Outcome.MISSED: False, Outcome.NOT_SHOWN: None}


def to_dict(report: Report) -> dict[str, Any]:
    """Return the report as what `json.dumps` takes."""
    setting = report.setting
    return {
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
        "targets": {
            pair: {
                v.metric.key: {
                    "at_least" if v.metric.at_least else "at_most": v.metric.bound
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
            "cpu_note": setting.cpu_note,
            "calls_note": setting.calls_note,
            "method": list(setting.method),
            "checks": list(setting.checks),
        },
        "samples": {name: _samples(path) for name, path in report.paths.items()},
    }


def write(report: Report, path: Path) -> None:
    """Write the report to `path`.

    Raises:
        OSError: the file cannot be written.
    """
    files.replace(path, json.dumps(to_dict(report), indent=1) + "\n")


def _path(path: PathResult) -> dict[str, Any]:
    facts = path.facts
    return {
        "connect_us": _summary(path.connect),
        "rtt_64_us": _summary(path.rtt),
        "up_mb_per_s": round(path.up_mb_per_s, 3),
        "down_mb_per_s": round(path.down_mb_per_s, 3),
        "host_cpu_us_per_rtt": round(path.cpu_us_per_rtt, 3),
        "through": {
            "connect_us": _summary(path.through_connect),
            "rtt_64_us": _summary(path.through_rtt),
        },
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


def _samples(path: PathResult) -> list[dict[str, Any]]:
    return [
        {
            "connect_ns": list(r.connect_ns),
            "rtt_64_ns": list(r.rtt_ns),
            "up_mb_per_s": r.up_bps / 1e6,
            "down_mb_per_s": r.down_bps / 1e6,
            "host_cpu_us_per_rtt": r.cpu_ns_per_rtt / 1e3,
            "through_connect_ns": list(r.through_connect_ns),
            "through_rtt_64_ns": list(r.through_rtt_ns),
        }
        for r in path.rounds
    ]
