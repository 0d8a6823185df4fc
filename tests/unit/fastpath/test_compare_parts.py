"""Runs with several standard paths: divided, and put together again."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import jsonschema
import pytest

from fastpath import stdio
from fastpath.commands import compare
from fastpath.commands.compare import parts, paths
from fastpath.errors import FastpathError
from fastpath.report import html, jsonfile, markdown, table
from fastpath.report.model import LeftOut, Report

from . import report_sample as sample

SCHEMA = json.loads(
    (Path(__file__).parents[3] / "docs/compare.schema.json").read_text()
)
NAMES = ("tsi", "plain", "tsi+unix", "macvtap", "tsi+pod", "vsock")


def one_part(part):
    """A report whose fast path is slower in each part that comes."""
    made = {
        name: sample.path(name, 1.0 if name == "tsi" else 2.0, seed=len(part))
        for name in part
    }
    setting = dataclasses.replace(sample.SETTING, checks=(f"{part[-1]}: seen",))
    return Report(setting=setting, paths=made)


def measured(names, measure_one):
    said: list[str] = []
    return *parts.measure(parts.divide(names), measure_one, said.append), said


def test_each_standard_path_is_beside_the_fast_path_and_the_others_by_their_rights():
    assert parts.divide(NAMES) == (
        ("tsi", "plain"),
        ("tsi", "macvtap"),
        ("tsi", "tsi+pod"),
        ("tsi", "tsi+unix", "vsock"),
    )


@pytest.mark.parametrize("names", [("plain", "tsi+unix"), ("tsi",), ("tsi+pod",)])
def test_one_standard_path_is_no_reason_to_divide(names):
    assert parts.divide(names) == (names,)


def test_several_without_the_fast_path_are_refused():
    with pytest.raises(FastpathError, match="name tsi, too"):
        parts.divide(("plain", "macvtap"))


def test_all_is_each_path_there_is():
    assert paths.parse("all") == tuple(paths.PATHS)


def test_a_ratio_is_of_one_parts_rounds():
    made = [one_part(part) for part in parts.divide(NAMES)]
    for number, report in enumerate(made):
        fast = sample.path("tsi", 1.0 + number, seed=1)
        report.paths["tsi"] = fast
    whole = parts.together(made, NAMES, ())
    assert tuple(whole.paths) == NAMES
    for name, number in (("plain", 0), ("macvtap", 1)):
        assert whole.paths[name].beside is made[number].paths["tsi"]
        (connect, *_), alone = whole.verdicts[f"tsi/{name}"], made[number].verdicts
        assert connect.ratio == alone[f"tsi/{name}"][0].ratio
    own = whole.verdicts["tsi+unix/tsi"][0].ratio
    assert own == made[3].verdicts["tsi+unix/tsi"][0].ratio
    assert len(whole.setting.checks) == 4


def test_a_part_that_fails_is_left_out_with_its_hint_and_the_others_go_on():
    def measure_one(part):
        if "macvtap" in part:
            raise FastpathError("this kernel lacks it", "unsupported", "modprobe it")
        return one_part(part), 0

    report, ended_by, said = measured(NAMES, measure_one)
    assert report
    assert ended_by == 0
    assert "macvtap" not in report.paths
    (left,) = report.left_out
    assert left == LeftOut(
        name="macvtap", why="this kernel lacks it: unsupported", hint="modprobe it"
    )
    words = "macvtap was left out: this kernel lacks it: unsupported (modprobe it)"
    assert words in html.render(report)
    assert f"**Warning:** {words}" in markdown.render(report).replace("\\", "")
    assert said[1] == "part 2 of 4: macvtap"
    loaded = json.loads(json.dumps(jsonfile.to_dict(report)))
    jsonschema.Draft202012Validator(SCHEMA).validate(loaded)
    assert loaded["left_out"][0]["hint"] == "modprobe it"
    assert loaded["samples"]["tsi beside plain"]


def test_paths_that_lack_the_same_are_named_together():
    why = "network namespaces for these --paths cannot be made here"

    def measure_one(part):
        if "tsi+unix" not in part:
            raise FastpathError(why, "not root", "sudo")
        return one_part(part), 0

    report, _, said = measured(NAMES, measure_one)
    assert report
    assert report.left_out_lines == (
        f"plain, macvtap, tsi+pod were left out: {why}: not root (sudo)",
    )
    assert said[:4] == [
        "part 1 of 4: plain",
        f"left out: {why}: not root; hint: sudo",
        "part 2 of 4: macvtap",
        "left out: as that one",
    ]


def test_a_part_takes_the_image_of_its_standard_path():
    assert compare._image(("tsi", "sidecar")) == "sidecar"
    assert compare._image(("tsi", "plain")) == "base"
    assert compare._images(("tsi", "sidecar", "plain")) == {"base", "sidecar"}


def test_clock_sources_of_the_parts_are_named_once():
    reports = []
    for name, clock in (("plain", "tsc"), ("macvtap", "tsc, tsc-early")):
        report = one_part(("tsi", name))
        setting = dataclasses.replace(report.setting, clocksource=clock)
        reports.append(dataclasses.replace(report, setting=setting))
    whole = parts.together(reports, ("tsi", "plain", "macvtap"), ())
    assert whole.setting.clocksource == "tsc, tsc-early"


def test_who_interrupts_gets_the_parts_that_are_done(capsys):
    def measure_one(part):
        return (one_part(part), 0) if "plain" in part else (None, signal.SIGINT)

    report, ended_by, said = measured(NAMES, measure_one)
    assert report
    assert ended_by == signal.SIGINT
    assert tuple(report.paths) == ("tsi", "plain")
    assert len(said) == 2
    table.show(report, stdio.console())
    assert "tsi/plain" in capsys.readouterr().out


def test_without_anything_measured_the_first_reason_is_the_runs():
    def measure_one(part):
        raise FastpathError(f"no {part[-1]}", "why", "hint")

    with pytest.raises(FastpathError, match="no plain: why; hint: hint"):
        measured(NAMES, measure_one)
    assert measured(NAMES, lambda _: (None, signal.SIGTERM))[:2] == (
        None,
        signal.SIGTERM,
    )
