"""Files that appear whole or not at all, and files that are read without a wait.

Whoever reads such a file, or was killed while writing it, sees the old content or
the new one; two who write at once don't meet, each has a name of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write `text` to `path`, in one step where that is a file or nothing yet.

    A device or a pipe (`/dev/stdout`) is written to as it is.

    Raises:
        OSError: it cannot be written; `filename` says what.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    temporary = target.with_name(f".{target.name}.{os.urandom(8).hex()}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            file.write(text)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_replaceable(path: Path) -> None:
    """Find out, without a trace, whether `replace()` can be expected to work.

    Raises:
        OSError: it cannot.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        code = errno.EISDIR
        raise OSError(code, os.strerror(code), str(path))
    if not target.exists() or target.is_file():
        import tempfile  # few write files

        tempfile.TemporaryFile(dir=target.parent).close()
    if target.exists() and not os.access(target, os.W_OK):
        code = errno.EACCES
        raise OSError(code, os.strerror(code), str(path))


def read(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; never wait for a pipe's writer.

    Raises:
        OSError: it can't be read, is larger, or is no file.
    """
    return _read(path, limit)[0]


def read_secret(path: Path, limit: int) -> bytes:
    """The same of a file that nobody but its owner may use.

    Raises:
        OSError: see `read`.
        ValueError: others may.
    """
    data, mode = _read(path, limit)
    if mode & 0o077:
        raise ValueError(f"others can use it (mode {mode:04o})")
    return data


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _read(path: Path, limit: int) -> tuple[bytes, int]:
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"has more than {limit} bytes", str(path))
    return data, stat.S_IMODE(status.st_mode)
