"""The one error that `fastpath` shows to its user.

`FastpathError` says in one line what failed, why, and the command that fixes
it. The command line prints it and exits with status 2; everything else that
reaches the top is a bug of ours and shows its traceback.
"""

from __future__ import annotations

from vhost_user.entry import printable


class FastpathError(Exception):
    """Something the user can fix: `what: why; hint: command`.

    Args:
        what: what failed, without a full stop.
        why: the cause, as precise as it is known.
        hint: the command or the action that fixes it; None if there is none.
    """

    def __init__(self, what: str, why: str, hint: str | None = None) -> None:
        super().__init__(what, why, hint)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        """One line that steers no terminal, whatever the parts contain."""
        line = f"{self.what}: {self.why}"
        if self.hint is not None:
            line += f"; hint: {self.hint}"
        return printable(" ".join(line.split()))
