"""docs/conformance.md says what the marks say, and each requirement has an answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conformance.doc import (
    ROOT,
    Requirement,
    Section,
    Spec,
    faults,
    render,
    runs,
)


def spec(*requirements):
    return [Spec("A specification", [Section("1.2 A section", list(requirements))])]


SAID = Requirement("a:1.2/said", "MUST", "The device MUST say a | b.")
NEVER = Requirement("a:1.2/never", "MUST", "It MUST fly.", "na", "It has no wings.")
OPEN = Requirement("a:1.2/open", "MUST", "It MUST sing.", "open", "Not yet.")
TEST = "tests/conformance/test_a.py::test_it_says_so"


def test_the_document_is_what_the_marks_say():
    checked = subprocess.run(
        [sys.executable, "-m", "tests.conformance.doc", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout


def test_a_mark_that_names_no_requirement_is_a_fault():
    (fault,) = faults(spec(NEVER), {"a:1.2/nevr": {TEST}})
    assert fault == f"no requirement 'a:1.2/nevr', named by the spec mark of {TEST}"


def test_a_requirement_needs_a_test_or_a_reason():
    assert faults(spec(SAID), {}) == [
        "requirement a:1.2/said has neither a test nor a reason"
    ]
    assert faults(spec(SAID, NEVER), {SAID.id: {TEST}}) == []


def test_what_does_not_apply_has_no_test():
    (fault,) = faults(spec(NEVER), {NEVER.id: {TEST}})
    assert fault == "requirement a:1.2/never is not applicable, but has a test"


def test_an_id_is_there_once():
    assert faults(spec(NEVER, NEVER), {}) == [
        "requirement a:1.2/never is there 2 times"
    ]


@pytest.mark.parametrize(
    ("tests", "counts"),
    [
        ({SAID.id: {TEST}}, "| 3 | 1 | 1 | 0 | 1 |"),
        ({SAID.id: {TEST}, OPEN.id: {TEST}}, "| 3 | 2 | 1 | 0 | 0 |"),
    ],
    ids=["open", "no-longer-open"],
)
def test_a_row_has_the_tests_or_the_reason(tests, counts):
    text = render(spec(SAID, NEVER, OPEN), tests)
    assert f"| A specification {counts}" in text
    link = f"[test_a::test_it_says_so](../{TEST.partition('::')[0]})"
    assert f"| said | MUST | The device MUST say a \\| b. | {link} |" in text
    assert "| It MUST fly. | *not applicable*: It has no wings. |" in text


def test_a_run_becomes_a_section_of_its_own(tmp_path):
    path = tmp_path / "run.md"
    path.write_text("# Linux's tests\n\n## Linux 6.1\n\n| 0 | ok |\n")
    text = render(spec(NEVER), {}, runs(path))
    assert "\n## Linux's tests\n\n### Linux 6.1\n\n| 0 | ok |\n" in text
    assert "(frontends.md)" in text
