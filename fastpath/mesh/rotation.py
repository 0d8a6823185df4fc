"""Keeps a workload's material fresh.

At half of its life, or when its files change, there is new material; whoever asks gets
the newest. When none is to be had, what there is goes on serving, and the log says so
once; then it is tried again, at first after a second, at last after 150, as Istio's
ztunnel does it.

    FRESH    the last fetch went well           -> half-life, or a change of files
    STALE    a fetch failed, the old one holds  -> retry
    EXPIRED  the old one is over                -> retry

The wall clock decides and is passed in; it is looked at every minute, since it may be
set, or the machine sleep.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.mesh.material import stamp
from fastpath.watch import FilesWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpath.mesh.material import Material
    from fastpath.mesh.sources import Source

_log = logging.getLogger(__name__)

FIRST_RETRY: Final = timedelta(seconds=1)
LAST_RETRY: Final = timedelta(seconds=150)
LOOK: Final = timedelta(minutes=1)
"""How often the wall clock is looked at."""
SETTLE_S: Final = 1.0
"""From a change of files to reading them: who writes three writes one after another."""


class Phase(enum.Enum):
    """How good what there is is."""

    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


class Rotation:
    """The material of one workload.

    Args:
        source: where it comes from; closed by `close()`.
        name: the workload's, for the log.
        now: the wall clock.
        changed: gets each new material but the first, in the event loop.

    Use: `await start()`, then `await run()` in a task of its own, at last `close()`.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        changed: Callable[[Material], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._name = name
        self._now = now
        self._changed = changed
        self._phase = Phase.FRESH
        self._retry = FIRST_RETRY
        self._current: Material
        self._due: datetime | None = None
        self._files_changed = asyncio.Event()
        self._watch: FilesWatch | None = None

    @property
    def current(self) -> Material:
        """The newest; it may be over, see `phase`."""
        return self._current

    @property
    def phase(self) -> Phase:
        """How good that is."""
        return self._phase

    async def start(self) -> None:
        """Fetch for the first time.

        Raises:
            FastpathError: there is none to be had; nothing is left running.
        """
        try:
            if self._source.paths:
                self._watch = FilesWatch(self._source.paths)
                self._watch.start(self._files_changed.set)
        except OSError as exc:
            where = ", ".join(f"{each.parent}" for each in self._source.paths)
            why = exc.strerror or str(exc)
            raise FastpathError(where, why, "make the directory") from exc
        try:
            now = self._now()
            self._take(await self._source.fetch(now), now)
        except BaseException:
            await self.close()
            raise

    async def run(self) -> None:
        """Keep it fresh until cancelled."""
        while True:
            await self._wait()
            now = self._now()
            try:
                material = await self._source.fetch(now)
            except FastpathError as exc:
                self._fail(exc)
                continue
            same = material == self._current and self._phase is Phase.FRESH
            self._take(material, now)
            if same:  # the files were touched
                continue
            _log.info("%s: certificate until %s", self._name, stamp(material.not_after))
            self._changed(material)

    async def close(self) -> None:
        """Follow nothing any more."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        await self._source.close()

    async def _wait(self) -> None:
        """Until it is time, or files change."""
        while not self._files_changed.is_set():
            now = self._now()
            self._look(now)
            if self._due is not None and now >= self._due:
                return
            rest = LOOK if self._due is None else min(self._due - now, LOOK)
            try:
                async with asyncio.timeout(rest.total_seconds()):
                    await self._files_changed.wait()
            except TimeoutError:
                continue
        await asyncio.sleep(SETTLE_S)
        self._files_changed.clear()

    def _take(self, material: Material, now: datetime) -> None:
        self._current = material
        self._phase = Phase.FRESH
        self._due = None if self._source.paths else material.half_life
        if self._due is None or self._due > now:
            self._retry = FIRST_RETRY
        else:  # the clocks differ: don't ask all the time
            self._back_off(now)

    def _fail(self, why: FastpathError) -> None:
        """Say it once, and try again later."""
        now = self._now()
        if self._phase is Phase.FRESH:
            self._phase = Phase.STALE
            until = stamp(self._current.not_after)
            _log.error("%s: keeps the certificate until %s: %s", self._name, until, why)
        self._look(now)
        self._back_off(now)

    def _back_off(self, now: datetime) -> None:
        self._due = now + self._retry
        self._retry = min(self._retry * 2, LAST_RETRY)

    def _look(self, now: datetime) -> None:
        """Say once that what there is is over."""
        if now >= self._current.not_after and self._phase is not Phase.EXPIRED:
            self._phase = Phase.EXPIRED
            _log.error("%s: the certificate has expired, peers refuse it", self._name)
