"""How far a comparison is: a bar on a terminal, lines elsewhere; on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bar

from fastpath import stdio

if TYPE_CHECKING:
    from types import TracebackType

MEASURING: Final = "measuring, rounds done"


class Progress:
    """Shows it; a context manager.

    Args:
        rounds: how many there will be.
    """

    def __init__(self, rounds: int) -> None:
        self._console = stdio.console(progress=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=rounds)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, words: str) -> None:
        """Say what is being done."""
        self._bar.update(self._task, description=words)
        self._line(words)

    def done(self, number: int, wanted: int, took_s: float) -> None:
        """Say that a round is done, and how long the others will take.

        Args:
            number: rounds that are done.
            wanted: how many there will be.
            took_s: how long the last one took.
        """
        left_s = (wanted - number) * took_s
        words = f"{MEASURING}; {left_s:.0f} s left"
        self._bar.update(self._task, completed=number, total=wanted, description=words)
        self._line(f"round {number} of {wanted} done; {left_s:.0f} s left")

    def _line(self, words: str) -> None:
        if not self._console.is_terminal:
            self._console.print(words, highlight=False, markup=False, soft_wrap=True)
