"""The tables of docs/tsi-policy.md are what the code decides."""

from __future__ import annotations

from tests.policy_doc import DOC, render


def test_the_tables_are_what_the_code_decides():
    page = DOC.read_text(encoding="utf-8")
    assert page == render(page), "make policy-doc"
