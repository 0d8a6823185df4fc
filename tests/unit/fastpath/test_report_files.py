"""The report as Markdown and as pytest-benchmark's JSON; the page's axis labels."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from fastpath.report import benchmarkfile, html, markdown, svg
from fastpath.report.model import Report, VariantFacts
from tests.support.limits import LIMIT_S

from . import report_sample as sample


def test_markdown_has_verdicts_and_figures():
    text = markdown.render(sample.report())
    assert "| `tsi/inpod-l3forwarding` | ratio | 95 % interval | target |  |" in text
    assert "| bulk up | 2.00x | 2.00 - 2.00 | at least 1.50x | met |" in text
    assert "| bulk up, MB/s | 90.0 | 45.0 |" in text
    assert "Test CPU \\<1 & 2\\>" in text
    for line in text.splitlines():
        assert line.count(" | ") in {0, 2, 4}


def test_markdown_says_what_differs_and_what_failed():
    paths = {f"tsi@{n}": sample.path(f"tsi@{n}", 1.0, count=20) for n in ("a", "b")}
    own = Report(
        setting=sample.SETTING,
        paths=paths,
        variants=(
            VariantFacts(name="a", spec=""),
            VariantFacts(name="b", spec="poll-us=0"),
            VariantFacts(name="c", spec="", failure="died | <b>"),
        ),
    )
    text = markdown.render(own)
    assert "| connect | 1.000x | 1.000 - 1.000 | 1.0000 | no difference |" in text
    assert "> **variant c: not measured: died \\| \\<b\\>**" in text


def test_pytest_benchmark_reads_what_is_written_for_it(tmp_path):
    file = tmp_path / "0001_compare.json"
    benchmarkfile.write(sample.report(), file)
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(file)],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert "rtt_64[tsi]" in done.stdout
    assert "up[inpod-l3forwarding]" in done.stdout


def test_a_benchmark_is_in_seconds_or_in_the_figures_unit():
    own = benchmarkfile.to_dict(sample.report())
    by_name = {each["name"]: each for each in own["benchmarks"]}
    assert by_name["host_cpu[tsi]"]["stats"]["median"] == pytest.approx(20e-6)
    assert by_name["up[tsi]"]["stats"]["median"] == 90.0
    assert by_name["up[tsi]"]["extra_info"] == {"unit": "MB/s"}
    assert by_name["up[tsi]"]["stats"]["rounds"] == 6
    assert json.dumps(own)


@pytest.mark.parametrize(
    ("low", "high"), [(90, 110), (100, 900), (50, 9e3), (3, 8e5), (1, 1e7), (1, 1e15)]
)
def test_an_axis_has_a_few_labels_whatever_it_spans(low, high):
    ticks = svg.LogAxis(low, high, 0, 460).ticks()
    assert 1 <= len(ticks) <= svg.MOST_TICKS
    assert all(low <= tick <= high for tick in ticks)


def test_a_time_is_labelled_in_its_largest_unit():
    assert [svg.span(us) for us in (0.5, 200, 2e3, 1e5, 1e6)] == [
        "0.5 us",
        "200 us",
        "2 ms",
        "100 ms",
        "1 s",
    ]


def test_a_phone_has_a_picture_of_its_own_and_so_has_paper():
    page = html.render(sample.report())
    assert page.count('class="forest wide"') == page.count('class="forest narrow"') == 1
    assert "@media print" in page
    assert 'data-path="tsi"' in page
