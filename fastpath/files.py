"""Files that appear whole or not at all.

Whoever reads such a file, or was killed while writing it, sees the old content or
the new one; two who write at once don't meet, each has a name of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
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
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
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
        tempfile.TemporaryFile(dir=target.parent).close()
    if target.exists() and not os.access(target, os.W_OK):
        code = errno.EACCES
        raise OSError(code, os.strerror(code), str(path))
