"""Keeps a workload's material fresh.

At half of its life, or when its files change, there is new material; whoever asks gets
the newest. When none is to be had, what there is goes on serving, and the log says so
once; then it is tried again, at first after a second, at last after 150, as Istio's
ztunnel does it.

    FRESH    the last fetch went well           -> half-life, or a change of files
    STALE    a fetch failed, the old one holds  -> retry
    EXPIRED  it is not the old one's time       -> retry

The wall clock decides and is passed in; it is looked at every minute, since it may be
set, forward or back, or the machine sleep. Rests between retries go by the loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.mesh.issued import stamp
from fastpath.watch import FilesWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpath.mesh.issued import Issued
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
        changed: gets each new material but the first, in the event loop. With a
            FastpathError it refuses: then that counts as none.

    Use: `await start()`, then `await run()` in a task of its own, at last `close()`.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        changed: Callable[[Issued], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._name = name
        self._now = now
        self._changed = changed
        self._phase = Phase.FRESH
        self._retry = FIRST_RETRY
        self._current: Issued
        self._retry_at: float | None = None
        self._files_changed = asyncio.Event()
        self._watch: FilesWatch | None = None

    @property
    def current(self) -> Issued:
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
            self._source.look()
            self._take(await self._source.fetch(self._now()))
            self._look(self._now())
        except BaseException:
            await self.close()
            raise

    async def run(self) -> None:
        """Keep it fresh until cancelled."""
        while True:
            await self._wait()
            self._source.look()
            try:
                material = await self._source.fetch(self._now())
                # the same: the files were touched
                if material != self._current or self._phase is not Phase.FRESH:
                    self._changed(material)
                    until = stamp(material.not_after)
                    _log.info("%s: certificate until %s", self._name, until)
            except FastpathError as exc:
                self._fail(exc)
            else:
                self._take(material)

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
            rest = self._rest(now)
            if rest <= timedelta():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(rest, LOOK).total_seconds()):
                    await self._files_changed.wait()
        await asyncio.sleep(SETTLE_S)
        self._files_changed.clear()

    def _rest(self, now: datetime) -> timedelta:
        """How long to wait for the next fetch; not more than nothing: it is time."""
        if self._retry_at is not None:
            return timedelta(seconds=self._retry_at - _clock_s())
        if self._source.paths:
            return LOOK
        if now < self._current.not_before:  # the clock was set back
            return timedelta()
        return self._current.half_life - now

    def _take(self, material: Issued) -> None:
        self._current = material
        self._phase = Phase.FRESH
        self._retry_at = None
        if self._source.paths or material.half_life > self._now():
            self._retry = FIRST_RETRY
        else:  # the clocks differ: don't ask all the time
            self._back_off()

    def _fail(self, why: FastpathError) -> None:
        """Say it once, and try again later."""
        if self._phase is Phase.FRESH:
            self._phase = Phase.STALE
            until = stamp(self._current.not_after)
            _log.error("%s: keeps the certificate until %s: %s", self._name, until, why)
        self._look(self._now())
        self._back_off()

    def _back_off(self) -> None:
        self._retry_at = _clock_s() + self._retry.total_seconds()
        self._retry = min(self._retry * 2, LAST_RETRY)

    def _look(self, now: datetime) -> None:
        """Say once that it is not the time of what there is."""
        wrong = ""
        if now >= self._current.not_after:
            wrong = "has expired"
        elif now < self._current.not_before:
            wrong = f"is valid from {stamp(self._current.not_before)} on only"
        if wrong and self._phase is not Phase.EXPIRED:
            self._phase = Phase.EXPIRED
            _log.error("%s: the certificate %s, peers refuse it", self._name, wrong)
        elif not wrong and self._phase is Phase.EXPIRED:  # the clock was set
            self._phase = Phase.FRESH if self._retry_at is None else Phase.STALE


def _clock_s() -> float:
    return asyncio.get_running_loop().time()
