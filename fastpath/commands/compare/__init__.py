"""`fastpath compare`: the paths, one run, side by side.

    paths       which there are
    parts       a run with several standard paths
    variants    set-ups that are compared with each other
    site        where the processes run: the standard path's namespaces, or here
    sandboxes   whose connections are whose: one microVM each
    scenario    the server, ztunnel, other proxies, the microVMs
    worlds      a scenario a variant
    selfcheck   each path goes where its name says
    measure     the rounds
    sections    what a round has
    calls       system calls a round trip
    report      (fastpath.report) what came out

Nothing is judged here and nothing is tuned: all paths meet the same ztunnel
process with the same options, on the same CPUs; of variants each has its own. Who
interrupts a run gets what was measured so far.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import platform
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from fastpath import files, stdio
from fastpath.commands.compare import (
    calls,
    cpu,
    facts,
    load,
    measure,
    parts,
    sandboxes,
    scenario,
    sections,
)
from fastpath.commands.compare.paths import DEFAULT, PATHS, chosen
from fastpath.commands.compare.progress import Progress
from fastpath.commands.compare.site import HostSite, NodeSite, PathSite
from fastpath.commands.compare.variants import PLAIN, check_backends
from fastpath.commands.compare.worlds import World, Worlds
from fastpath.commands.progress import build_image
from fastpath.datapath import catalogue, netns, pods
from fastpath.datapath.build import Built
from fastpath.errors import FastpathError
from fastpath.report import benchmarkfile, html, jsonfile, markdown, table
from fastpath.report.difference import Thresholds
from fastpath.report.figures import DEFAULT_GROUPS, Group
from fastpath.report.model import AT, PathResult, Report, Setting
from fastpath.scratch import scratch
from fastpath.vm import accel
from vhost_user.closing import hangup_is_ignored
from vhost_user.options import version

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence
    from pathlib import Path

    from fastpath.commands.compare.site import Site
    from fastpath.commands.compare.variants import Variant

IMAGE: Final = "base"
QUICK_ROUNDS: Final = 3
EXIT_NOT_MET: Final = 1
EXIT_FAILED: Final = 2
"""A variant or a path was not measured; the report says why."""

Geneve = Literal["auto", "kernel", "bpf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """What to compare, how long, and where to write it."""

    paths: tuple[str, ...] = DEFAULT
    whatever_can: bool = False
    """Of those only what can be measured here was asked for."""
    on_a_node: bool = False
    """There are namespaces, whether a path takes them or not."""
    variants: tuple[Variant, ...] = ()
    figures: tuple[Group, ...] = DEFAULT_GROUPS
    rate: int = 1000
    """Of the open loop, a second."""
    rounds: int = 20
    quick: bool = False
    geneve: Geneve = "auto"
    accel: str = "auto"
    qemu: str = "qemu-system-x86_64"
    budget_s: float = 180.0
    boot_timeout_s: float | None = None
    """None: what the accelerator takes at most."""
    json: Path | None = None
    html: Path | None = None
    markdown: Path | None = None
    benchmark: Path | None = None
    """As pytest-benchmark's JSON."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    check: bool = False
    """Exit status 1 unless every target is shown to be met; with variants, if one is
    shown to be worse than the first."""


def run(options: CompareOptions) -> int:
    """Compare, write the report's files, show it, and return the exit status.

    Raises:
        FastpathError: a right, a program or a kernel feature is missing, a
            file cannot be written, or a part failed; nothing is left running.
    """
    for file in (options.json, options.html, options.markdown, options.benchmark):
        _check_writable(file)
    check_backends(options.variants, options.paths)
    divided = parts.divide(options.paths)
    if len(divided) == 1:
        report, ended_by = _part(options)
    else:
        report, ended_by = _parts(options, divided)
    if report is None:
        return 128 + ended_by
    if options.json:
        jsonfile.write(report, options.json)
    if options.html:
        html.write(report, options.html)
    if options.markdown:
        markdown.write(report, options.markdown)
    if options.benchmark:
        benchmarkfile.write(report, options.benchmark)
    table.show(report, stdio.console())
    return 128 + ended_by if ended_by else _status(options, report)


def _parts(
    options: CompareOptions, divided: tuple[tuple[str, ...], ...]
) -> tuple[Report | None, int]:
    """Measure the parts of a run that has several.

    Raises:
        FastpathError: there are variants, too, or nothing can be measured.
    """
    if options.variants:
        raise FastpathError(
            f"--paths {','.join(options.paths)}",
            "variants are compared on one standard path at most",
            "make a run for each",
        )
    before = asyncio.run(load.Before.look())  # what we do ourselves is no news
    for name in options.paths:
        with contextlib.suppress(FastpathError):  # its part will say so
            _fetch([name])
    with contextlib.suppress(FastpathError):
        _take_rights(options)
    options = replace(options, on_a_node=netns.may_configure())

    def one(part: tuple[str, ...]) -> tuple[Report | None, int]:
        return _part(replace(options, paths=part), before)

    console = stdio.console(progress=True)
    return parts.measure(
        divided, one, lambda words: console.print(words, highlight=False, markup=False)
    )


def _part(
    options: CompareOptions, before: load.Before | None = None
) -> tuple[Report | None, int]:
    """Measure some paths; return the report, and the signal that ended it.

    Raises:
        FastpathError: as for `run`.
    """
    sandboxes.check_memory(options.paths, worlds=len(options.variants) or 1)
    _fetch(options.paths, [each.backend for each in options.variants if each.backend])
    if any(path.namespaces for path in chosen(options.paths)):
        _take_rights(options)
    with contextlib.ExitStack() as stack:
        worlds = [
            World(variant=each, plan=_plan(options, each, number, stack))
            for number, each in enumerate(options.variants or (PLAIN,))
        ]
        run = Run(options, worlds, before)
        ended_by = asyncio.run(_until_signal(run.measure()))
    if ended_by and not run.rounds.done:
        return None, ended_by
    return run.report(interrupted=bool(ended_by)), ended_by


def _fetch(names: Sequence[str], backends: Sequence[str] = ()) -> None:
    """Have what paths take from elsewhere, while there is a network.

    Raises:
        FastpathError: it can't be had.
    """
    sandboxes.check_extra(names, backends)
    for path in chosen(names):
        if path.standard:
            catalogue.fetch(path.name)


def _status(options: CompareOptions, report: Report) -> int:
    """Say it to CI: a variant that failed can't be found to be no worse."""
    if any(each.failure for each in report.variants):
        return EXIT_FAILED
    if report.left_out and not options.whatever_can:
        return EXIT_FAILED
    good = not report.worse if report.variants else report.all_met
    return EXIT_NOT_MET if options.check and not good else 0


def _plan(
    options: CompareOptions, variant: Variant, number: int, stack: contextlib.ExitStack
) -> scenario.Plan:
    """Make the plan of a variant's world; its namespaces and folder are there then."""
    image = build_image(variant.image or _image(options.paths))
    qemu = variant.qemu or options.qemu
    accelerator = accel.choose(options.accel, qemu=qemu)
    site = stack.enter_context(_site(options, number))
    folder = stack.enter_context(scratch())
    return scenario.Plan(
        site=site,
        sandboxes=sandboxes.plan(
            options.paths, site, folder, stack, backend=variant.backend or ""
        ),
        folder=folder,
        image=image,
        accel=accelerator,
        qemu=qemu,
        pinning=cpu.Pinning.choose(),
        boot_timeout_s=options.boot_timeout_s or accelerator.boot_timeout_s,
        variant=variant,
        apart=Group.RESTART in options.figures,
    )


def _take_rights(options: CompareOptions) -> None:
    """Become root of a user and network namespace of our own, if need be.

    There is no network in there, so images are built before.
    """
    if netns.may_configure():
        return
    if problem := netns.user_namespace_problem():
        raise FastpathError(
            "network namespaces for these --paths cannot be made here",
            f"not root, and {problem}",
            netns.USER_NAMESPACE_HINT,
        )
    own = _images(options.paths)
    for name in {each.image for each in options.variants or (PLAIN,)}:
        for image in {name} if name else own:
            build_image(image)
    netns.own_user_namespace([sys.executable, *sys.orig_argv[1:]])


def _images(paths: Sequence[str]) -> set[str]:
    """The guests' images of some paths, each of which has the fast path beside it."""
    return {IMAGE} | {path.image for path in chosen(paths) if path.image}


def _image(paths: Sequence[str]) -> str:
    """The one of a part, whose standard path may take another than the smallest."""
    return next(iter(_images(paths) - {IMAGE}), IMAGE)


@contextlib.contextmanager
def _site(options: CompareOptions, number: int) -> Iterator[Site]:
    paths = chosen(options.paths)
    if any(path.standard for path in paths):
        name = next(path.name for path in paths if path.standard)
        with Built(catalogue.possible(name, options.geneve)) as path:
            yield PathSite(path)
    elif options.on_a_node or any(path.namespaces for path in paths):
        with pods.Node() as node:
            yield NodeSite(node)
    else:
        yield HostSite(number)


async def _until_signal(work: Coroutine[object, object, None]) -> int:
    """Do the work; the first SIGINT, SIGTERM or SIGHUP cancels it.

    Returns:
        that signal's number; 0: there was none.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    ended_by: list[int] = []

    def end(signo: int) -> None:
        if not ended_by:  # what is to be taken down is, before anything else
            task.cancel()
        ended_by.append(signo)

    ending = [signal.SIGINT, signal.SIGTERM]
    ending += [] if hangup_is_ignored() else [signal.SIGHUP]
    for signo in ending:
        loop.add_signal_handler(signo, end, signo)
    try:
        await task
    except asyncio.CancelledError:
        if not ended_by:
            raise
    return ended_by[0] if ended_by else 0


class Run:
    """One run: what is measured, and what is known of it whenever it ends."""

    def __init__(
        self,
        options: CompareOptions,
        worlds: list[World],
        before: load.Before | None = None,
    ) -> None:
        self._before = before
        self.rounds = measure.Rounds()
        self._options = options
        self._worlds = worlds
        self._counted = calls.Counted()
        self._warnings: tuple[str, ...] = ()
        self._watch = load.Watch(())
        self._checks: tuple[str, ...] = ()
        self._clocks: set[str] = set()
        self._started = ""
        self._wanted = QUICK_ROUNDS if options.quick else options.rounds
        counts = measure.QUICK if options.quick else measure.FULL
        self._counts = replace(counts, rate=options.rate)

    async def measure(self) -> None:
        """Bring all up, measure, and take all down."""
        before = self._before or await load.Before.look()
        now = datetime.datetime.now(datetime.UTC)
        self._started = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        clocks = load.clocks()
        try:
            with Progress(self._wanted) as progress:
                await self._measure(progress)
        finally:
            slewed = load.slewed(clocks, load.clocks())
            self._warnings = (*before.warnings(load.Ticks.now()), *slewed)

    async def _measure(self, progress: Progress) -> None:
        options = self._options
        progress.say("starting ztunnel")
        async with Worlds(self._worlds, options.paths, progress.say) as worlds:
            self._checks = worlds.checks
            self._watch.threads = worlds.vcpus
            progress.say("warming up")
            try:
                await measure.measure(
                    worlds.contestants,
                    self.rounds,
                    sections=sections.chosen(options.figures),
                    rounds=self._wanted,
                    counts=self._counts,
                    budget_s=options.budget_s,
                    progress=progress.done,
                    watch=self._watch,
                    longer=not options.quick,
                    lose=worlds.lose,
                )
            finally:
                self._clocks = worlds.clocksources
            plan, bench = self._worlds[0].plan, self._worlds[0].bench
            if bench and plan.hands_on and not options.variants:
                self._counted = await calls.count(
                    bench, options.paths, cpu=plan.pinning.host, say=progress.say
                )

    def report(self, *, interrupted: bool) -> Report:
        """Report what was measured.

        Args:
            interrupted: somebody did not wait for all of it.
        """
        done = self.rounds.done
        disturbed = self._watch.warnings(done, done - self._wanted)
        left_out = cut(done, self._wanted, self._options.budget_s)
        if interrupted:
            left_out = (f"{done} of {self._wanted} rounds: interrupted",)
        worlds = self._worlds
        with_variants = bool(self._options.variants)
        return Report(
            setting=self._setting(self._warnings + disturbed + left_out),
            paths={name: self._result(name) for name in self.rounds.by_name},
            variants=tuple(w.facts(qemu_version(w.plan.qemu)) for w in worlds)
            if with_variants
            else (),
            thresholds=self._options.thresholds,
        )

    def _result(self, name: str) -> PathResult:
        path = name.partition(AT)[0]
        own = PATHS[path].facts
        if variant := name.partition(AT)[2]:
            world = next(w for w in self._worlds if w.variant.name == variant)
            if world.variant.backend:
                own = facts.VSOCK_RUST_VMM
            own = replace(own, title=f"{own.title} ({variant})")
        return PathResult(
            name=name,
            facts=own,
            rounds=tuple(self.rounds.by_name[name][: self.rounds.done]),
            calls=self._counted.by_path.get(name, {}),
        )

    def _setting(self, warnings: tuple[str, ...]) -> Setting:
        first = next(world for world in self._worlds if world.info)
        plan, info = first.plan, first.info
        assert info is not None
        return Setting(
            started=self._started,
            accel=plan.accel.kind,
            accel_reason=plan.accel.reason,
            geneve=plan.site.geneve,
            guest_kernel=info.kernel,
            clocksource=", ".join(sorted(self._clocks)),
            host_kernel=platform.release(),
            cpu_model=cpu.model(),
            cpus=cpu.count(),
            qemu=qemu_version(plan.qemu),
            command=shlex.join(["fastpath", *sys.argv[1:]]),
            version=version(),
            pinning=str(plan.pinning),
            cpu_note=cpu.note(),
            calls_note=self._counted.note,
            method=facts.method(
                self._counts,
                handed_on=plan.hands_on,
                sidecar=bool(plan.site.inside),
                disturbed=bool(
                    {Group.POLICY, Group.RESTART} & set(self._options.figures)
                ),
            ),
            checks=self._checks,
            warnings=warnings,
        )


def cut(done: int, rounds: int, budget_s: float) -> tuple[str, ...]:
    """Return the warning that rounds were left out, if any were."""
    if done >= rounds:
        return ()
    return (f"{done} of {rounds} rounds: --budget {budget_s:g} has no room for more",)


def qemu_version(qemu: str) -> str:
    """The first line that a QEMU says of itself."""
    done = subprocess.run(
        [qemu, "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    return done.stdout.partition("\n")[0] or qemu


def _check_writable(file: Path | None) -> None:
    """Find out before the run that a file cannot be written."""
    if file is None:
        return
    try:
        files.check_replaceable(file)
    except OSError as exc:
        raise FastpathError(f"cannot write {file}", f"{exc.strerror}") from exc
