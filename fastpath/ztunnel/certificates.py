"""Certificates of the workloads that this process is the mesh endpoint of.

    Certificates    all of them: one an identity, however many sandboxes have it
      PemFeed       keeps an identity's fresh (fastpath/mesh/feed.py)
      Tls           an identity's in an engine, made on first use

A rotation makes new ones for new tunnels; those that there are go on, unless the new
revocation lists name their peers. Where certificates come from, `issuers` knows: it
needs the extra `mesh`, which is imported when there are settings.

At the start all are there, or the process doesn't start. Later, when none is to be
had, what there is goes on serving, and the log says so (fastpath/mesh/rotation.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fastpath.errors import FastpathError
from fastpath.ztunnel.certificate_settings import HERE
from vhost_user.errors import StateError
from vhost_user.hbone import Tls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastpath.identity import Identity
    from fastpath.mesh.feed import PemFeed, Pems
    from fastpath.ztunnel import model
    from fastpath.ztunnel.config import MakeError
    from fastpath.ztunnel.issuers import Issuers
    from vhost_user.engine import Engine

AT_ONCE: Final = 16
"""Certificates that are asked for at a time."""
REST_S: Final = 1.0
"""After one that was not to be had, before that is asked for again."""


@dataclass(slots=True)
class _Held:
    """An identity's."""

    feed: PemFeed
    pems: Pems
    tls: dict[Engine, Tls] = field(default_factory=dict)
    subscribers: list[Callable[[], None]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None


class Certificates:
    """All of them; false if the process has none.

    Args:
        settings: checked; None: there are no certificates.
        error: makes the errors.

    Use: `await start()`, then `tls()`; `stop()` before the engines end, at last
    `await close()`.
    """

    def __init__(self, settings: model.Certificates | None, error: MakeError) -> None:
        self._settings = settings
        self._error = error
        self._issuers: Issuers | None = None
        self._held: dict[Identity, _Held] = {}
        self._asked: dict[Identity, asyncio.Task[None]] = {}
        self._failed: dict[Identity, tuple[float, FastpathError]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    def __bool__(self) -> bool:
        return self._settings is not None

    async def start(self, identities: Iterable[Identity]) -> None:
        """Have certificates of some identities.

        Raises:
            FastpathError: one is not to be had; nothing is left running.
        """
        if self._settings is None:
            return
        try:
            from fastpath.ztunnel.issuers import Issuers

            self._issuers = Issuers(self._settings, self._error, self._revoked)
        except ModuleNotFoundError as exc:
            why = f"the module {exc.name} is not installed"
            hint = "pip install 'vsock-fastpath[mesh]'"
            raise self._error(HERE, why, hint) from exc
        try:
            await self._add_all(dict.fromkeys(identities))
        except BaseException:
            await self.close()
            raise
        self._issuers.start()

    async def add(self, identity: Identity) -> None:
        """Have one identity's, too; at once, if it is there.

        Raises:
            FastpathError: it is not to be had.
        """
        if identity in self._held:
            return
        until, failed = self._failed.get(identity, (0.0, None))
        if failed is not None and asyncio.get_running_loop().time() < until:
            raise failed
        task = self._asked.get(identity)
        if task is None:
            task = asyncio.create_task(self._add(identity), name=f"{identity}")
            self._asked[identity] = task
            task.add_done_callback(lambda _: self._asked.pop(identity, None))
        await asyncio.shield(task)

    def has(self, identity: Identity) -> bool:
        """Whether `tls()` has it."""
        return identity in self._held

    def tls(self, engine: Engine, identity: Identity) -> Tls:
        """An identity's newest certificate in an engine; stays ours.

        Raises:
            StateError: there is none, or the engine can't have it.
            OSError: the engine can't have its thread.
        """
        held = self._held.get(identity)
        if held is None:
            raise StateError(f"there is no certificate of {identity}")
        if engine not in held.tls:
            held.tls[engine] = _in_engine(engine, held.pems)
        return held.tls[engine]

    def subscribe(
        self, identity: Identity, changed: Callable[[], None]
    ) -> Callable[[], None]:
        """Hear of each new certificate, and of each change of revocation lists.

        Args:
            identity: one that `tls()` has.
            changed: called in the event loop; `tls()` has the new one. The one before
                is forgotten after that.

        Returns:
            What ends it.
        """
        subscribers = self._held[identity].subscribers
        subscribers.append(changed)
        return lambda: subscribers.remove(changed)

    def dump(self) -> list[dict[str, Any]]:
        """`certificates` of `/config_dump`; callable on any thread."""
        if self._issuers is None:
            return []
        held = sorted(self._held.items(), key=lambda item: str(item[0]))
        return [self._issuers.dump(each.pems) for _, each in held]

    def stop(self) -> None:
        """Rotate no more: the engines are about to end."""
        for held in self._held.values():
            if held.task is not None:
                held.task.cancel()
        for task in self._asked.values():
            task.cancel()
        if self._issuers is not None:
            self._issuers.close()

    async def close(self) -> None:
        """Let go of all of them; the engines have ended, or have none."""
        self.stop()
        tasks = [held.task for held in self._held.values() if held.task is not None]
        await asyncio.gather(*tasks, *self._asked.values(), return_exceptions=True)
        for held in self._held.values():
            await held.feed.close()
        self._held.clear()
        if self._issuers is not None:
            await self._issuers.leave()

    async def _add_all(self, identities: Iterable[Identity]) -> None:
        """Have some; the first that is not to be had ends it."""
        adds = [asyncio.create_task(self.add(each)) for each in identities]
        if not adds:
            return
        try:
            await asyncio.wait(adds, return_when=asyncio.FIRST_EXCEPTION)
            for add in adds:
                if add.done():
                    add.result()
        finally:
            for add in adds:
                add.cancel()
            await asyncio.gather(*adds, return_exceptions=True)

    async def _add(self, identity: Identity) -> None:
        assert self._issuers is not None
        self._failed.pop(identity, None)
        try:
            async with self._room:
                feed = self._issuers.feed(
                    identity, lambda it: self._renew(identity, it)
                )
                pems = await self._issuers.first(identity, feed)
        except FastpathError as exc:
            until = asyncio.get_running_loop().time() + REST_S
            self._failed[identity] = until, exc
            raise
        task = asyncio.create_task(feed.run(), name=f"certificates of {identity}")
        self._held[identity] = _Held(feed, pems, task=task)

    def _renew(self, identity: Identity, pems: Pems) -> None:
        """Take a new certificate, or new lists, everywhere.

        Raises:
            FastpathError: an engine can't have it; then all stays as it was.
        """
        held = self._held.get(identity)
        if held is None:  # the lists changed before it was there
            return
        with contextlib.ExitStack() as made:
            new = {}
            for engine in held.tls:
                new[engine] = _in_engine(engine, pems)
                made.callback(new[engine].close)
            made.pop_all()
        old, held.tls, held.pems = held.tls, new, pems
        for changed in tuple(held.subscribers):
            changed()
        for tls in old.values():
            tls.close()

    def _revoked(self) -> None:
        """There are other revocation lists."""
        for held in tuple(self._held.values()):
            held.feed.revoked()


def _in_engine(engine: Engine, pems: Pems) -> Tls:
    try:
        return Tls(
            engine, chain=pems.chain, key=pems.key, roots=pems.roots, crls=pems.crls
        )
    except (StateError, OSError) as exc:
        raise FastpathError(f"{pems.identity}", f"TLS can't use it: {exc}") from exc
