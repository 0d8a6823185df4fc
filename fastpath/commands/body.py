"""How a command of `fastpath` begins and ends, whoever parses its options.

An error that the user can fix (`FastpathError`, a wrong option, or what the system
refuses: a full disk, a read-only cache, a closed stdout) becomes one line on stderr and
exit status 2; anything else is a bug of ours and shows its traceback.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Final, NoReturn

from fastpath.errors import FastpathError
from vhost_user import entry, logs
from vhost_user.closing import hangup_is_ignored

if TYPE_CHECKING:
    from collections.abc import Callable

PROG: Final = "fastpath"


def set_up() -> None:
    """Make streams, signals and log of the process what a command expects."""
    entry.set_up_streams()
    signal.signal(signal.SIGTERM, _end)
    if not hangup_is_ignored():
        signal.signal(signal.SIGHUP, _end)
    logs.set_up()


def guarded(work: Callable[[], int]) -> int:
    """Do a command's work and return its exit status; errors go to stderr.

    Raises:
        Exception: a bug of ours.
    """

    def judged() -> int:
        try:
            return work()
        except FastpathError as exc:
            return entry.complain(PROG, str(exc))

    return entry.guarded(PROG, judged)


def _end(signo: int, _frame: object) -> NoReturn:
    """End by an exception, so that everything that was started is stopped."""
    sys.exit(128 + signo)
