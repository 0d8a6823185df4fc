"""docs/conformance.md: each requirement of the specifications with its tests.

The requirements are data (`requirements/*.toml`); a test says which of them it
shows with `@pytest.mark.spec("virtio-1.2:2.7.8.2/at-least-len", ...)`. A requirement
without a test has a reason: `na` (does not apply to this device), `otherwise`
(decided otherwise) or `open` (not done).

    python -m tests.conformance.doc            write docs/conformance.md
    python -m tests.conformance.doc --check    status 1 and the reasons if it is wrong

The marks are those that pytest collects, so a mark on a class, a module or one
parameter counts as well.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
DOC: Final = ROOT / "docs/conformance.md"
DATA: Final = Path(__file__).parent / "requirements"
FILES: Final = (
    "status.toml",
    "split.toml",
    "packed.toml",
    "vsock.toml",
    "entropy.toml",
    "vhost-user.toml",
    "http2.toml",
    "connect.toml",
)
RUNS: Final = DOC.with_name("vsock-test.md")
"""What a run of Linux's vsock_test wrote; part of the document as it is."""

TESTS: Final = ("tests/unit/vhost_user", "tests/conformance", "tests/vm")

_SECTION_MARKS: Final = ("VIRTIO 1.2 section", "vhost-user ")
"""Marks that name a section as it is called, not a requirement of it."""

STATES: Final = {
    "na": "not applicable",
    "otherwise": "decided otherwise",
    "open": "open",
}

Tests = dict[str, set[str]]
"""Tests ("tests/x/test_y.py::test_z") by the id of the requirement they show."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One sentence of a specification."""

    id: str
    """Unique, as marks name it: "virtio-1.2:2.7.8.2/at-least-len"."""
    level: str
    """The key word, or what takes its place ("statement", "message")."""
    text: str
    state: str = ""
    """A key of `STATES`; "": there are tests (an open one may get some)."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a specification."""

    title: str
    requirements: list[Requirement] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Spec:
    """A specification, or the part of one that a file has."""

    title: str
    sections: list[Section]


def load(path: Path) -> Spec:
    """Read one file of requirements.

    Raises:
        ValueError: a requirement has a key that is not known.
    """
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    sections = []
    for section in raw["section"]:
        number = section.get("id", "")
        prefix = f"{raw['prefix']}:{number}/" if number else f"{raw['prefix']}:"
        requirements = [_requirement(prefix, row) for row in section["requirement"]]
        sections.append(Section(f"{number} {section['title']}".strip(), requirements))
    return Spec(raw["title"], sections)


def _requirement(prefix: str, row: dict[str, str]) -> Requirement:
    reasons = {key: row[key] for key in row.keys() & STATES.keys()}
    if len(reasons) > 1 or row.keys() - STATES.keys() != {"id", "level", "text"}:
        raise ValueError(f"{prefix}{row['id']}: {sorted(row)}")
    state, reason = next(iter(reasons.items()), ("", ""))
    return Requirement(prefix + row["id"], row["level"], row["text"], state, reason)


def load_all() -> list[Spec]:
    """Read every file of requirements, in the order of the document."""
    return [load(DATA / name) for name in FILES]


class Collector:
    """A pytest plugin that notes the marks of what is collected."""

    def __init__(self) -> None:
        self.tests: Tests = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note each test, once for all its parameters."""
        for item in items:
            path = Path(item.path).relative_to(ROOT)
            name = item.name.partition("[")[0]
            for mark in item.iter_markers("spec"):
                for wanted in mark.args:
                    self.tests.setdefault(wanted, set()).add(f"{path}::{name}")


def collect() -> Tests:
    """Return the tests of each requirement.

    Raises:
        RuntimeError: pytest can't collect them.
    """
    collector = Collector()
    paths = [str(ROOT / path) for path in TESTS]
    options = ["--collect-only", "-qqqq", "-p", "no:cacheprovider"]
    status = pytest.main([*options, f"--rootdir={ROOT}", *paths], [collector])
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"tests can't be collected: {status!r}")
    return collector.tests


def faults(specs: list[Spec], tests: Tests) -> list[str]:
    """Return what is wrong between requirements and marks, one line each."""
    rows = [
        r for spec in specs for section in spec.sections for r in section.requirements
    ]
    found = []
    for name, count in Counter(r.id for r in rows).items():
        if count > 1:
            found.append(f"requirement {name} is there {count} times")
    known = {r.id for r in rows}
    for name in sorted(tests.keys() - known):
        if name.startswith(_SECTION_MARKS):
            continue
        users = ", ".join(sorted(tests[name]))
        found.append(f"no requirement {name!r}, named by the spec mark of {users}")
    for r in rows:
        if not r.state and r.id not in tests:
            found.append(f"requirement {r.id} has neither a test nor a reason")
        if r.state == "na" and r.id in tests:
            found.append(f"requirement {r.id} is {STATES[r.state]}, but has a test")
    return found


def render(specs: list[Spec], tests: Tests, more: str = "") -> str:
    """Return the document; `more` goes behind the requirements."""
    parts = [_HEAD, _summary(specs, tests)]
    for spec in specs:
        parts.append(f"## {spec.title}\n")
        parts += [_table(section, tests) for section in spec.sections]
    return "\n".join([*parts, more]).rstrip() + "\n"


_HEAD: Final = """\
# Conformance

Written by `make conformance-doc` from tests/conformance/requirements and the `spec`
marks of the tests; do not edit. Each MUST and SHOULD that binds a device (VIRTIO 1.2),
a back-end (vhost-user) or who receives HTTP/2 (RFC 9113) is here, each vhost-user
message too; "statement" is a sentence without a key word that says what one does.
Texts are quoted or shortened. What binds drivers, front-ends and senders is not listed.
"""


def runs(path: Path) -> str:
    """Return the runs' part: what one wrote at `path`, its headings one level lower."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lowered = [f"#{line}" if line.startswith("#") else line for line in lines]
    return "\n".join([*lowered, "", _FRONT_ENDS])


_FRONT_ENDS: Final = """\
## Front-ends

[frontends.md](frontends.md) has the front-ends that booted a guest;
[test_front_end_sequences](../tests/conformance/test_front_end_sequences.py) replays the
messages of each.
"""


def _state(requirement: Requirement, tests: Tests) -> str:
    """Return its state; what is open until there is a test is tested then."""
    done = requirement.state == "open" and requirement.id in tests
    return "" if done else requirement.state


def _summary(specs: list[Spec], tests: Tests) -> str:
    heads = ["specification", "requirements", "tested", *STATES.values()]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for spec in specs:
        states = Counter(
            _state(r, tests) for s in spec.sections for r in s.requirements
        )
        counts = [states.total(), *(states[key] for key in ("", *STATES))]
        lines.append(f"| {spec.title} | {' | '.join(map(str, counts))} |")
    return "\n".join([*lines, ""])


def _table(section: Section, tests: Tests) -> str:
    lines = [
        f"### {section.title}\n",
        "| id | level | requirement | shown by |",
        "|---|---|---|---|",
    ]
    for r in section.requirements:
        links = [_link(test) for test in sorted(tests.get(r.id, ()))]
        state = _state(r, tests)
        reason = [f"*{STATES[state]}*: {_cell(r.reason)}"] if state else []
        short = r.id.partition(":")[2].rpartition("/")[2]
        shown = "<br>".join(reason + links)
        lines.append(f"| {short} | {r.level} | {_cell(r.text)} | {shown} |")
    return "\n".join([*lines, ""])


def _link(test: str) -> str:
    path, _, name = test.partition("::")
    return f"[{Path(path).stem}::{name}](../{path})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(argv: list[str]) -> int:
    """Write the document, or check it; the status for the shell."""
    specs, tests = load_all(), collect()
    found = faults(specs, tests)
    text = render(specs, tests, runs(RUNS))
    if argv == ["--check"]:
        old = DOC.read_text(encoding="utf-8") if DOC.exists() else ""
        if old != text:
            found.append(
                f"{DOC.relative_to(ROOT)} is out of date: make conformance-doc"
            )
    else:
        DOC.write_text(text, encoding="utf-8")
    sys.stderr.writelines(f"conformance: {line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
