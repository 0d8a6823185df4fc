"""What something costs that is done to a path under load: figures `policy`, `restart`.

    policy    ztunnel gets a new mesh: `MORE` workloads and a tenth as many policies,
              none of which is about the load
    restart   who takes the path's connections is ended, is away for `AWAY_S`, and is
              started again

The load is `guest/probe steady`: connections that an echo answers, at a fixed rate, and
some that stay open. It goes on until what is done to it is over, however long that
takes. So what was done and what came of it are two figures.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any, Final

import yaml

from fastpath.commands.compare.measure import ECHO_PORT, PAYLOAD, PROBE
from fastpath.errors import FastpathError
from fastpath.report.figures import Round

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from fastpath.commands.compare.child import Child
    from fastpath.commands.compare.measure import Bench, Counts

MORE: Final = 500
AWAY_S: Final = 0.5
CALM_S: Final = 0.5
"""Of load before, and after."""
RATE: Final = 200
"""Connections a second."""
LIMIT_MS: Final = 1000
"""For each, or it has failed."""
LIMIT_S: Final = 300.0

_TAKEN: Final = "new mesh from"
"""What ztunnel says of one."""
_LOOK_S: Final = 0.005


class Mesh:
    """Istio's local file, of which there is a new one whenever one is asked for.

    Args:
        file: where the processes read it.
        config: what it has.
        readers: those processes.
    """

    def __init__(
        self, file: Path, config: dict[str, Any], readers: tuple[Child, ...]
    ) -> None:
        self._file = file
        self._config = config
        self._readers = readers
        self._numbers = itertools.count(1)

    async def renew(self) -> float:
        """Write a new one, and wait until it is in force.

        Returns:
            how long that took, s.

        Raises:
            FastpathError: a process doesn't take it.
        """
        text = yaml.safe_dump(crowded(self._config, next(self._numbers)))
        partial = self._file.with_suffix(".new")
        partial.write_text(text, encoding="utf-8")
        before = [reader.said(_TAKEN) for reader in self._readers]
        loop = asyncio.get_running_loop()
        began = loop.time()
        partial.replace(self._file)
        while any(
            reader.said(_TAKEN) == count
            for reader, count in zip(self._readers, before, strict=True)
        ):
            if loop.time() - began > LIMIT_S:
                raise FastpathError("a new mesh", f"not in force within {LIMIT_S:g} s")
            await asyncio.sleep(_LOOK_S)
        return loop.time() - began


def crowded(config: dict[str, Any], number: int) -> dict[str, Any]:
    """A mesh with more in it, another for each number; none is about its own."""
    workloads = [
        {
            "uid": f"more-{at}",
            "name": f"more-{at}",
            "namespace": "elsewhere",
            "serviceAccount": "more",
            "trustDomain": "cluster.local",
            "workloadIps": [f"10.201.{at // 250}.{1 + at % 250}"],
            "services": {},
        }
        for at in range(MORE)
    ]
    policies = [
        {
            "name": f"load-{number}-{at}",
            "namespace": "elsewhere",
            "scope": "Namespace",
            "action": "Deny",
            "dryRun": False,
            "rules": [[[{"destinationPorts": [1 + at]}]]],
        }
        for at in range(MORE // 10)
    ]
    return config | {
        "workloads": [*config["workloads"], *workloads],
        "policies": [*config.get("policies", ()), *policies],
    }


async def policy(bench: Bench, path: str, counts: Counts) -> Round:
    """Measure what a new mesh costs; nothing, where the path has no ztunnel."""
    del counts
    if bench.new_mesh is None or not bench.ways[path].logged:
        return Round()
    return await _disturbed(bench, path, "policy", bench.new_mesh)


async def restart(bench: Bench, path: str, counts: Counts) -> Round:
    """Measure what a restart costs; nothing, where the microVM's device would go."""
    del counts
    child = bench.ways[path].restarts
    if child is None:
        return Round()

    async def again() -> float:
        return await child.restart(AWAY_S)

    return await _disturbed(bench, path, "restart", again)


async def _disturbed(
    bench: Bench, path: str, key: str, disturb: Callable[[], Awaitable[float]]
) -> Round:
    """Have load on a path, and do something to it meanwhile."""
    way = bench.ways[path]
    out, err = bytearray(), bytearray()
    begun = asyncio.Event()
    end = asyncio.StreamReader()

    def on_stderr(data: bytes) -> None:
        err.extend(data)
        begun.set()

    numbers = (PAYLOAD, RATE, LIMIT_MS)
    argv = [PROBE, way.echo, str(ECHO_PORT), "steady", *map(str, numbers)]
    load = asyncio.ensure_future(
        way.machine.watch(
            way.guest.run(
                argv, tsi=way.tsi, stdin=end, stdout=out.extend, stderr=on_stderr
            )
        )
    )
    load.add_done_callback(lambda _: begun.set())
    try:
        async with asyncio.timeout(LIMIT_S):
            await begun.wait()
            await asyncio.sleep(CALM_S)
            took = await disturb()
            await asyncio.sleep(CALM_S)
            end.feed_eof()
            status = await load
    except TimeoutError:
        why = f"not done within {LIMIT_S:g} s"
        raise FastpathError(f"{' '.join(argv)} on path {path}", why) from None
    finally:
        load.cancel()
        await asyncio.wait({load})
    if status:
        why = err.decode(errors="replace").strip() or f"exit status {status}"
        raise FastpathError(f"{' '.join(argv)} on path {path}", why)
    found = json.loads(out)
    return Round(
        values={
            f"{key}_gap": found["gap_ns"] / 1e6,
            f"{key}_took": took * 1e3,
            f"{key}_failed": float(found["failed"]),
            f"{key}_broken": float(found["broken"]),
        }
    )
