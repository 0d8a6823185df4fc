"""The picture of a path's hops, and that each path's facts can be drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from fastpath.commands.compare.paths import PATHS
from fastpath.report import hops
from tests.unit.fastpath import report_sample as sample


def drawn(name: str) -> ET.Element:
    path = replace(sample.path("tsi", 1.0), facts=PATHS[name].facts)
    return ET.fromstring(f"<main>{hops.pictures([path])}</main>")


def names(page: ET.Element, kind: str) -> list[str]:
    found = page.iterfind(".//li[@class]")
    return [li.text or "" for li in found if kind in li.attrib["class"].split()]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_leads_from_the_program_to_who_answers(name):
    way = PATHS[name].facts.hops
    assert (way[0].name, way[0].at) == ("program", "guest")
    assert way[-1].thread
    assert names(drawn(name), "hop") == [hop.name for hop in way]


@pytest.mark.parametrize("name", PATHS)
def test_stacks_and_processes_are_marked(name):
    page, facts = drawn(name), PATHS[name].facts
    assert len(names(page, "stack")) == len(facts.stacks)
    assert len(names(page, "thread")) == sum(hop.thread for hop in facts.hops)


def test_hops_are_in_boxes_of_where_they_are():
    page = drawn("inpod-l3forwarding")
    boxes = page.findall(".//ol[@class='way']/li")
    assert [(box.findtext("small"), len(box.findall("ol/li"))) for box in boxes] == [
        ("guest", 2),
        ("host", 1),
        ("pod's namespace", 1),
        ("host", 1),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tsi", "0 TCP/IP stacks, 1 copy up, 2 down, 1 process to wake"),
        (
            "inpod-l3forwarding",
            "2 TCP/IP stacks, 3 copies up, 4 down, 2 processes to wake",
        ),
        ("tsi+pod", "1 TCP/IP stack, 3 copies up, 3 down, 2 processes to wake"),
    ],
)
def test_a_path_is_summed_up(name, words):
    assert hops.totals(PATHS[name].facts) == words


def test_copies_are_told_where_they_are_made():
    tips = {
        small.text: small.attrib["title"]
        for small in drawn("tsi").iterfind(".//small[@title]")
    }
    assert tips["copies: 1 up"] == "program's buffer to a guest socket buffer"
