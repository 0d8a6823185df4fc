"""docs/tsi-compat.md: where a program can tell TSI from TCP, and the test of it.

`trace/` makes the same calls over native TCP and over TSI and writes down what each
gives; the two traces have to agree line by line, but for the differences that
`tsi_compat.toml` declares, with their reasons. A difference that no longer shows is a
fault as well. The document is that table.

    make compat-doc            write docs/tsi-compat.md
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE: Final = Path(__file__).parent
DATA: Final = HERE / "tsi_compat.toml"
DOC: Final = HERE.parents[1] / "docs/tsi-compat.md"
TRACE: Final = HERE / "trace"
TABLES: Final = (
    "connects.c",
    "sockets.c",
    "bytes.c",
    "options.c",
    "listens.c",
    "datagrams.c",
)

HEAD: Final = (Path(__file__).parent / "tsi_compat_head.md").read_text(encoding="utf-8")

RANDOM: Final = """
## Random sequences

`tests/vm/random/` makes random sequences of calls on three sockets and their peers:
connections, listeners, options, names, events and bytes, by the program itself, its
children, and descriptors that were passed on. `tests/vm/test_tsi_random.py` runs each
over TCP and over TSI and compares call by call; `make random` goes on for a CPU-hour.
What may differ there is in this table, in which `*` is any text. "module" is
`fastpath run --sockets module`.

| call | over TCP | over TSI | where | why |
|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """A result that may differ: has to differ just so."""

    call: str
    native: str
    tsi: str
    reason: str


@dataclass(frozen=True, slots=True)
class Case:
    """A case of the trace program."""

    name: str
    title: str
    differences: tuple[Difference, ...]
    """With the agent."""
    module: tuple[Difference, ...] = ()
    """With tsi_inet."""


@dataclass(frozen=True, slots=True)
class Section:
    """Cases of one source file."""

    title: str
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A result of a random sequence that may differ; patterns are fnmatch's."""

    forms: tuple[str, ...]
    """"agent", "module"."""
    call: str
    native: str
    tsi: str
    reason: str
    ends: bool
    """What comes after it in the sequence is not compared: the states differ."""

    def allows(self, call: str, native: str, tsi: str) -> bool:
        """Whether a difference is this one."""
        return all(
            fnmatchcase(said, pattern)
            for said, pattern in (
                (call, self.call),
                (native, self.native),
                (tsi, self.tsi),
            )
        )


Trace = dict[str, list[tuple[str, str]]]
"""Case -> calls with their results, in order."""


def load() -> tuple[Section, ...]:
    """Read the table."""
    raw = tomllib.loads(DATA.read_text(encoding="utf-8"))
    reasons = raw["reasons"]

    def difference(row: dict[str, str]) -> Difference:
        reason = reasons[row["reason"]]
        return Difference(row["call"], row["native"], row["tsi"], reason)

    return tuple(
        Section(
            section["title"],
            tuple(
                Case(
                    case["name"],
                    case["title"],
                    tuple(map(difference, case.get("differs", ()))),
                    tuple(map(difference, case.get("module", ()))),
                )
                for case in section["case"]
            ),
        )
        for section in raw["section"]
    )


def rules() -> tuple[Rule, ...]:
    """Read what may differ in random sequences."""
    raw = tomllib.loads(DATA.read_text(encoding="utf-8"))
    return tuple(
        Rule(
            tuple(row["forms"]),
            row["call"],
            row["native"],
            row["tsi"],
            raw["reasons"][row["reason"]],
            row.get("ends", False),
        )
        for row in raw.get("random", ())
    )


def names() -> list[str]:
    """Return the names of the program's cases, in its order."""
    found: list[str] = []
    for table in TABLES:
        text = (TRACE / table).read_text(encoding="utf-8")
        found += re.findall(r"\bCASE\((\w+)\),", text)
    return found


def parse(text: str) -> Trace:
    """Read what the program wrote.

    Raises:
        ValueError: it did not come to its end.
    """
    *lines, last = text.splitlines() or [""]
    if last != "done":
        raise ValueError(f"the trace ends with {last!r}")
    trace: Trace = {}
    for line in lines:
        name, call, result = line.split("\t")
        trace.setdefault(name, []).append((call, result))
    return trace


def faults(
    may_differ: Sequence[Difference],
    native: Sequence[tuple[str, str]],
    tsi: Sequence[tuple[str, str]],
) -> list[str]:
    """Compare the two traces of a case; return what is wrong."""
    found = []
    left = list(may_differ)
    if [call for call, _ in native] != [call for call, _ in tsi]:
        return [f"other calls: {native} and {tsi}"]
    for (call, expected), (_, result) in zip(native, tsi, strict=True):
        if expected == result:
            continue
        declared = next((d for d in left if d.call == call), None)
        if declared is None:
            found.append(f"{call}: {expected}, over TSI {result}")
            continue
        left.remove(declared)
        if (expected, result) != (declared.native, declared.tsi):
            found.append(
                f"{call}: {expected}, over TSI {result}, declared as "
                f"{declared.native} and {declared.tsi}"
            )
    found += [f"{each.call}: does not differ any more" for each in left]
    return found


def render(sections: Sequence[Section], rules: Sequence[Rule]) -> str:
    """Return the document."""
    text = HEAD
    for section in sections:
        text += f"\n## {section.title}\n\n"
        text += "| case | what is done | differs | with tsi_inet |\n|---|---|---|---|\n"
        for case in section.cases:
            module = _differs(case.module)
            if case.differences and case.module == case.differences:
                module = "same"
            text += (
                f"| `{case.name}` | {case.title} | {_differs(case.differences)} "
                f"| {module} |\n"
            )
    text += RANDOM
    for rule in rules:
        text += (
            f"| `{rule.call}` | {_cell(rule.native)} | {_cell(rule.tsi)} "
            f"| {', '.join(rule.forms)} | {rule.reason} |\n"
        )
    return text


def _differs(differences: Sequence[Difference]) -> str:
    return (
        "; ".join(
            f"**{d.call}**: {_cell(d.native)} over TCP, {_cell(d.tsi)} over TSI: "
            f"{d.reason}"
            for d in differences
        )
        or "-"
    )


def _cell(result: str) -> str:
    return "`{}`".format(result.replace("|", "+"))


if __name__ == "__main__":
    DOC.write_text(render(load(), rules()), encoding="utf-8")
