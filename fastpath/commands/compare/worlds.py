"""A world a variant: its namespaces, server, ztunnel, proxies and microVMs.

All are up at once and take turns. One that does not come up, or breaks, is left out
with the reason, and its guests' console logs are kept; the others go on. Without
variants there is one world, and what it lacks is the run's error.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from fastpath import scratch
from fastpath.commands.compare import scenario, selfcheck
from fastpath.commands.compare.measure import Contestant
from fastpath.errors import FastpathError
from fastpath.report.model import AT, VariantFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastpath.commands.compare.measure import Bench
    from fastpath.commands.compare.scenario import Plan
    from fastpath.commands.compare.variants import Variant
    from fastpath.vm.guest import GuestInfo


@dataclass(slots=True, kw_only=True)
class World:
    """A variant that is, or was, up."""

    variant: Variant
    plan: Plan
    bench: Bench | None = None
    info: GuestInfo | None = None
    failure: str = ""
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    def contestants(self, paths: Sequence[str]) -> list[Contestant]:
        """What is measured in it."""
        if self.bench is None:
            return []
        after = f"{AT}{self.variant.name}" if self.variant.name else ""
        return [Contestant(f"{path}{after}", self.bench, path) for path in paths]

    def facts(self, qemu: str) -> VariantFacts:
        """What the report says of it."""
        return VariantFacts(
            name=self.variant.name,
            spec=self.variant.spec,
            guest_kernel=self.info.kernel if self.info else "",
            sockets=self.info.sockets if self.info else "",
            qemu=qemu,
            failure=self.failure,
        )


class Worlds:
    """Brings them up; an async context manager that takes all down.

    Args:
        worlds: none of them up.
        paths: that are measured in each.
        say: told what is being done.
    """

    def __init__(
        self, worlds: Sequence[World], paths: Sequence[str], say: Callable[[str], None]
    ) -> None:
        self.all = tuple(worlds)
        self.checks: tuple[str, ...] = ()
        """What the self check saw."""
        self._paths = paths
        self._say = say

    async def __aenter__(self) -> Self:
        """Bring up what comes up.

        Raises:
            FastpathError: nothing does.
        """
        try:
            for world in self.all:
                await self._start(world)
            self._check_left()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    @property
    def contestants(self) -> list[Contestant]:
        """Of those that are up."""
        return [each for world in self.all for each in world.contestants(self._paths)]

    @property
    def clocksources(self) -> set[str]:
        """What the guests' clocks were read from."""
        return {clock for w in self.all if w.bench for clock in w.bench.clocksources}

    @property
    def vcpus(self) -> frozenset[int]:
        """Thread ids of all vCPUs."""
        return frozenset(
            thread
            for world in self.all
            if world.bench
            for way in world.bench.ways.values()
            for thread in way.machine.vcpu_thread_ids
        )

    async def lose(self, contestant: Contestant, error: FastpathError) -> set[str]:
        """Take down the world of one that failed.

        Returns:
            the names of what can't be measured any more.

        Raises:
            FastpathError: there are no others.
        """
        world = next(w for w in self.all if w.bench is contestant.bench)
        lost = {each.name for each in world.contestants(self._paths)}
        await self._fail(world, error)
        self._check_left()
        return lost

    async def _start(self, world: World) -> None:
        def say(words: str) -> None:
            name = world.variant.name
            self._say(f"{name}: {words}" if name else words)

        try:
            async with contextlib.AsyncExitStack() as stack:
                bench, world.info = await stack.enter_async_context(
                    scenario.running(world.plan, say=say)
                )
                say("checking the paths")
                for path in self._paths:
                    self.checks += (await self._check(world, bench, path),)
                world.stack, world.bench = stack.pop_all(), bench
        except FastpathError as error:
            await self._fail(world, error)

    async def _check(self, world: World, bench: Bench, path: str) -> str:
        plan = world.plan
        said = await selfcheck.verify(bench, path, plan.site, plan.access_log)
        return f"{world.variant.name}, {said}" if world.variant.name else said

    async def _fail(self, world: World, error: FastpathError) -> None:
        """Take it down, and keep its consoles; without variants, that is all.

        Raises:
            FastpathError: there are no variants.
        """
        world.bench = None
        await world.stack.aclose()
        if len(self.all) == 1:
            raise error
        world.failure = _with_consoles_kept(str(error), world.plan)

    def _check_left(self) -> None:
        """See that something is up, and what the others are compared with.

        Raises:
            FastpathError: not so.
        """
        if not any(world.bench for world in self.all):
            said = "; ".join(f"{w.variant.name}: {w.failure}" for w in self.all)
            raise FastpathError("no variant is left", said)

    async def _close(self) -> None:
        for world in reversed(self.all):
            await world.stack.aclose()


def _with_consoles_kept(said: str, plan: Plan) -> str:
    """Move the consoles to where they stay for a day; say where, too."""
    for sandbox in plan.sandboxes:
        if kept := scratch.keep(sandbox.console):
            if str(sandbox.console) in said:
                said = said.replace(str(sandbox.console), str(kept))
            else:
                said += f" (console log: {kept})"
    return said
