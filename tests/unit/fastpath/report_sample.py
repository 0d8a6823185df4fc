"""A made-up report for the report's tests: 6 rounds on two paths."""

from __future__ import annotations

import random

from fastpath.report.figures import Round
from fastpath.report.model import Hop, PathFacts, PathResult, Report, Setting

SETTING = Setting(
    started="2024-05-01T12:00:00Z",
    accel="tcg",
    accel_reason="asked for",
    geneve="bpf",
    guest_kernel="6.1.0-26-cloud-amd64",
    clocksource="tsc",
    host_kernel="6.18.44",
    cpu_model="Test CPU <1 & 2>",
    cpus=2,
    qemu="QEMU 7.2.0",
    pinning="vCPU on CPU 0, host side on CPU 1",
    command="fastpath compare --paths 'tsi, plain'",
    version="0.1.0",
    cpu_note="CPU time of ztunnel's and QEMU's threads; softirq is not counted.",
    method=("Six rounds.", "In turns."),
    checks=("tsi: 8 connections",),
)


def rounds(scale: float, count: int = 6, seed: int = 1) -> tuple[Round, ...]:
    rng = random.Random(seed)

    def times(mid: float, n: int) -> tuple[int, ...]:
        return tuple(round(rng.lognormvariate(0, 0.25) * mid * scale) for _ in range(n))

    return tuple(
        Round(
            times_ns={
                "connect": times(200_000, 50),
                "rtt_64": times(110_000, 200),
                "through_connect": times(260_000, 50),
                "through_rtt_64": times(150_000, 100),
            },
            values={
                "up": 90 / scale,
                "down": 120 / scale,
                "host_cpu": 20 * scale,
            },
        )
        for _ in range(count)
    )


STACKS = tuple(Hop(at, at, stack=at) for at in ("guest", "node", "ztunnel"))


def path(name: str, scale: float, **kwargs) -> PathResult:
    facts = PathFacts(
        title=f"path {name}",
        hops=(
            Hop("program", "guest", thread=True, down=("one",)),
            *(() if name == "tsi" else STACKS),
            Hop("ztunnel", "host", thread=True, up=("one", "two")),
        ),
    )
    return PathResult(name=name, facts=facts, rounds=rounds(scale, **kwargs))


def report(*names: str) -> Report:
    names = names or ("tsi", "inpod-l3forwarding")
    paths = {n: path(n, 1.0 if n == "tsi" else 2.0, seed=len(n)) for n in names}
    return Report(setting=SETTING, paths=paths)
