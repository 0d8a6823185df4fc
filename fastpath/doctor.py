"""What this host can do, and for each "no" the command that mends it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Need(enum.Flag):
    """What a check is needed for."""

    RUN = enum.auto()
    """`fastpath run`."""
    COMPARE = enum.auto()
    """`fastpath compare` and the standard paths."""
    TEST = enum.auto()
    """`make test`."""
    ALL = RUN | COMPARE | TEST


@dataclass(frozen=True, slots=True)
class Check:
    """One answer of the doctor."""

    name: str
    ok: bool
    detail: str
    """What was found, or why not; one line."""
    mend: str | None
    """The command that mends it; None when `ok`."""
    need: Need


def checks() -> list[Check]:
    """Look at everything that the commands need; blocks for seconds at worst."""
    raise NotImplementedError
