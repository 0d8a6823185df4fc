"""Whatever is in Istio's file: it is taken, or refused in one line with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpath.errors import FastpathError
from fastpath.ztunnel.istio import file
from fastpath.ztunnel.istio.state import MeshState

EXAMPLE = (Path(__file__).parents[3] / "docs/mesh.example.yaml").read_text()
LINES = EXAMPLE.splitlines()
WORDS = (
    *("workloads", "services", "policies", "rules", "vips", "ports", "[]", "{}", "- "),
    *("!Exact", "!Presence", "&a", "*a", "<<", ": ", "? ", "| ", "\n", "  ", "'", '"'),
    *("~", "null", ".nan", ".inf", "0x10", "1_0", "!!int", "!!binary", "2026-01-31"),
    *("10.0.0.0/8", "::1", "/10.0.0.1", "-1", "99999999999999999999", "\t", "\ud7ff"),
)


def read(data):
    """Read it; make a mesh of it if it is one, or see what is said of it."""
    try:
        loaded, document = file.parse(data, "mesh.yaml")
    except FastpathError as error:
        what = error.what
    else:
        problem = next(iter(file.problems(loaded)), None)
        if problem is None:
            MeshState(loaded)
            return
        what = document.where(problem[0])
    assert re.match(r"mesh\.yaml:\d+:\d+", what)


@settings(max_examples=200)
@given(st.binary(max_size=64))
def test_any_bytes(data):
    read(data)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(WORDS), max_size=30))
def test_any_words_of_yaml(words):
    read("".join(words).encode())


@settings(max_examples=200)
@given(
    st.integers(0, len(LINES) - 1),
    st.integers(0, len(LINES) - 1),
    st.sampled_from((*WORDS, "")),
)
def test_the_example_with_a_line_that_is_another(at, other, word):
    lines = list(LINES)
    lines[at] = f"{lines[other]}{word}"
    read("\n".join(lines).encode())


@pytest.mark.parametrize("at", range(0, len(EXAMPLE), 37))
def test_the_example_cut_off(at):
    read(EXAMPLE[:at].encode())
