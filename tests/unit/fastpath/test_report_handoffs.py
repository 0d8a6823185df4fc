"""How the report shows hand-offs: over the fast path, without targets."""

from __future__ import annotations

import dataclasses
import io
import re
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from fastpath.commands.compare import facts
from fastpath.commands.compare.measure import FULL
from fastpath.report import html, jsonfile, model, table
from tests import handoff_doc

from . import report_sample as sample

CALLS = {
    "ztunnel": {"epoll_wait": 2.0, "sendmsg": 1.0, "recvmsg": 1.0},
    "proxy": {"epoll_wait": 1.0, "read": 1.0, "write": 1.0},
}


def report(*names, calls=CALLS):
    paths = {}
    for name in names:
        path = sample.path(name, 1.0 if name == "tsi" else 1.5)
        if name.startswith("tsi+"):
            path = dataclasses.replace(path, facts=facts.UNIX, calls=calls)
        paths[name] = path
    setting = dataclasses.replace(sample.SETTING, calls_note="Counted by strace.")
    return model.Report(setting=setting, paths=paths)


def shown(of, width=80):
    out = io.StringIO()
    table.show(of, Console(file=out, width=width))
    return re.sub(r"[│┃]", "|", out.getvalue())


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("tsi", "tsi+unix", "tsi+ring"), ["tsi+unix/tsi", "tsi+ring/tsi"]),
        (("tsi+unix", "tsi"), ["tsi+unix/tsi"]),
        (("tsi+unix", "tsi+ring"), ["tsi+ring/tsi+unix"]),
        (
            ("ambient-geneve", "tsi", "tsi+unix"),
            ["tsi/ambient-geneve", "tsi+unix/tsi"],
        ),
        (("tsi+unix", "ambient-geneve"), ["tsi+unix/ambient-geneve"]),
    ],
    ids=lambda value: ",".join(value),
)
def test_a_hand_off_stands_over_the_fast_path(names, pairs):
    assert list(report(*names).verdicts) == pairs


def test_a_hand_off_has_ratios_and_no_targets():
    of = report("tsi", "ambient-geneve", "tsi+unix")
    assert all(v.outcome is None for v in of.verdicts["tsi+unix/tsi"])
    assert any(v.outcome is not None for v in of.verdicts["tsi/ambient-geneve"])
    assert list(of.handed_on) == ["tsi+unix/tsi"]
    assert list(of.standard) == ["tsi/ambient-geneve"]
    assert report("tsi", "tsi+unix").all_met
    ratio = jsonfile.to_dict(of)["ratios"]["tsi+unix/tsi"]["rtt_64"]
    assert ratio["median"] == pytest.approx(1.5, abs=0.3)
    assert "met" not in ratio


def test_the_json_has_what_is_left_of_tcp_and_the_system_calls():
    loaded = jsonfile.to_dict(report("tsi", "tsi+unix"))
    unix = loaded["paths"]["tsi+unix"]
    assert unix["system_calls_per_rtt"] == CALLS
    assert unix["tcp_connections"] == ["the other proxy to server"]
    assert unix["answers"] == "the other proxy"
    assert loaded["paths"]["tsi"]["system_calls_per_rtt"] is None
    assert loaded["setting"]["calls_note"] == "Counted by strace."


def test_the_table_shows_each_hand_off_by_its_name_in_80_columns():
    text = shown(report("tsi", "tsi+unix", "tsi+embedded"))
    assert "Sandbox to ztunnel, or to the proxy that it hands over to" in text
    assert re.search(r"\| tsi\+unix +\|.*\| +4\.0 \+ +\|", text)
    assert re.search(r"\| tsi\+embedded +\| +1\.50x", text)
    assert "Over tsi: median of 6 paired rounds" in text
    assert "Counted by strace." in text


def test_what_was_not_counted_has_no_column():
    text = shown(report("tsi", "tsi+unix", calls={}))
    assert "calls" not in text.replace("Counted", "")


def test_without_hand_offs_nothing_speaks_of_them():
    of = sample.report()
    assert "hand" not in shown(of, width=200).lower()
    assert "hand-off" not in html.render(of).lower()
    said = " ".join(facts.method(FULL, handed_on=False, sidecar=False, disturbed=False))
    assert "hands over" not in said
    assert "sidecar" not in said


def test_the_page_shows_hand_offs_and_is_well_formed():
    page = html.render(report("tsi", "ambient-geneve", "tsi+unix", "tsi+ring"))
    ET.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert "<h2>Hand-offs</h2>" in page
    assert "<li>ztunnel: epoll_wait 2, sendmsg 1, recvmsg 1</li>" in page
    assert "TCP connections left, program to server" in page


def test_eight_paths_have_eight_colours():
    names = ["tsi", "ambient-geneve", *(f"tsi+{i}" for i in range(6))]
    page = html.render(report(*names))
    for number in range(len(names)):
        assert f"svg .curve.path{number} " in page
        assert page.count(f"--path{number}: #") == 2


def test_the_docs_tables_are_what_the_json_says():
    made = handoff_doc.tables(jsonfile.to_dict(report("tsi", "tsi+unix")))
    assert "| `unix` | 1: the other proxy to server | 3 / 3 | 4 + 3 |" in made
    assert re.search(r"\| `unix` \| \d+ \(1\.\d\dx\) \|", made)
    assert "6 rounds in turns, 2024-05-01" in made


def test_a_run_without_hand_offs_makes_no_docs_tables():
    with pytest.raises(ValueError, match="no hand-offs"):
        handoff_doc.tables(jsonfile.to_dict(sample.report()))
