"""Files that others write, seen when they change.

A change is seen by inotify on each file's directory, so that it does not matter
whether a file is written in place, replaced by a rename, or reached through a symlink
that moves (as in a mounted ConfigMap). Of a directory that takes the place of another
one it doesn't tell: that is looked for every `LOOK_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from asyncinotify import Inotify, Mask

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

T = TypeVar("T")

_log = logging.getLogger(__name__)

CHANGES: Final = (
    Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.ONLYDIR
)
"""After each of these the file may be another one, and is whole."""
LOOK_S: Final = 60.0
"""How often it is looked whether a directory is still the same."""


class FilesWatch:
    """Tells when files may have another content.

    Args:
        paths: the files; they may be missing, their directories not.

    Raises:
        OSError: a directory can't be watched.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._folders = {each.parent: _which(each.parent) for each in self._paths}
        self._timer: asyncio.TimerHandle | None = None
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
        loop = asyncio.get_running_loop()
        loop.add_reader(self._inotify.fd, self._on_change)
        self._timer = loop.call_later(LOOK_S, self._look)

    def renew(self) -> bool:
        """Watch the directories that are there now; True: one is another one."""
        before = dict(self._folders)
        for folder in self._folders:
            self._folders[folder] = _which(folder)
            with contextlib.suppress(OSError):  # whoever reads will say it
                self._inotify.add_watch(folder, CHANGES)
        return before != self._folders

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
        self._inotify.close()

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look)
        if self.renew():
            self._changed()

    def _on_change(self) -> None:
        while (event := self._inotify.sync_get()) is not None:
            name = None if event.name is None else event.name.name
            if any(
                name in (None, path.name) or path.is_symlink() for path in self._paths
            ):
                self._changed()


def _which(folder: Path) -> tuple[int, int] | None:
    """Which directory a path names; None: none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Followed(Generic[T]):
    """A file's content as a value, followed. A wrong file leaves the last good value.

    Args:
        path: the file.
        what: what it holds, for the log: "tokens".
        hint: what to do when it is missing.
        read: reads the file.
        parse: makes the value.
        absent: the value if there is no file at the start; None: there has to be one.
        changed: called in the event loop when there is a new value.

    `read` and `parse` raise FastpathError; of a file that isn't there, `read` raises
    FileNotFoundError.

    Raises:
        FastpathError: the file is missing or wrong at the start.
        OSError: its directory can't be watched.
    """

    def __init__(
        self,
        path: Path,
        *,
        what: str,
        hint: str,
        read: Callable[[Path], bytes],
        parse: Callable[[bytes], T],
        absent: T | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = path
        self._what = what
        self._hint = hint
        self._read = read
        self._parse = parse
        self._changed = changed
        self._data: bytes | None = None
        self._watch = FilesWatch((path,))
        try:
            self.current = self._first(absent)
        except BaseException:
            self._watch.close()
            raise

    def start(self) -> None:
        """Follow the file from now on."""
        self._watch.start(self._reload)

    def close(self) -> None:
        """Follow the file no more."""
        self._watch.close()

    def _first(self, absent: T | None) -> T:
        try:
            self._data = self._read(self._path)
        except FileNotFoundError as exc:
            if absent is None:
                raise self._missing() from exc
            _log.warning("%s: is missing, so there are no %s", self._path, self._what)
            return absent
        return self._parse(self._data)

    def _reload(self) -> None:
        try:
            try:
                data = self._read(self._path)
            except FileNotFoundError as exc:
                self._data = None
                raise self._missing() from exc
            if data == self._data:
                return
            self._data = data
            self.current = self._parse(data)
        except FastpathError as exc:
            _log.error("the %s stay as they were: %s", self._what, exc)
            return
        _log.warning("%s: new %s", self._path, self._what)
        self._changed()

    def _missing(self) -> FastpathError:
        return FastpathError(f"{self._path}", "no such file", self._hint)
