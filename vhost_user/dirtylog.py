"""The dirty log: which pages of guest memory the device wrote while a machine migrates.

The front-end shares a bitmap, the C side marks pages in it; here it is mapped, checked
and put to work.

Spec: vhost-user, "Migration".
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from vhost_user import notify
from vhost_user.descriptors import Kind, require
from vhost_user.errors import FrontendError
from vhost_user.memory import MAP_ERRORS, SharedArea
from vhost_user.message import LOG_PAGE, Feature

if TYPE_CHECKING:
    from vhost_user.message import LogArea
    from vhost_user.vring import Rings

log = logging.getLogger(__name__)


class DirtyLog:
    """The log of one session; owns its mapping and its eventfd."""

    def __init__(self) -> None:
        self._area: SharedArea | None = None
        self._old: SharedArea | None = None
        self._fd = -1
        self._active = False

    def set_area(self, where: LogArea, fd: int) -> None:
        """Map the log that holds from the next `apply()` on.

        Raises:
            FrontendError: it can't be mapped.
        """
        try:
            area = SharedArea(fd, where.size, where.offset)
        except MAP_ERRORS as error:
            raise FrontendError(f"dirty log can't be mapped: {error}") from error
        self._old, self._area = self._area, area

    def set_fd(self, fd: int) -> None:
        """Own the eventfd that says that the log was written.

        Raises:
            FrontendError: it is no eventfd; it is still the caller's.
        """
        require(fd, Kind.EVENTFD, what="the log's fd")
        self._close_fd()
        self._fd = fd

    def apply(self, rings: Rings) -> None:
        """Log while a log is there and something is to be logged; all rings paused.

        LOG_ALL asks for what devices write into buffers, a ring's flag for what they
        write into its used ring. One without the other logs both: too much is safe.

        Raises:
            FrontendError: the log doesn't cover guest memory.
        """
        wanted = bool(rings.features & Feature.LOG_ALL) or any(
            ring.logged for ring in rings.all
        )
        area = self._area if wanted else None
        self._active = area is not None
        rings.log_size = area.size if area else 0
        if rings.memory is not None:
            pages = -(-rings.memory.end // LOG_PAGE)
            if area is not None and area.size * 8 < pages:
                raise FrontendError(f"dirty log of {area.size} bytes, {pages} pages")
            rings.memory.set_log(area)
        if self._old is not None:
            self._old.close()
            self._old = None

    def ring_stopped(self) -> None:
        """Tell the front-end that a ring has written its last for now."""
        if self._active and self._fd >= 0:
            try:
                notify.signal(self._fd)
            except OSError as error:
                log.warning("the dirty log's eventfd can't be signalled: %s", error)

    def close(self) -> None:
        """Unmap it, once no memory uses it any more."""
        self._close_fd()
        for area in (self._old, self._area):
            if area is not None:
                area.close()
        self._old = self._area = None

    def _close_fd(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
