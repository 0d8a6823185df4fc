"""Which suite of the package archive apt is told to read."""

from __future__ import annotations

import pytest

from fastpath.vm.packages import _of_suite

STANZAS = """\
Types: deb
URIs: http://example.org/debian
Suites: bookworm bookworm-updates

Types: deb
URIs: http://example.org/security
Suites: bookworm-security
"""
LINES = """\
deb http://example.org/debian bookworm main
deb http://example.org/debian bookworm-updates main
deb http://example.org/security bookworm-security main
"""


@pytest.mark.parametrize("text", [STANZAS, LINES])
def test_another_release_has_the_same_entries(text):
    other = _of_suite(text, "bookworm", "trixie")
    assert other == text.replace("bookworm", "trixie")


def test_a_rolling_suite_has_no_updates_and_no_security_stanza():
    assert _of_suite(STANZAS, "bookworm", "sid") == STANZAS.partition("\n\n")[
        0
    ].replace("bookworm bookworm-updates", "sid")


def test_a_rolling_suite_has_no_updates_and_no_security_line():
    first = LINES.splitlines(keepends=True)[0]
    assert _of_suite(LINES, "bookworm", "sid") == first.replace("bookworm", "sid")
