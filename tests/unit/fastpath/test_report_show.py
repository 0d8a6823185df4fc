"""The report as JSON, on the terminal and as a page."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import re
import xml.etree.ElementTree as ET
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console

from fastpath.report import figures, html, jsonfile, markdown, model, stats, table

from . import report_sample as sample

ROOT = Path(__file__).parents[3]

# Written out from design.md section 4: a key stands for itself, a number for
# any number, a string for any string, "*" for the names of paths or pairs.
SUMMARY = {"p50": 0, "p99": 0, "min": 0, "n": 0}
RATIO = {"median": 0, "ci95": [0, 0]}
CONTRACT = {
    "accel": "tcg",
    "geneve": "bpf",
    "guest_kernel": "...",
    "rounds": 10,
    "paths": {
        "*": {
            "connect_us": SUMMARY,
            "rtt_64_us": SUMMARY,
            "up_mb_per_s": 0,
            "down_mb_per_s": 0,
            "host_cpu_us_per_rtt": 0,
            "through": {"connect_us": SUMMARY, "rtt_64_us": SUMMARY},
        }
    },
    "ratios": {
        "*": {
            "connect": RATIO,
            "rtt_64": RATIO,
            "up": RATIO,
            "down": RATIO,
            "through_rtt_64": RATIO,
        }
    },
}


def assert_keeps(value, contract, where="$"):
    if isinstance(contract, dict):
        assert isinstance(value, dict), where
        if "*" in contract:
            assert value, f"{where} is empty"
            contract = dict.fromkeys(value, contract["*"])
        for key, inner in contract.items():
            assert key in value, f"{where}.{key}"
            assert_keeps(value[key], inner, f"{where}.{key}")
    elif isinstance(contract, list):
        assert isinstance(value, list), where
        assert len(value) == len(contract), where
    elif isinstance(contract, int):
        assert isinstance(value, (int, float)), where
    else:
        assert isinstance(value, str), where


def test_json_keeps_the_contract(tmp_path):
    file = tmp_path / "report.json"
    jsonfile.write(sample.report(), file)
    loaded = json.loads(file.read_text())
    assert_keeps(loaded, CONTRACT)
    assert set(loaded["paths"]) == {"tsi", "inpod-l3forwarding"}
    assert set(loaded["ratios"]) == {"tsi/inpod-l3forwarding"}
    assert loaded["rounds"] == 6


def test_json_figures_are_in_the_units_of_their_names():
    loaded = jsonfile.to_dict(sample.report())
    tsi = loaded["paths"]["tsi"]
    assert tsi["up_mb_per_s"] == 90.0
    assert tsi["host_cpu_us_per_rtt"] == 20.0
    assert 150 < tsi["connect_us"]["p50"] < 250
    assert tsi["connect_us"]["n"] == 300
    assert loaded["ratios"]["tsi/inpod-l3forwarding"]["up"]["median"] == 2.0


def test_one_path_alone_has_figures_and_no_ratios():
    report = sample.report("ambient-geneve")
    assert jsonfile.to_dict(report)["ratios"] == {}
    assert report.all_met
    assert "ambient-geneve" in html.render(report)


def test_the_fast_path_is_compared_with_each_other_path():
    report = sample.report("ambient-geneve", "tsi", "plain")
    assert list(report.verdicts) == ["tsi/ambient-geneve", "tsi/plain"]


@pytest.mark.parametrize(
    ("key", "ratio", "met"),
    [
        ("connect", 0.50, True),
        ("connect", 0.51, False),
        ("rtt_64", 0.65, True),
        ("rtt_64", 0.66, False),
        ("up", 1.50, True),
        ("up", 1.49, False),
        ("host_cpu", 0.60, True),
        ("host_cpu", 0.61, False),
        ("down", 0.99, False),
        ("through_rtt_64", 9.0, True),
    ],
)
def test_a_target_is_met_up_to_its_bound(key, ratio, met):
    metric = next(m for m in figures.METRICS if m.key == key)
    assert metric.met(ratio) is met


def ratio(median, low, high):
    return stats.Ratio(median, stats.Interval(low, high), 20)


RTT = next(m for m in figures.METRICS if m.key == "rtt_64")  # at most 0.65x


@pytest.mark.parametrize(
    ("ratio", "outcome"),
    [
        pytest.param(ratio(0.5, 0.4, 0.65), model.Outcome.MET, id="inside"),
        pytest.param(ratio(0.8, 0.66, 0.9), model.Outcome.MISSED, id="outside"),
        pytest.param(
            ratio(0.6, 0.5, 0.66), model.Outcome.NOT_SHOWN, id="median-inside"
        ),
        pytest.param(
            ratio(0.8, 0.65, 0.9), model.Outcome.NOT_SHOWN, id="median-outside"
        ),
        pytest.param(stats.Ratio(0.1, None, 5), model.Outcome.NOT_SHOWN, id="few"),
    ],
)
def test_a_target_is_met_when_the_whole_interval_says_so(ratio, outcome):
    verdict = model.Verdict(RTT, ratio)
    assert verdict.outcome is outcome
    assert verdict.met is (outcome is model.Outcome.MET)


def few_rounds():
    paths = {
        "tsi": sample.path("tsi", 1.0, count=3),
        "inpod-l3forwarding": sample.path("inpod-l3forwarding", 9.0, count=3),
    }
    setting = dataclasses.replace(sample.SETTING, warnings=("5 < 6 & loaded",))
    return model.Report(setting=setting, paths=paths)


def test_few_rounds_show_no_interval_and_no_verdict():
    report = few_rounds()
    assert not report.all_met
    text = re.sub(r"[│┃]", "|", _shown(report))
    assert re.search(r"\| +none \| at most 0\.65x +\| not shown", text)
    (ratios,) = jsonfile.to_dict(report)["ratios"].values()
    assert (ratios["rtt_64"]["ci95"], ratios["rtt_64"]["met"]) == (None, None)
    page = html.render(report)
    assert "no interval from 3 rounds" in page
    ET.fromstring(page.removeprefix("<!DOCTYPE html>"))


def test_what_makes_the_figures_less_is_said_before_them():
    report = few_rounds()
    loaded, few = jsonfile.to_dict(report)["warnings"]
    assert loaded == "5 < 6 & loaded"
    assert few.startswith("3 rounds: too few for an interval")
    text = _shown(report)
    assert text.index("warning: 5 < 6 & loaded") < text.index("Sandbox to ztunnel")
    page = html.render(report)
    assert '<p class="warning">5 &lt; 6 &amp; loaded</p>' in page
    assert jsonfile.to_dict(sample.report())["warnings"] == []


@pytest.mark.parametrize(
    ("scale", "kind"), [(1.0, "met"), (9.0, "missed")], ids=["met", "missed"]
)
def test_the_picture_and_the_cards_have_the_colour_of_the_verdict(scale, kind):
    paths = {
        "tsi": sample.path("tsi", scale),
        "inpod-l3forwarding": sample.path("inpod-l3forwarding", 3.0),
    }
    page = html.render(model.Report(setting=sample.SETTING, paths=paths))
    assert f'class="interval {kind}"' in page
    for rule in (f"svg .interval.{kind} {{ stroke", f"svg .point.{kind} {{ fill"):
        assert page.count(rule) == 1


@pytest.mark.parametrize(("count", "pictures"), [(1, 1), (8, 1), (9, 2), (17, 3)])
def test_each_curve_has_a_colour_of_its_own_beside_the_first_path(count, pictures):
    names = ["tsi", *(f"plain{i}" for i in range(count - 1))]
    paths = {name: sample.path(name, 2.0) for name in names}
    page = html.render(model.Report(setting=sample.SETTING, paths=paths))
    drawn = re.findall(r'<svg[^>]*class="ecdf".*?</svg>', page)
    assert len(drawn) == pictures * len(html.CHARTS)
    for picture in drawn:
        curves = re.findall(r'class="curve path(\d+)"', picture)
        assert curves == [str(i) for i in range(len(curves))]
        assert len(curves) <= html.COLOURS
        assert "<title>tsi: p50" in picture
    seen = set(re.findall(r"<title>(\S+): p50", "".join(drawn)))
    assert seen == set(names)


def test_each_standard_path_has_its_own_targets():
    report = sample.report("tsi", "ambient-geneve", "inpod-l3forwarding", "plain")
    bounds = {
        pair: [v.metric.bound for v in verdicts if v.metric.bound is not None]
        for pair, verdicts in report.standard.items()
    }
    assert bounds == {
        "tsi/ambient-geneve": [0.8, 0.7, 1.0, 1.0],
        "tsi/inpod-l3forwarding": [0.5, 0.65, 1.5, 1.0, 0.6],
        "tsi/plain": [],
    }
    assert jsonfile.to_dict(report)["targets"]["tsi/inpod-l3forwarding"]["up"] == {
        "at_least": 1.5
    }


def test_the_targets_of_the_measurements_page_are_the_reports():
    text = (ROOT / "docs/measurements.md").read_text()
    of = {"connect, us": "connect", "64 B round trip, us": "rtt_64"}
    of |= {"bulk up, MB/s": "up", "bulk down, MB/s": "down"}
    part = text.partition("## Fast path against standard path")[2].partition("\n## ")[0]
    seen = 0
    standard = ""
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0] == "sandbox to ztunnel":
            standard = cells[2].partition(" ")[0].strip("`")
        if cells and (key := of.get(cells[0])):
            metric = next(m for m in figures.metrics(standard) if m.key == key)
            assert (
                cells[4]
                == f"{'>=' if metric.more_is_better else '<='} {metric.bound:.2f}"
            )
            seen += 1
    assert seen >= 8


def test_the_table_says_plainly_what_was_not_reached():
    slow = sample.path("tsi", 3.0)
    report = model.Report(
        setting=sample.SETTING,
        paths={
            "tsi": slow,
            "inpod-l3forwarding": sample.path("inpod-l3forwarding", 2.0),
        },
    )
    text = _shown(report)
    assert "at most 0.65x  | not met" in re.sub(r"[│┃]", "|", text)
    assert not report.all_met


def test_the_table_names_the_accelerator_the_tunnel_and_the_guest():
    text = _shown(sample.report())
    for words in ("tcg (asked for)", "tc-eBPF", "6.1.0-26", "softirq is not counted"):
        assert words in text


def test_the_page_is_well_formed_and_needs_nothing_else():
    page = html.render(sample.report())
    root = ET.fromstring(page.removeprefix("<!DOCTYPE html>"))
    pictures = root.findall(".//{http://www.w3.org/2000/svg}svg")
    assert len(pictures) == 6  # ratios twice: for a phone, too
    assert not re.search(r' src=| href="(?!data:)|url\(|@import|<script', page)


def test_the_page_has_the_json_file_to_download():
    own = sample.report()
    found = re.findall(
        r'download="([^"]+)" href="data:[^,]+,([^"]+)"', html.render(own)
    )
    ((name, packed),) = found
    assert name == "compare.json.gz"
    loaded = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert loaded == json.loads(json.dumps(jsonfile.to_dict(own)))


def test_a_report_has_the_command_to_repeat_it_and_the_version():
    own = sample.report()
    command = "fastpath compare --paths 'tsi, plain'"
    for text in (_shown(own), unescape(html.render(own)), markdown.render(own)):
        assert command in text
        assert "0.1.0" in text
    assert jsonfile.to_dict(own)["setting"]["command"] == command


def test_the_page_escapes_what_it_shows():
    assert "Test CPU &lt;1 &amp; 2&gt;" in html.render(sample.report())


def _shown(report):
    out = io.StringIO()
    table.show(report, Console(file=out, width=120))
    return out.getvalue()
