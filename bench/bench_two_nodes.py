"""Two nodes by HBONE: ours beside Istio's own ztunnel, `--ztunnel BIN`, in one run.

two_nodes.py says what is on them. Clients and servers are on one CPU, the proxies of
both nodes on the other one. The two sides take turns, in turned order; the one whose
turn it is not sleeps. CPU is that of both proxies, of each node. Without `--ztunnel`
the benches are left out.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.harness import awake, pinned
from bench.report import Target
from bench.two_nodes import CLIENT_CPU, Client, Nodes, istios_nodes, our_nodes
from tests.netns.mesh_world import IN_THE_MESH

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.ztunnel

ROUNDS, SHORT_ROUNDS = 15, 3
TRIPS, CONNECTS, CHURN, WARM_UP = 2000, 300, 600, 200
BULK_S, SHORT_BULK_S = 1.5, 0.4
HELD = 1000
GROUP = "Two nodes by HBONE, beside Istio's ztunnel at both"
SIDES = ("ours", "istio")

Side = tuple[Nodes, Client]


@pytest.fixture
def sides(request, monkeypatch) -> Iterator[dict[str, Side]]:
    """Both pairs of nodes, which have nothing in common."""
    monkeypatch.setattr("tests.netns.mesh_world.IN_THE_MESH", IN_THE_MESH | {"bench"})
    binary = request.config.getoption("--ztunnel")
    with contextlib.ExitStack() as stack:
        stack.enter_context(awake())
        made = tempfile.TemporaryDirectory(prefix="two-")
        folder = Path(stack.enter_context(made))
        for name in SIDES:
            (folder / name).mkdir()
        ours = our_nodes(folder / "ours", stack)
        istios = istios_nodes(folder / "istio", stack, binary)
        stack.enter_context(pinned(CLIENT_CPU))
        yield {"ours": ours, "istio": istios}


def trips(side: Side, bulk_s: float) -> dict[str, float]:
    """A round trip, and the CPU that it takes."""
    del bulk_s
    nodes, client = side
    client.round_trips(WARM_UP)
    before = nodes.cpu_s()
    found = client.round_trips(TRIPS)
    return {"rtt": found, "rtt-cpu": (nodes.cpu_s() - before) * 1e6 / TRIPS}


def connects(side: Side, bulk_s: float) -> dict[str, float]:
    """Set-up on a pooled tunnel."""
    del bulk_s
    return {"connect": side[1].connects(CONNECTS)}


def churn(side: Side, bulk_s: float) -> dict[str, float]:
    """Connections a second."""
    del bulk_s
    return {"churn": side[1].churn(CHURN)}


def up(side: Side, bulk_s: float) -> dict[str, float]:
    """Bulk, and the CPU that a MiB takes."""
    nodes, client = side
    before = nodes.cpu_s()
    sent = client.up(bulk_s)
    cpu_ms = (nodes.cpu_s() - before) * 1e3
    return {"up": sent / bulk_s / 1e6, "up-cpu": cpu_ms / (sent / 2**20)}


TITLES = {
    "rtt": ("round trip, 64 B", "us", Target(0.5)),
    "rtt-cpu": ("CPU of both proxies a round trip", "us", Target(0.5)),
    "connect": ("connect() and 1 B echoed, pooled", "us", Target(0.5)),
    "churn": ("connections, 32 in flight", "1/s", Target(2.0)),
    "up": ("bulk up, one stream", "MB/s", Target(2.0)),
    "up-cpu": ("CPU of both proxies a MiB up", "ms", Target(0.5)),
    "rss": ("resident memory of node a, 1,000 connections", "MB", Target(0.7)),
}


RECORDED = ("rtt", "rtt-cpu", "churn")
"""In bench/baseline.json; the others are not reached, or swing."""


def note(bench, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Take what was found into the report."""
    for key in rounds[0]["ours"]:
        title, unit, target = TITLES[key]
        bench.note(
            key=f"two-nodes-{key}",
            group=GROUP,
            title=title,
            unit=unit,
            less=unit not in {"1/s", "MB/s"},
            ours=tuple(each["ours"][key] for each in rounds),
            other=tuple(each["istio"][key] for each in rounds),
            against="Istio's",
            target=target,
            recorded=key in RECORDED,
        )


@pytest.mark.parametrize("measure", [trips, connects, churn, up])
def bench_two_nodes(bench, sides, measure):
    bulk_s = SHORT_BULK_S if bench.short else BULK_S
    rounds = bench.turns(
        SIDES,
        lambda name: measure(sides[name], bulk_s),
        rounds=ROUNDS,
        short=SHORT_ROUNDS,
    )
    note(bench, rounds)


def bench_two_nodes_memory(bench, sides):
    def hold() -> dict[str, dict[str, float]]:
        found = {}
        for name, (nodes, client) in sides.items():
            client.hold(HELD)
            found[name] = {"rss": nodes.rss_mb("a")}
        return found

    note(bench, bench.each(hold, rounds=1))
