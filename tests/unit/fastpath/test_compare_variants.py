"""Set-ups that are compared by turns: what is asked for, lost, judged and reported."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any, cast

import pytest

from fastpath.commands import compare, report
from fastpath.commands.compare import (
    load,
    measure,
    progress,
    scenario,
    sections,
    selfcheck,
    variants,
    worlds,
)
from fastpath.commands.compare.cpu import Pinning
from fastpath.commands.compare.measure import Bench, Rounds
from fastpath.commands.compare.sandboxes import Sandbox
from fastpath.commands.compare.site import HostSite
from fastpath.commands.compare.variants import check_backends, parse, parse_all
from fastpath.errors import FastpathError
from fastpath.image.images import Image
from fastpath.report import jsonfile
from fastpath.report.difference import Change, Thresholds
from fastpath.report.figures import Group, Round
from fastpath.report.model import Report, VariantFacts
from fastpath.vm.guest import GuestInfo
from fastpath.vm.spec import Accelerator

from . import report_sample as sample

BASE = VariantFacts(name="base", spec="")
PATCHED = VariantFacts(name="patched", spec="poll-us=0")


def test_a_variant_names_what_is_other_in_it(tmp_path):
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(b"MZ")
    own = parse(
        f"new:kernel={kernel},image=apps,guest.cmdline=tsi=agent foo=1,,2,poll-us=0,"
        "qemu=sh,ztunnel=true"
    )
    assert (own.name, own.kernel, own.image) == ("new", kernel, "apps")
    assert own.cmdline == "tsi=agent foo=1,2"
    assert own.poll_us == 0
    assert own.qemu is not None
    assert Path(own.qemu).name == "sh"
    assert own.ztunnel is not None
    assert Path(own.ztunnel).name == "true"
    assert parse("base") == variants.Variant(name="base")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "'' is no name"),
        ("a@b", "'a@b' is no name"),
        ("a/b:poll-us=1", "is no name"),
        ("a:kernal=x", "no key 'kernal'; there are kernel, image, guest.cmdline, "),
        ("a:poll-us", "'poll-us' has no value; hint: poll-us=VALUE"),
        ("a:poll-us=", "has no value"),
        ("a:poll-us=-1", "poll-us is '-1'"),
        ("a:poll-us=9999999", "not 0 to 1000000"),
        ("a:poll-us=1,poll-us=2", "poll-us is there twice"),
        ("a:kernel=/nowhere/bzImage", "/nowhere/bzImage: No such file"),
        ("a:kernel=/", "/: Is a directory"),
        ("a:qemu=/nowhere/qemu", "there is no such program"),
        ("a:backend=/nowhere/vsock", "there is no such program"),
        ("a:guest.cmdline=a\nb", "characters that don't print"),
        ("a:,", "no key ''"),
    ],
)
def test_a_variant_that_makes_no_sense_is_refused(value, why):
    with pytest.raises(FastpathError) as caught:
        parse(value)
    assert why in str(caught.value)


def test_one_variant_alone_and_two_of_a_name_are_refused():
    with pytest.raises(FastpathError, match="nothing to be compared with"):
        parse_all(["a"])
    with pytest.raises(FastpathError, match="two variants have this name"):
        parse_all(["a", "b", "a:poll-us=0"])
    assert parse_all([]) == ()


@pytest.mark.parametrize("names", [("tsi",), ("vsock", "tsi+unix")])
def test_only_raw_vsock_goes_by_another_back_end(names):
    given = parse_all(["a", "b:backend=true"])
    with pytest.raises(FastpathError, match=r"which also speaks TSI.*--paths vsock"):
        check_backends(given, names)
    check_backends(given, ("vsock",))
    check_backends(parse_all(["a", "b:poll-us=0"]), names)


@pytest.mark.parametrize("own", ["poll-us=0", "ztunnel=true"])
def test_what_is_ztunnels_is_refused_beside_another_back_end(own):
    given = parse_all(["a", f"b:backend=true,{own}"])
    with pytest.raises(FastpathError, match=f"{own.partition('=')[0]} is ztunnel's"):
        check_backends(given, ("vsock",))


def plan(folder, variant):
    folder.mkdir(exist_ok=True)
    sandbox = Sandbox(
        name="sandbox", paths=("tsi",), cid=3, ip="10.0.0.1", folder=folder
    )
    return scenario.Plan(
        site=HostSite(),
        sandboxes=(sandbox,),
        folder=folder,
        image=Image("base", folder / "kernel", folder / "initramfs", "6.1"),
        accel=Accelerator("tcg", "asked for"),
        qemu="qemu",
        pinning=Pinning(0, 0),
        boot_timeout_s=1.0,
        variant=variant,
    )


def test_a_variant_changes_the_machine_and_ztunnels_settings(tmp_path):
    own = plan(
        tmp_path / "a", variants.Variant(name="a", cmdline="tsi=agent", poll_us=0)
    )
    spec = scenario._spec(own, own.sandboxes[0])
    assert spec.append == "tsi=agent"
    assert scenario.ztunnel_config(own)["pollUs"] == 0
    plain = plan(tmp_path / "b", variants.PLAIN)
    assert "pollUs" not in scenario.ztunnel_config(plain)


@pytest.fixture
def no_guests(monkeypatch, tmp_path):
    """Worlds without anything in them; those called `bad` do not come up."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    taken_down = []

    @contextlib.asynccontextmanager
    async def running(plan, *, say):
        say("booting")
        console = plan.sandboxes[0].console
        console.write_text("Kernel panic: no init")
        if plan.variant.name.startswith("bad"):
            raise FastpathError("the guest", f"died (console log: {console})")
        try:
            yield (
                Bench(ways={}, ztunnel=cast("Any", None)),
                GuestInfo(2, "6.1", "tsc", "module"),
            )
        finally:
            taken_down.append(plan.variant.name)

    async def verify(bench, path, site, log):
        return f"{path}: fine"

    monkeypatch.setattr(scenario, "running", running)
    monkeypatch.setattr(selfcheck, "verify", verify)
    return taken_down


def made(tmp_path, *names):
    return [
        worlds.World(variant=own, plan=plan(tmp_path / name, own))
        for name, own in ((name, variants.Variant(name=name)) for name in names)
    ]


def test_a_variant_that_does_not_boot_leaves_the_others_and_its_console(
    no_guests, tmp_path
):
    said: list[str] = []
    all_worlds = made(tmp_path, "base", "bad", "good")

    async def main():
        async with worlds.Worlds(all_worlds, ("tsi",), said.append) as up:
            return [each.name for each in up.contestants], up.checks

    names, checks = asyncio.run(main())
    assert names == ["tsi@base", "tsi@good"]
    assert checks == ("base, tsi: fine", "good, tsi: fine")
    assert "bad: booting" in said
    failure = all_worlds[1].failure
    kept = Path(failure.partition("console log: ")[2].rstrip(")"))
    assert kept.read_text() == "Kernel panic: no init"
    assert tmp_path / "bad" not in kept.parents
    assert no_guests == ["good", "base"]


def test_a_run_of_which_nothing_boots_says_why(no_guests, tmp_path):
    async def main():
        async with worlds.Worlds(made(tmp_path, "bad1", "bad2"), ("tsi",), print):
            pass

    with pytest.raises(
        FastpathError, match="no variant is left: bad1: the guest: died"
    ):
        asyncio.run(main())


def test_without_variants_what_fails_is_the_error(no_guests, tmp_path):
    async def main():
        async with worlds.Worlds(made(tmp_path, "bad"), ("tsi",), print):
            pass

    with pytest.raises(FastpathError, match=r"^the guest: died"):
        asyncio.run(main())


def test_a_variant_that_breaks_later_is_left_out_and_the_others_stay_paired(
    no_guests, tmp_path, monkeypatch
):
    calls = []

    async def section(bench, path, counts):
        calls.append(bench)
        if len(calls) == 6:  # warm-up: 2, round 1: 2, round 2: base, then this
            raise FastpathError("the guest", "panicked")
        return Round(values={"up": float(len(calls))})

    all_worlds = made(tmp_path, "base", "breaks")
    rounds = Rounds()

    async def main():
        async with worlds.Worlds(all_worlds, ("tsi",), print) as up:
            await measure.measure(
                up.contestants,
                rounds,
                sections=[section],
                rounds=4,
                counts=measure.QUICK,
                budget_s=60,
                progress=lambda _done, _wanted, _took_s: None,
                watch=load.Watch(()),
                longer=False,
                lose=up.lose,
            )

    asyncio.run(main())
    (name,) = rounds.by_name
    lost = "breaks" if name == "tsi@base" else "base"
    assert rounds.done == 4
    (failed,) = (each for each in all_worlds if each.failure)
    assert failed.variant.name == lost
    assert failed.failure.startswith("the guest: panicked")


def test_rounds_that_are_not_whole_do_not_count():
    rounds = Rounds()
    assert rounds.done == 0
    rounds.add({"a": Round(), "b": Round()})
    rounds.add({"a": Round()})
    assert rounds.done == 1
    rounds.forget({"b"})
    assert rounds.done == 2


def test_who_interrupts_gets_what_was_measured(no_guests, tmp_path, monkeypatch):
    async def section(bench, path, counts):
        await asyncio.sleep(0)
        return Round(values={"up": 1.0, "down": 1.0})

    monkeypatch.setattr(sections, "SECTIONS", ((Group.BULK, section),))
    own = compare.Run(
        compare.CompareOptions(paths=("tsi",), figures=(Group.BULK,), rounds=1000),
        made(tmp_path, ""),
    )

    def done(self, number, wanted, took_s):
        if number == 7:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.Progress, "done", done)
    monkeypatch.setattr(compare, "qemu_version", lambda qemu: qemu)
    assert asyncio.run(compare._until_signal(own.measure())) == signal.SIGINT
    found = own.report(interrupted=True)
    assert found.rounds >= 7
    assert f"{found.rounds} of 1000 rounds: interrupted" in found.warnings
    assert json.dumps(jsonfile.to_dict(found))


def two(ratio, count=20, variants=(BASE, PATCHED), seed=2):
    return Report(
        setting=sample.SETTING,
        paths={
            "tsi@base": sample.path("tsi@base", 1.0, count=count, seed=1),
            "tsi@patched": sample.path("tsi@patched", ratio, count=count, seed=seed),
        },
        variants=variants,
    )


def test_a_variant_is_judged_by_what_is_better_for_each_figure():
    slower = two(1.2)
    found = {
        each.metric.key: each for each in slower.differences["tsi@patched/tsi@base"]
    }
    assert {each.verdict for each in found.values()} == {Change.WORSE}
    assert found["up"].ratio == pytest.approx(1 / 1.2)
    assert found["connect"].ratio == pytest.approx(1.2, rel=0.1)
    assert slower.worse
    faster = two(0.8)
    assert {each.verdict for each in faster.differences["tsi@patched/tsi@base"]} == {
        Change.BETTER
    }
    assert not faster.worse


def test_a_change_below_the_threshold_and_one_of_few_rounds_are_none():
    small = two(1.02, seed=1)
    assert not small.worse
    few = two(1.5, count=6)
    (each, *_) = few.differences["tsi@patched/tsi@base"]
    assert each.verdict is Change.UNKNOWN


def test_only_paths_of_one_variant_stand_side_by_side():
    names = ("tsi@base", "plain@base", "tsi@patched", "plain@patched")
    own = Report(
        setting=sample.SETTING,
        paths={name: sample.path(name, 1.0, seed=i) for i, name in enumerate(names)},
        variants=(BASE, PATCHED),
    )
    assert list(own.verdicts) == ["tsi@base/plain@base", "tsi@patched/plain@patched"]
    assert list(own.differences) == [
        "tsi@patched/tsi@base",
        "plain@patched/plain@base",
    ]


@pytest.mark.parametrize(
    ("own", "check", "status"),
    [
        (two(1.2), True, 1),
        (two(1.2), False, 0),
        (two(0.8), True, 0),
        (
            two(0.8, variants=(BASE, VariantFacts(name="x", spec="", failure="died"))),
            False,
            2,
        ),
    ],
    ids=["worse", "unchecked", "better", "failed"],
)
def test_ci_hears_of_it_by_the_exit_status(own, check, status):
    assert compare._status(compare.CompareOptions(check=check), own) == status


def test_a_variant_that_failed_is_said_everywhere():
    from fastpath.report import html

    from .test_report_show import _shown

    own = two(1.0, variants=(BASE, VariantFacts(name="x", spec="", failure="it died")))
    assert "variant x was not measured: it died" in _shown(own)
    assert "variant x: not measured: it died" in html.render(own)
    assert jsonfile.to_dict(own)["variants"][1]["failure"] == "it died"


def written(own, file):
    jsonfile.write(own, file)
    return file


def test_two_files_are_compared_and_said_to_be_weaker(tmp_path, capsys):
    first = written(sample.report("tsi"), tmp_path / "a.json")
    own = Report(
        setting=sample.SETTING, paths={"tsi": sample.path("tsi", 1.5, count=20, seed=3)}
    )
    second = written(own, tmp_path / "b.json")
    assert report.diff(first, second, Thresholds(), check=True) == 1
    text = capsys.readouterr().out
    assert "compare --variant measures both by turns" in " ".join(text.split())
    assert "tsi, of b.json / a.json: 20 and 6 rounds" in text
    assert "worse" in text
    assert report.diff(first, first, Thresholds(), check=True) == 0


def test_files_that_have_nothing_in_common_are_refused(tmp_path):
    first = written(sample.report("tsi"), tmp_path / "a.json")
    second = written(sample.report("plain"), tmp_path / "b.json")
    with pytest.raises(
        FastpathError, match=r"no figure is in both.*has tsi, .*has plain"
    ):
        report.diff(first, second, Thresholds(), check=False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "has version None"),
        ("{}", "has version None"),
        ('{"version": 1}', "has version 1, and this program reads version 2"),
        ('{"version": 2}', "is no report of fastpath compare"),
        ('{"version": 2, "setting": [], "samples": 1}', "is no report"),
    ],
)
def test_a_file_that_is_no_report_is_refused(text, why, tmp_path):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(FastpathError, match=why):
        jsonfile.read(file)


@pytest.mark.parametrize("value", ["0", "-1.0", "NaN", "Infinity", '"x"', "null"])
def test_a_figure_that_has_no_ratio_is_refused(value, tmp_path):
    file = written(sample.report("tsi"), tmp_path / "a.json")
    loaded = json.loads(file.read_text())
    loaded["samples"]["tsi"][0]["values"]["up"] = "HERE"
    file.write_text(json.dumps(loaded).replace('"HERE"', value))
    with pytest.raises(FastpathError, match="is no report"):
        jsonfile.read(file)


def test_a_count_of_0_is_read_and_has_no_ratio(tmp_path):
    """None failed on either side: that is nothing to divide by."""
    file = written(sample.report("tsi"), tmp_path / "a.json")
    loaded = json.loads(file.read_text())
    for each in loaded["samples"]["tsi"]:
        each["values"] |= {"policy_failed": 0.0, "policy_gap": 5.0}
    file.write_text(json.dumps(loaded))
    run = jsonfile.read(file)
    (found,) = report.differences(run, run, Thresholds()).values()
    keys = {each.metric.key for each in found}
    assert "policy_gap" in keys
    assert "policy_failed" not in keys


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FastpathError, match=r"cannot read .*nothing.json: No such"):
        jsonfile.read(tmp_path / "nothing.json")


def test_what_was_written_is_read_again(tmp_path):
    own = sample.report()
    run = jsonfile.read(written(own, tmp_path / "a.json"))
    assert set(run.paths) == set(own.paths)
    assert run.paths["tsi"][0].times_ns == own.paths["tsi"].rounds[0].times_ns
    assert run.accel == "tcg"


@pytest.mark.parametrize(("longer", "done"), [(True, 7), (False, 4)])
def test_a_run_goes_on_longer_for_rounds_that_were_disturbed(longer, done):
    """Three of them; at most twice as long."""

    class Disturbed(load.Watch):
        def begin(self):
            pass

        def end(self):
            self.disturbed += 1
            return self.disturbed <= 3

    async def section(bench, path, counts):
        return Round(values={"up": 1.0})

    rounds = Rounds()
    bench = Bench(ways={}, ztunnel=cast("Any", None))
    asyncio.run(
        measure.measure(
            [measure.Contestant("tsi", bench, "tsi")],
            rounds,
            sections=[section],
            rounds=4,
            counts=measure.QUICK,
            budget_s=60,
            progress=lambda _done, _wanted, _took_s: None,
            watch=Disturbed(()),
            longer=longer,
            lose=cast("Any", None),
        )
    )
    assert rounds.done == done
