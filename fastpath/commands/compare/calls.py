"""System calls a round trip, of each process that carries it, counted by strace(1).

A run of many round trips less a run of one, after the rounds: who is traced is slow, so
nothing is timed meanwhile. What is counted is what these processes do when each message
finds them asleep; an engine that spins makes fewer calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fastpath import tools
from fastpath.commands.compare.measure import ECHO_PORT, PAYLOAD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from fastpath.commands.compare.measure import Bench

    Counts = Mapping[str, Mapping[str, float]]
    """Calls a round trip, by process and name."""

ROUND_TRIPS: Final = 200
LIMIT_S: Final = 30.0
"""How long strace may take to attach, and to end."""
LEAST: Final = 0.05
"""A call that fewer round trips than this make is no part of one: Python's timers."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted."""

    by_path: Mapping[str, Counts] = field(default_factory=dict)
    """Empty: nothing was."""
    note: str = ""
    """How, or why not."""


class NotCountedError(Exception):
    """They can't be counted here; the message says why."""


async def count(
    bench: Bench, paths: Sequence[str], *, cpu: int, say: Callable[[str], None]
) -> Counted:
    """Count them on each path.

    Args:
        bench: where.
        paths: their names.
        cpu: the one that strace runs on: that of the processes.
        say: told what is being done.
    """
    found: dict[str, Counts] = {}
    try:
        for path in paths:
            say(f"counting system calls on {path}")
            found[path] = await _of(bench, path, cpu)
    except NotCountedError as exc:
        return Counted(note=f"System calls were not counted: {exc}.")
    return Counted(
        found,
        f"System calls a round trip: strace -c of each process, a run of {ROUND_TRIPS} "
        "less a run of one, after the last round. Tracing slows them down, so that "
        "they sleep more and spin less than when they are timed.",
    )


async def _of(bench: Bench, path: str, cpu: int) -> Counts:
    async def run(trips: int) -> dict[str, dict[str, int]]:
        async with contextlib.AsyncExitStack() as stack:
            traces = {
                name: await stack.enter_async_context(tracing(pid, cpu))
                for name, pid in bench.processes(path).items()
            }
            await bench.near(path, ECHO_PORT, "rtt", str(trips), str(PAYLOAD))
        return {name: parse("".join(said)) for name, said in traces.items()}

    few, many = await run(1), await run(ROUND_TRIPS)
    return {name: less(many[name], few[name], ROUND_TRIPS - 1) for name in many}


def less(
    many: Mapping[str, int], few: Mapping[str, int], trips: int
) -> dict[str, float]:
    """What `trips` round trips more have made more, for each, most calls first."""
    each = {name: (calls - few.get(name, 0)) / trips for name, calls in many.items()}
    ordered = sorted(each.items(), key=lambda item: (-item[1], item[0]))
    return {name: round(calls, 2) for name, calls in ordered if calls >= LEAST}


def parse(summary: str) -> dict[str, int]:
    """Read what `strace -c -U name,calls` prints."""
    lines = (line.split() for line in summary.splitlines())
    return {
        words[0]: int(words[1])
        for words in lines
        if len(words) == 2 and words[1].isdecimal() and words[0] != "total"
    }


@contextlib.asynccontextmanager
async def tracing(pid: int, cpu: int) -> AsyncIterator[list[str]]:
    """Trace a process; the summary is in the list when this is left.

    Raises:
        NotCountedError: strace is missing, or may not.
    """
    if (strace := tools.find("strace")) is None:
        raise NotCountedError("strace is missing (sudo apt-get install strace)")
    # It dies with us, and then lets go of whom it traces.
    own = ["setpriv", "--pdeathsig", "TERM", "--", "taskset", "-c", str(cpu)]
    process = await asyncio.create_subprocess_exec(
        *own,
        *(strace, "-f", "-c", "-U", "name,calls", "-p", str(pid)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        async with asyncio.timeout(LIMIT_S):
            _check_attached(await process.stderr.readline())
        yield said
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(LIMIT_S):
            said.append((await process.stderr.read()).decode(errors="replace"))
            await process.wait()
    except BaseException as exc:
        await _end(process)
        if isinstance(exc, TimeoutError):
            why = f"strace does not answer in {LIMIT_S:g} s"
            raise NotCountedError(why) from None
        raise


def _check_attached(first: bytes) -> None:
    line = first.decode(errors="replace").strip()
    if "attached" not in line:
        raise NotCountedError(line or "strace ends and says nothing")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    await process.wait()
