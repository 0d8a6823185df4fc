"""A guest's console log: bytes of the guest's, made fit for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES: Final = 64 * 1024
"""Of the log; a panic with its trace is less."""
RESTART: Final = "reboot: Restarting system"
"""How Linux ends a guest whose init has said why."""
SHOWN: Final = 160
"""Characters of a line that an error quotes."""


def last_lines(console: Path) -> list[str]:
    """The end of a console log, without control characters."""
    try:
        with console.open("rb") as log:
            log.seek(max(0, console.stat().st_size - TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return []
    return [
        "".join(each for each in line if each.isprintable())
        for line in text.splitlines()
    ]


def last_words(console: Path | None) -> str:
    """What the guest said last and where the rest is, for the end of an error.

    Args:
        console: the log; None: there is none, and nothing is said.
    """
    if console is None:
        return ""
    lines = (line.strip() for line in last_lines(console))
    said = [line for line in lines if line and not line.endswith(RESTART)]
    words = f"it said last: {said[-1][:SHOWN]!r}" if said else "it said nothing yet"
    return f"; {words} (console log: {console})"
