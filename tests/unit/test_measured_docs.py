"""The measured tables of README and docs are what a run's file says."""

from __future__ import annotations

from typing import Any

import pytest

from bench.report import Figure
from fastpath.report import jsonfile
from tests import bench_doc, compare_doc, measured
from tests.unit.fastpath import report_sample as sample

MACHINE = {
    "cpus": 2,
    "cpu": "Test",
    "kernel": "6.18",
    "date": "2024-05-01",
    "load": 3.5,
}


def test_a_comparisons_table_has_its_figures_ratios_and_targets():
    made = compare_doc.table(jsonfile.to_dict(sample.report()))
    lines = made.splitlines()
    assert lines[2].startswith("| connect, us | 197 | 403 | 0.49 (0.4")
    assert lines[2].endswith(") | <= 0.50 | not shown |")
    assert (
        lines[4] == "| bulk up, MB/s | 90 | 45 | 2.00 (2.00 - 2.00) | >= 1.50 | met |"
    )
    assert "| TCP/IP stacks crossed | 0 | 3 | | | |" in lines
    assert "6 rounds in turns, 2024-05-01, accelerator tcg" in made


def figure(key: str, ours: float, other: float) -> Figure:
    about: Any = {"group": "g", "title": "t", "unit": "us", "less": True}
    return Figure(key=key, ours=(ours,), other=(other,), **about)


def test_the_benches_table_has_the_ratios_and_what_a_connection_costs():
    keys = [key for _, keys in bench_doc.ROWS for key in keys]
    figures = [
        figure(f"{setting}-{key}", 1.0, 2.0)
        for setting in bench_doc.SETTINGS.values()
        for key in keys
    ]
    figures += [figure("memory", 0.37, 8.46), figure("fds", 1.0, 2.0)]
    made = bench_doc.table(MACHINE, figures)
    assert "| 64 B round trip | 0.50x | 0.50x | 0.50x |" in made
    assert "0.37 KiB and 1 fd, not 8.5 KiB and 2 fds" in made
    assert "load average 3.5, the benches" in made


def test_only_what_stands_between_the_marks_is_written(tmp_path):
    page = tmp_path / "page.md"
    begin, end = "<!-- x: written by `make y`, do not edit -->\n", "<!-- end of x -->\n"
    page.write_text(f"before\n{begin}old\n{end}after\n")
    measured.write(page, "x", "new\n")
    assert page.read_text() == f"before\n{begin}\nnew\n\n{end}after\n"
    with pytest.raises(ValueError, match="no part 'z'"):
        measured.write(page, "z", "new\n")


def test_the_pages_have_the_parts():
    for page in compare_doc.PAGES:
        assert f"<!-- end of {compare_doc.PART} -->" in page.read_text()
    assert f"<!-- end of {bench_doc.PART} -->" in bench_doc.PAGE.read_text()
