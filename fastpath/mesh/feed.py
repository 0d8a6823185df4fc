"""PEM material for a TLS stack that is not Python's: always the newest.

It joins what changes on its own: a workload's certificate, by its `Rotation`, and the
revocation lists of a file. Whoever speaks TLS gets a whole value at the start and a
whole new one at each change, makes its context for new connections of it, and has old
connections go on. A list that changed means to look at those again, too.

Of lists see `revocation`: whom none speaks of is good, and one that is past its next
update counts. OpenSSL has it otherwise by default (X509_V_FLAG_CRL_CHECK wants a
current list of each issuer).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fastpath.errors import FastpathError
from fastpath.mesh.rotation import Phase, Rotation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastpath.identity import Identity
    from fastpath.mesh.issued import Issued
    from fastpath.mesh.revocation import Revocations
    from fastpath.mesh.sources import Source
    from fastpath.watch import Followed

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pems:
    """What a context is made of; each part is PEM."""

    identity: Identity
    """The leaf's."""
    key: bytes
    """PKCS #8, not encrypted."""
    chain: bytes
    """Leaf first, without a root."""
    roots: bytes
    """Whom to trust."""
    crls: bytes
    """Revocation lists; empty: none."""


class PemFeed:
    """Gives a workload's PEM material, as long as it runs.

    Args:
        source: where certificates come from; closed by `close()`.
        name: the workload's, for the log.
        changed: gets each new value but the first, in the event loop. With a
            FastpathError it refuses: the value before stays, and the log says so.
        crls: a file of revocation lists, which may be missing at first.
        lists: in its place, those of a file that somebody else follows for several
            feeds; who does calls `revoked()` when there are others.
        now: the wall clock.

    Use: `await start()`, then `await run()` in a task of its own, at last `close()`.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        changed: Callable[[Pems], None],
        crls: Path | None = None,
        lists: Followed[Revocations] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._name = name
        self._changed = changed
        self._path = crls
        self._lists = lists
        self._rotation = Rotation(source, name=name, now=now, changed=self._renewed)
        self._current: Pems

    @property
    def current(self) -> Pems:
        """The newest."""
        return self._current

    @property
    def phase(self) -> Phase:
        """How good its certificate is."""
        return self._rotation.phase

    async def start(self) -> Pems:
        """Return the first.

        Raises:
            FastpathError: there is none to be had; nothing is left running.
        """
        if self._path is not None:
            from fastpath.mesh import revocation

            self._lists = revocation.follow(self._path, changed=self.revoked)
        try:
            await self._rotation.start()
        except BaseException:
            await self.close()
            raise
        self._current = self._pems(self._rotation.current)
        if self._path is not None and self._lists is not None:
            self._lists.start()
        return self._current

    async def run(self) -> None:
        """Keep it fresh until cancelled."""
        await self._rotation.run()

    def revoked(self) -> None:
        """There are new lists."""
        try:
            self._renewed(self._rotation.current)
        except FastpathError as exc:
            _log.error("%s: the lists stay as they were: %s", self._name, exc)

    async def close(self) -> None:
        """Follow nothing any more."""
        if self._path is not None and self._lists is not None:
            self._lists.close()
            self._lists = None
        await self._rotation.close()

    def _pems(self, material: Issued) -> Pems:
        return Pems(
            material.identity,
            material.key_pem,
            material.chain_pem,
            material.roots_pem,
            self._lists.current.pem if self._lists else b"",
        )

    def _renewed(self, material: Issued) -> None:
        """There is a new certificate; raises FastpathError if that is refused."""
        pems = self._pems(material)
        self._changed(pems)
        self._current = pems
