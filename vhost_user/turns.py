"""Taking turns at one path, in a directory that others may write to.

Processes that want to replace a file have to do it one after another. A lock of an
agreed name would be anybody's in a directory such as /tmp: another user could hold
it, or have made it first. So each process makes a file of its own, with a random
name, holds a lock on it and looks at those of its *own user* only:

    none       it is our turn
    a lower    give way: remove our file, draw another name
    a higher   wait for it to give way, or to end its turn if it looked before us

A file without a lock is a dead process's, and removed. Of two processes the later one
to make its file sees the other's, so both never have a turn at once.

Processes of different users don't exclude each other: in a directory with the sticky
bit one could not remove the other's file anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

_LOOK_S: Final = 0.002
_TIMEOUT_S: Final = 10.0
"""A turn takes about 100 us; a process of this user that was stopped in one is said."""


@contextlib.asynccontextmanager
async def turn(path: Path) -> AsyncIterator[None]:
    """Be the only process of this user that makes or replaces `path`.

    Raises:
        OSError: no file can be made beside `path`; ETIMEDOUT: a process of this
            user doesn't end its turn.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            fd, name = await _wait(path.parent, f".{path.name}.turn-")
    except TimeoutError:
        raise OSError(
            errno.ETIMEDOUT, "another process of this user keeps its turn here"
        ) from None
    try:
        yield
    finally:
        _leave(fd, name)


async def _wait(folder: Path, prefix: str) -> tuple[int, Path]:
    """Return once it is our turn: our file, locked, and its name."""
    while True:
        fd, own = _draw(folder, prefix)
        try:
            while others := list(_others(folder, prefix, own)):
                if min(others) < own.name:
                    break
                await asyncio.sleep(_LOOK_S)
            else:
                return fd, own
        except BaseException:
            _leave(fd, own)
            raise
        _leave(fd, own)
        await asyncio.sleep(_LOOK_S)


def _draw(folder: Path, prefix: str) -> tuple[int, Path]:
    """Make a file that nobody else knows of, and lock it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        own = folder / f"{prefix}{os.urandom(8).hex()}"
        fd = os.open(own, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return fd, own
        except BlockingIOError:  # taken for a dead one's, before the lock
            pass
        except BaseException:
            _leave(fd, own)
            raise
        _leave(fd, own)


def _leave(fd: int, name: Path) -> None:
    name.unlink(missing_ok=True)
    os.close(fd)


def _others(folder: Path, prefix: str, own: Path) -> Iterator[str]:
    """Names of this user's other files whose processes live."""
    # names only: of a thousand VMs' sockets in one folder, each looks at all
    names = [name for name in os.listdir(folder) if name.startswith(prefix)]  # noqa: PTH208
    for name in names:
        if name != own.name and _lives(folder / name):
            yield name


def _lives(path: Path) -> bool:
    """Whether a process holds `path`; the file of a dead one is removed."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # gone, or another user's
        return False
    try:
        status = os.fstat(fd)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or status.st_nlink != 1:  # 2: another user's link to a file of ours
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
