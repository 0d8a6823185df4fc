"""A folder for one run's sockets, logs and files.

The run holds a lock on a file in it. The kernel drops that with the process, so the
next run tells a folder of one that was killed from that of one that lives, and
removes it. A console log that an error has named is kept for a day.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.deadline import TimedOut
from fastpath.errors import FastpathError
from vhost_user.sockets import MAX_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

CONSOLE: Final = "console.log"
"""The guest's console log, in that folder; with several, what their names end with."""
OWNER: Final = "owner"
"""The file that the run holds a lock on."""
PREFIX: Final = "fastpath-"
KEPT_S: Final = 24 * 3600
"""How long a console log stays that an error has named."""
SHORT: Final = "/tmp"  # noqa: S108 - the folder in it is one that mkdtemp makes
"""Where the folder is if the temporary folder's path is too long for sockets in it."""
MAX_FOLDER: Final = MAX_PATH - len("/fastpath-12345678/vsock_4294967295")
"""Bytes of a path in which such a folder may be; the longest socket's is a port's."""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make the folder, and remove it at the end, and those of killed runs.

    The guest's console log stays when an error ends the run that names it.
    """
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_parents()[-1]))
    kept: Path | None = None
    try:
        with (folder / OWNER).open("wb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield folder
    except (FastpathError, TimedOut) as exc:
        logs = folder.glob(f"*{CONSOLE}")
        kept = next((each for each in logs if str(each) in str(exc)), None)
        raise
    finally:
        _empty(folder, kept)


def keep(console: Path) -> Path | None:
    """Move a console log to a folder of its own, where it stays for a day.

    Returns:
        where it is; None: there was none.
    """
    if not console.exists():
        return None
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_parents()[-1]))
    return Path(shutil.move(console, folder / console.name))


def check_socket_path(path: Path) -> None:
    """Refuse a path that no unix socket can have; most of ours are in such a folder.

    Raises:
        FastpathError: it is too long.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise FastpathError(
            f"{path}", "is too long for a unix socket", "set TMPDIR to a short path"
        )


def sweep() -> None:
    """Remove what killed runs of this user, and old errors, have left."""
    for parent in _parents():
        for path in Path(parent).glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):  # another sweeps, too
                if _is_left_over(path):
                    shutil.rmtree(path)


def _parents() -> list[str]:
    """Return where such folders may be; the last is where a new one goes."""
    usual = tempfile.gettempdir()
    too_long = len(os.fsencode(usual)) > MAX_FOLDER
    return [usual, SHORT] if too_long else [usual]


def _is_left_over(path: Path) -> bool:
    status = path.stat(follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    try:
        fd = os.open(path / OWNER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # a log that was kept, or one that begins
        return time.time() - status.st_mtime > KEPT_S
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _empty(folder: Path, kept: Path | None) -> None:
    """Remove the folder, or all of it but `kept`."""
    if kept is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if path == kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
