"""`fastpath compare`: the paths, one run, side by side.

    paths       which there are
    site        where the processes run: the standard path's namespaces, or here
    sandboxes   whose connections are whose: one microVM each
    scenario    the server, ztunnel, other proxies, the microVMs
    selfcheck   each path goes where its name says
    measure     the rounds
    calls       system calls a round trip
    report      (fastpath.report) what came out

Nothing is judged here and nothing is tuned: all paths meet the same ztunnel
process with the same options, on the same CPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, cast

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from fastpath import files, stdio
from fastpath.commands.compare import (
    calls,
    cpu,
    facts,
    load,
    measure,
    sandboxes,
    scenario,
    selfcheck,
)
from fastpath.commands.compare.paths import DEFAULT, PATHS, chosen
from fastpath.commands.compare.site import HostSite, NodeSite, PathSite
from fastpath.commands.progress import build_image
from fastpath.datapath import catalogue, netns, pods
from fastpath.datapath.build import Built
from fastpath.errors import FastpathError
from fastpath.report import html, jsonfile, table
from fastpath.report.model import PathResult, Report, Setting
from fastpath.scratch import scratch
from fastpath.vm import accel
from vhost_user.closing import hangup_is_ignored

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence
    from pathlib import Path

    from fastpath.commands.compare.site import Site
    from fastpath.vm.guest import GuestInfo

IMAGE: Final = "base"
QUICK_ROUNDS: Final = 3
EXIT_NOT_MET: Final = 1

Geneve = Literal["auto", "kernel", "bpf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """What to compare, how long, and where to write it."""

    paths: tuple[str, ...] = DEFAULT
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
    check: bool = False
    """Exit status 1 unless every target is shown to be met."""


def parse_geneve(value: str) -> Geneve:
    """Read the kind of Geneve device.

    Raises:
        FastpathError: there is no such kind.
    """
    if value not in ("auto", "kernel", "bpf"):
        raise FastpathError(f"--geneve {value}", "must be auto, kernel or bpf")
    return cast("Geneve", value)


def run(options: CompareOptions) -> int:
    """Compare, write the report's files, show it, and return the exit status.

    Raises:
        FastpathError: a right, a program or a kernel feature is missing, a
            file cannot be written, or a part failed; nothing is left running.
    """
    for file in (options.json, options.html):
        _check_writable(file)
    sandboxes.check_memory(options.paths)
    sandboxes.check_extra(options.paths)
    for path in chosen(options.paths):
        if path.standard:
            catalogue.fetch(path.name)
    if any(path.namespaces for path in chosen(options.paths)):
        _take_rights()
    image = build_image(IMAGE)
    accelerator = accel.choose(options.accel, qemu=options.qemu)
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(_site(options))
        folder = stack.enter_context(scratch())
        plan = scenario.Plan(
            site=site,
            sandboxes=sandboxes.plan(options.paths, site, folder, stack),
            folder=folder,
            image=image,
            accel=accelerator,
            qemu=options.qemu,
            pinning=cpu.Pinning.choose(),
            boot_timeout_s=options.boot_timeout_s or accelerator.boot_timeout_s,
        )
        report = asyncio.run(_until_signal(_compare(options, plan)))
    if options.json:
        jsonfile.write(report, options.json)
    if options.html:
        html.write(report, options.html)
    table.show(report, stdio.console())
    return EXIT_NOT_MET if options.check and not report.all_met else 0


def _take_rights() -> None:
    """Become root of a user and network namespace of our own, if need be.

    There is no network in there, so the image is built before.
    """
    if netns.may_configure():
        return
    if problem := netns.user_namespace_problem():
        raise FastpathError(
            "network namespaces for these --paths cannot be made here",
            f"not root, and {problem}",
            netns.USER_NAMESPACE_HINT,
        )
    build_image(IMAGE)
    netns.own_user_namespace([sys.executable, *sys.orig_argv[1:]])


@contextlib.contextmanager
def _site(options: CompareOptions) -> Iterator[Site]:
    paths = chosen(options.paths)
    if any(path.standard for path in paths):
        name = next(path.name for path in paths if path.standard)
        with Built(catalogue.possible(name, options.geneve)) as path:
            yield PathSite(path)
    elif any(path.namespaces for path in paths):
        with pods.Node() as node:
            yield NodeSite(node)
    else:
        yield HostSite()


async def _until_signal(work: Coroutine[object, object, Report]) -> Report:
    """Do the work; SIGTERM and SIGHUP cancel it, as asyncio has it for SIGINT."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    ended_by: list[int] = []

    def end(signo: int) -> None:
        ended_by.append(signo)
        task.cancel()

    ending = (
        [signal.SIGTERM] if hangup_is_ignored() else [signal.SIGTERM, signal.SIGHUP]
    )
    for signo in ending:
        loop.add_signal_handler(signo, end, signo)
    try:
        return await task
    except asyncio.CancelledError:
        if ended_by:
            sys.exit(128 + ended_by[0])
        raise


async def _compare(options: CompareOptions, plan: scenario.Plan) -> Report:
    before = await load.Before.look()
    started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    rounds = QUICK_ROUNDS if options.quick else options.rounds
    counts = measure.QUICK if options.quick else measure.FULL
    with _progress() as progress:
        bar = progress.add_task("starting ztunnel", total=rounds)

        def say(words: str) -> None:
            progress.update(bar, description=words)

        async with scenario.running(plan, say=say) as (bench, info):
            say("checking the paths")
            checks = await _check(bench, options.paths, plan)
            say("measuring, rounds done")
            measured = await measure.measure(
                bench,
                options.paths,
                rounds=rounds,
                counts=counts,
                budget_s=options.budget_s,
                progress=lambda done: progress.update(bar, completed=done),
            )
            counted = calls.Counted()
            if plan.hands_on:
                cpu_id = plan.pinning.host
                counted = await calls.count(bench, options.paths, cpu=cpu_id, say=say)
    done = min(len(figures) for figures in measured.values())
    warnings = before.warnings(load.Ticks.now()) + cut(done, rounds, options.budget_s)
    setting = _setting(plan, bench, info, started, counts, checks, warnings)
    return Report(
        setting=replace(setting, calls_note=counted.note),
        paths={
            name: PathResult(
                name=name,
                facts=PATHS[name].facts,
                rounds=figures,
                calls=counted.by_path.get(name, {}),
            )
            for name, figures in measured.items()
        },
    )


async def _check(
    bench: measure.Bench, paths: Sequence[str], plan: scenario.Plan
) -> tuple[str, ...]:
    found = [
        await selfcheck.verify(bench, name, plan.site, plan.access_log)
        for name in paths
    ]
    return tuple(found)


def cut(done: int, rounds: int, budget_s: float) -> tuple[str, ...]:
    """Return the warning that rounds were left out, if any were."""
    if done == rounds:
        return ()
    return (f"{done} of {rounds} rounds: --budget {budget_s:g} has no room for more",)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stdio.console(progress=True),
        transient=True,
    )


def _setting(
    plan: scenario.Plan,
    bench: measure.Bench,
    info: GuestInfo,
    started: str,
    counts: measure.Counts,
    checks: tuple[str, ...],
    warnings: tuple[str, ...],
) -> Setting:
    return Setting(
        started=started,
        accel=plan.accel.kind,
        accel_reason=plan.accel.reason,
        geneve=plan.site.geneve,
        guest_kernel=info.kernel,
        clocksource=", ".join(sorted(bench.clocksources)),
        host_kernel=platform.release(),
        cpu_model=cpu.model(),
        cpus=cpu.count(),
        qemu=_qemu_version(plan.qemu),
        pinning=str(plan.pinning),
        cpu_note=cpu.note(),
        method=facts.method(counts, handed_on=plan.hands_on),
        checks=checks,
        warnings=warnings,
    )


def _qemu_version(qemu: str) -> str:
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
