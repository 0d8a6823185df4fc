"""docs/tsi-compat.md is what its table says, and the table has every case."""

from __future__ import annotations

import pytest

from tests.vm.tsi_compat import (
    DOC,
    Difference,
    Rule,
    faults,
    load,
    names,
    parse,
    render,
    rules,
)

ROW = Difference("read", "0", "ENOTCONN", "why")


def test_the_document_is_what_the_table_says():
    text = render(load(), rules())
    assert DOC.read_text(encoding="utf-8") == text, "see its first lines"


def test_the_table_has_each_case_of_the_program():
    assert [case.name for section in load() for case in section.cases] == names()


def test_a_trace_that_did_not_come_to_its_end_is_none():
    assert parse("a\tread\t0\ndone\n") == {"a": [("read", "0")]}
    with pytest.raises(ValueError, match="ends with"):
        parse("a\tread\t0\n")


@pytest.mark.parametrize(
    ("native", "tsi", "count"),
    [
        pytest.param([("read", "0")], [("read", "ENOTCONN")], 0, id="declared"),
        pytest.param([("read", "0")], [("read", "0")], 1, id="differs-no-more"),
        pytest.param([("read", "0")], [("read", "1")], 1, id="differs-otherwise"),
        pytest.param(
            [("read", "0"), ("write", "1")],
            [("read", "ENOTCONN"), ("write", "2")],
            1,
            id="undeclared",
        ),
        pytest.param(
            [("read", "0"), ("read", "0")],
            [("read", "ENOTCONN"), ("read", "ENOTCONN")],
            1,
            id="once-more",
        ),
        pytest.param([("read", "0")], [], 1, id="other-calls"),
    ],
)
def test_only_declared_differences_pass(native, tsi, count):
    assert len(faults([ROW], native, tsi)) == count


def test_a_rule_allows_what_fits_all_of_its_patterns():
    rule = Rule(("module",), "getsockopt, IP_MTU of *", "0 *", "ENOTCONN", "why", False)
    assert rule.allows("getsockopt, IP_MTU of 4", "0 4: ffff0000", "ENOTCONN")
    assert not rule.allows("getsockopt, IP_TTL of 4", "0 4: ffff0000", "ENOTCONN")
    assert not rule.allows("getsockopt, IP_MTU of 4", "EINVAL", "ENOTCONN")
    assert not rule.allows("getsockopt, IP_MTU of 4", "0 4: ffff0000", "0 4: 00000000")
