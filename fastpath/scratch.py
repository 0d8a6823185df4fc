"""A folder for one run's sockets, logs and files."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Iterator

CONSOLE: Final = "console.log"
"""The guest's console log, in that folder."""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make the folder, and remove it at the end.

    The guest's console log stays when an error ends the run that names it.
    """
    folder = Path(tempfile.mkdtemp(prefix="fastpath-"))
    console = folder / CONSOLE
    try:
        yield folder
    except FastpathError as exc:
        if not console.exists() or str(console) not in str(exc):
            shutil.rmtree(folder)
            raise
        for path in folder.iterdir():
            if path != console:
                path.unlink()
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
