"""The bound on log lines, and that all that a guest can cause are under it."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest

from fastpath import throttle
from fastpath.throttle import BURST, Throttle

FASTPATH = Path(throttle.__file__).parent
SOURCES = sorted(
    path
    for part in ("handoff", "tsi", "ztunnel")
    for path in FASTPATH.glob(f"{part}/*.py")
)
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}

NOT_A_GUESTS = {
    "handoff/namespace.py:_lost": "a process of ours died; one a second starts",
    "handoff/namespace.py:_restart": "once for each reason",
    "ztunnel/pods.py:_leave": "once for each namespace",
    "ztunnel/pods.py:_renew": "once for each process that starts",
    "tsi/policyfile.py:_read": "once for each content of the host's file",
    "handoff/ring.py:serve": "another process's; it rests after each",
    "handoff/ring.py:_serve_one": "another process's; its socket is the host's",
    "ztunnel/shares.py:within_share": "once for each policy",
    "ztunnel/authorization.py:announce": "once, at the start",
    "ztunnel/handoffs.py:_say_if_absent": "once for each sandbox, at the start",
    "ztunnel/reload.py:_read": "once for each content of the host's file",
    "ztunnel/reload.py:_read_once": "once for each content of the host's file",
    "ztunnel/gates.py:judge_again": "once for each content of the mesh's file",
    "ztunnel/gates.py:open": "once for each sandbox, at the start",
    "ztunnel/gates.py:_say_plain": "once, at the start",
    "ztunnel/drain.py:drained": "once, at the end",
    "ztunnel/access_log.py:_follow": "once for each rename of the host's file",
    "ztunnel/access_log.py:close": "once, at the end",
    "ztunnel/access_log.py:_write_all": "each time twice as many are lost",
}
"""What may log without asking, and why that is bounded."""


def is_logging(node):
    """Whether it is a call of a logger."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in ("log", "_log")
    )


def unbounded(tree):
    """Functions that log, other than under an `if ... admits()` or as a Throttle's."""

    def walk(node, function, *, asked):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function, asked = node.name, False
        if isinstance(node, ast.If) and "admits()" in ast.unparse(node.test):
            asked = True
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Throttle":
            asked = True
        if is_logging(node) and not asked:
            yield function
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function, asked=asked)

    return walk(tree, "", asked=False)


def test_every_line_that_a_guest_can_cause_is_bounded():
    found = {
        f"{path.relative_to(FASTPATH)}:{function}"
        for path in SOURCES
        for function in unbounded(ast.parse(path.read_text()))
    }
    assert found == set(NOT_A_GUESTS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def f():\n log.info('x')", ["f"]),
        ("def f():\n if self.lines.admits():\n  log.info('x')", []),
        ("def f():\n if self.lines.admits():\n  pass\n log.info('x')", ["f"]),
        ("def f():\n t = Throttle(lambda n: _log.warning('%d', n))", []),
    ],
)
def test_the_check_sees_what_it_is_for(text, found):
    assert list(unbounded(ast.parse(text))) == found


def test_lines_are_bounded_and_those_left_out_are_told(monkeypatch):
    now = 0.0
    told: list[int] = []

    class Clock:
        @staticmethod
        def monotonic():
            return now

    monkeypatch.setattr(throttle, "time", Clock)

    async def main():
        nonlocal now
        lines = Throttle(told.append)
        assert sum(lines.admits() for _ in range(BURST + 7)) == BURST
        now += 1 / throttle.LINES_A_SECOND
        assert lines.admits()
        assert not lines.admits()
        lines.flush()
        lines.flush()

    asyncio.run(main())
    assert told == [8]
