"""The host's apt sources, said of another suite; the sources are written by hand."""

from __future__ import annotations

import pytest

from fastpath.errors import FastpathError
from fastpath.image import sources

STANZAS = """\
# Debian
Types: deb
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /k

Types: deb
URIs: http://mirror.invalid/security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://vendor.invalid
Suites: nodistro
Components: main
"""

LINES = """\
# deb http://old.invalid bookworm main
deb [signed-by=/k] http://mirror.invalid/debian bookworm main
deb http://mirror.invalid/security bookworm-security main
deb-src http://mirror.invalid/debian bookworm main
deb http://vendor.invalid vendor-bookworm main
"""


def suites_of(text):
    return [line for line in text.splitlines() if line.startswith("Suites:")]


@pytest.mark.parametrize(
    ("suite", "suites"),
    [
        ("trixie", ["Suites: trixie trixie-updates", "Suites: trixie-security"]),
        ("sid", ["Suites: sid"]),
        (
            "bookworm-backports",
            [
                "Suites: bookworm bookworm-backports bookworm-updates",
                "Suites: bookworm-security",
            ],
        ),
    ],
)
def test_stanzas_name_the_other_suite(suite, suites):
    said = sources.of_suite(STANZAS, "bookworm", suite)
    assert suites_of(said) == suites
    assert "vendor" not in said
    assert "Signed-By: /k" in said


def test_lines_name_the_other_suite():
    assert sources.of_suite(LINES, "bookworm", "sid") == (
        "deb [signed-by=/k] http://mirror.invalid/debian sid main\n"
    )
    assert sources.of_suite(LINES, "bookworm", "bookworm-backports").splitlines() == [
        "deb [signed-by=/k] http://mirror.invalid/debian bookworm main",
        "deb [signed-by=/k] http://mirror.invalid/debian bookworm-backports main",
        "deb http://mirror.invalid/security bookworm-security main",
    ]


def test_a_vendors_file_says_nothing():
    assert sources.of_suite("deb http://v.invalid stable main\n", "bookworm", "x") == ""


def test_on_another_system_a_file_has_to_be_named(monkeypatch, tmp_path):
    monkeypatch.delenv(sources.SOURCES_VARIABLE, raising=False)
    monkeypatch.setattr(sources, "_os_release", lambda: {"ID": "ubuntu"})
    with pytest.raises(FastpathError, match=sources.SOURCES_VARIABLE):
        sources.options(tmp_path, "sid")


def test_a_file_that_is_named_is_read_for_every_suite(monkeypatch, tmp_path):
    monkeypatch.setenv(sources.SOURCES_VARIABLE, "/my/list")
    options = sources.options(tmp_path, "sid")
    assert "-oDir::Etc::SourceList=/my/list" in options
    assert any("Default-Release=/^sid" in each for each in options)
