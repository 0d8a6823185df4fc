"""Files that others write, seen when they change.

A change is seen by inotify on each file's directory, so that it does not matter
whether a file is written in place, replaced by a rename, or reached through a symlink
that moves (as in a mounted ConfigMap).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from asyncinotify import Inotify, Mask

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CHANGES: Final = (
    Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.ONLYDIR
)
"""After each of these the file may be another one, and is whole."""


class FilesWatch:
    """Tells when files may have another content.

    Args:
        paths: the files; they may be missing, their directories not.

    Raises:
        OSError: a directory can't be watched.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._following = False
        self._changed: Callable[[], None]
        self._inotify = Inotify(sync_timeout=0)  # `sync_get` never waits
        try:
            for path in self._paths:
                self._inotify.add_watch(path.parent, CHANGES)
        except BaseException:
            self._inotify.close()
            raise

    def start(self, changed: Callable[[], None]) -> None:
        """Call `changed` in the event loop; what happened since `__init__` counts."""
        self._changed = changed
        self._following = True
        asyncio.get_running_loop().add_reader(self._inotify.fd, self._on_change)

    def renew(self) -> None:
        """Watch the directories that are there now."""
        for path in self._paths:
            with contextlib.suppress(OSError):  # whoever reads will say it
                self._inotify.add_watch(path.parent, CHANGES)

    def close(self) -> None:
        """Watch no more."""
        if self._following:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
        self._inotify.close()

    def _on_change(self) -> None:
        while (event := self._inotify.sync_get()) is not None:
            name = None if event.name is None else event.name.name
            if any(
                name in (None, path.name) or path.is_symlink() for path in self._paths
            ):
                self._changed()
