"""Where a workload's material comes from: the embedded CA, or files.

`client.ServiceSource` is the third kind. Here are kinds that need nothing of the extra
until they fetch, so that another process can (`fetcher`). A source answers `fetch()`,
at once or after a while, with material that is whole; what is wrong is a
`FastpathError` for the log.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fastpath import files
from fastpath.errors import FastpathError
from fastpath.mesh.issued import MAX_PEM_BYTES

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from pathlib import Path

    from fastpath.identity import Identity
    from fastpath.mesh.authority import Authority
    from fastpath.mesh.issued import Issued
    from fastpath.mesh.material import Material


_log = logging.getLogger(__name__)


class Source(Protocol):
    """What gives material."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files that hold it: a change means to fetch again.

        None: it can be had anew at any time, and is to be at half of its life.
        """

    def look(self) -> None:
        """Warn of what is wrong beside the material, once each."""

    async def fetch(self, now: datetime) -> Issued:
        """Return material.

        Raises:
            FastpathError: there is none to be had now.
        """

    async def close(self) -> None:
        """Let go of what it holds."""


class Unheld:
    """What sources share that hold nothing and have nothing to warn of."""

    __slots__ = ()

    def look(self) -> None:
        """There is nothing to warn of."""

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class CallSource(Unheld):
    """A `client.ServiceSource`, imported when it is called."""

    fields: dict[str, Any]
    """Its."""
    paths: tuple[Path, ...] = ()

    async def fetch(self, now: datetime) -> Material:
        """Ask for a certificate.

        Raises:
            FastpathError: it can't be asked, refuses, or answers nonsense.
        """
        from fastpath.mesh.client import ServiceSource

        return await ServiceSource(**self.fields).fetch(now)


@dataclass(frozen=True, slots=True)
class RootSource(Unheld):
    """A CA in a directory, which is opened for each fetch."""

    directory: Path
    identity: Identity
    life: timedelta
    paths: tuple[Path, ...] = ()

    async def fetch(self, now: datetime) -> Material:
        """Have a certificate made.

        Raises:
            FastpathError: the CA is not good.
        """
        from fastpath.mesh.authority import Authority

        try:
            root = Authority.open(self.directory, self.identity.trust_domain, now)
        except OSError as exc:
            what, why = f"{exc.filename}", exc.strerror or str(exc)
            hint = "name a directory that can be made, or one of `fastpath ca --dir`"
            raise FastpathError(what, why, hint) from exc
        return await EmbeddedSource(root, self.identity, self.life).fetch(now)


@dataclass(frozen=True, slots=True)
class EmbeddedSource(Unheld):
    """A CA in this process."""

    authority: Authority
    identity: Identity
    life: timedelta
    paths: tuple[Path, ...] = ()

    async def fetch(self, now: datetime) -> Material:
        """Have a certificate made."""
        try:
            return self.authority.workload(self.identity, self.life, now)
        except ValueError as exc:
            raise FastpathError("embedded CA", f"{exc}") from exc


@dataclass(frozen=True, slots=True)
class FileSource(Unheld):
    """PEM files that somebody else renews, such as cert-manager or `PemDirectory`."""

    key: Path
    chain: Path
    """Leaf first, then intermediates."""
    roots: Path
    _told: set[int] = field(default_factory=set, init=False, compare=False, repr=False)
    """Modes of the key's file that were warned of."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The three."""
        return (self.key, self.chain, self.roots)

    async def fetch(self, now: datetime) -> Material:
        """Read the files.

        Raises:
            FastpathError: one can't be read, they don't fit each other, or it is not
                their time.
        """
        from fastpath.mesh.material import Material

        try:
            parts = [files.read(each, MAX_PEM_BYTES) for each in self.paths]
            material = Material.parse(*parts)
            material.check(now)
        except OSError as exc:
            raise FastpathError(
                f"{exc.filename}", exc.strerror or str(exc), "put the file there"
            ) from exc
        except ValueError as exc:
            hint = f"{self.key}, {self.chain} and {self.roots} have to be of one issue"
            raise FastpathError(f"{self.chain}", f"{exc}", hint) from exc
        return material

    def look(self) -> None:
        """Say once that others may read the key, as those of a mounted Secret may."""
        with contextlib.suppress(OSError):
            self._look_at(self.key.stat().st_mode & 0o777)

    def _look_at(self, mode: int) -> None:
        if mode & 0o077 and mode not in self._told:
            self._told.add(mode)
            _log.warning(
                "%s: others can use it (mode %04o); hint: chmod 600, or"
                " defaultMode: 0400 of a Secret",
                self.key,
                mode,
            )
