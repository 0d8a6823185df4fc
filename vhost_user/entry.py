"""How a command of ours begins and ends, whatever stands around it.

The console scripts start here and not in the command's own module: importing that
takes a while, in which Ctrl-C must end the process and not show where it was.

    start      imports a command, runs it, exits
    guarded    its body: what the system refuses is one line on stderr and status 2,
               a reader that has left is status 141, as in a pipeline
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn

from vhost_user.errors import NativeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import ReadableBuffer as Buffer

STDOUT: Final = "stdout"
"""What errors call it."""
EXIT_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
EXIT_PIPE: Final = 128 + signal.SIGPIPE

_SPACE: Final = (
    "free some space, or set TMPDIR and XDG_CACHE_HOME to where there is some"
)
_RIGHTS: Final = (
    "check its owner and mode, or set TMPDIR and XDG_CACHE_HOME to directories that"
    " you can write to"
)
_FILES: Final = "raise the limit of open files (ulimit -n)"

HINTS: Final = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOMEM: "free some memory",
    errno.EIO: "check the disk or terminal",
}
"""What the user can do about it. Other errors are ours, and show where they come from,
unless they name a file."""


def start(prog: str, module: str) -> NoReturn:
    """Import a command's module and exit with what its `main()` returns."""
    _import_asyncio()
    try:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            main = importlib.import_module(module).main
            signal.signal(signal.SIGINT, signal.default_int_handler)
        else:  # a shell's background job ignores it
            main = importlib.import_module(module).main
        status = main()
    except NativeError as error:
        status = complain(prog, f"{error}")
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to clean up
    sys.exit(status)


def _import_asyncio() -> None:
    """Import asyncio as where Python has no OpenSSL.

    Nothing here speaks TLS by asyncio, and `ssl` takes 2.7 MB; who needs it imports it.
    """
    if "asyncio" not in sys.modules and "ssl" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment]
        importlib.import_module("asyncio")
        del sys.modules["ssl"]


def vsock() -> NoReturn:
    """Be the console script `vhost-user-vsock`."""
    start("vhost-user-vsock", "vhost_user.vsock.cli")


def rng() -> NoReturn:
    """Be the console script `vhost-user-rng`."""
    start("vhost-user-rng", "vhost_user.rng")


def set_up_streams() -> None:
    """Give descriptors 0 to 2 that are closed to /dev/null; let stdout's errors say so.

    Else the next socket that is opened becomes somebody's stdin or stdout.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: fd
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  stays open
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(1, "w", closefd=False)),
        errors="surrogateescape",
        line_buffering=os.isatty(1),
    )


def guarded(prog: str, work: Callable[[], int]) -> int:
    """Do a command's work and return its exit status.

    Raises:
        Exception: a bug of ours.
    """
    try:
        status = _status_of(work)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except OSError as error:
        if not (error.errno in HINTS or error.filename):
            raise
        status = EXIT_ERROR if _Stdout.reader_has_left else complain(prog, _line(error))
    finally:
        _drop_output()
    return EXIT_PIPE if _Stdout.reader_has_left else status


def complain(prog: str, line: str) -> int:
    """Say what is wrong in one line on stderr, if anybody reads it; return 2."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{prog}: {printable(line)}\n")
        sys.stderr.flush()
    return EXIT_ERROR


def printable(text: str) -> str:
    """`text` without what would steer a terminal: line ends, escapes, overrides."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _status_of(work: Callable[[], int]) -> int:
    try:
        return work()
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0


def _line(error: OSError) -> str:
    what = error.filename
    parts = [os.fsdecode(what)] if isinstance(what, (str, bytes)) else []
    line = ": ".join([*parts, error.strerror or str(error)])
    hint = HINTS.get(error.errno or 0)
    return f"{line}; hint: {hint}" if hint else line


def _drop_output() -> None:
    """Let the interpreter's own flush at its end find a place for what is stuck."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)


class _Stdout(io.FileIO):
    """Says in its errors what it is, and keeps in mind that its reader has left.

    What writes to it may have an exit status of its own for that.
    """

    reader_has_left: ClassVar[bool] = False

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = STDOUT
            _Stdout.reader_has_left |= error.errno == errno.EPIPE
            raise
