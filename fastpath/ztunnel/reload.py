"""Istio's file, followed: a new content as a whole, or the old one stays.

A file of thousands of workloads takes seconds to read. That is done on a thread, one
content after the other, so that connections go on; the new one is taken in the loop, at
once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.watch import FilesWatch
from fastpath.ztunnel.dns import Names
from fastpath.ztunnel.istio import file as istio
from fastpath.ztunnel.istio.state import MeshState

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpath.ztunnel.config import Loaded
    from fastpath.ztunnel.model import Config, Workload

_log = logging.getLogger(__name__)

_START: Final = "a new start is needed for that"


@dataclass(frozen=True, slots=True)
class Mesh:
    """A configuration with all that is made of its mesh."""

    config: Config
    state: MeshState
    names: Names

    @classmethod
    def of(cls, config: Config) -> Mesh:
        """Make it."""
        state = MeshState(config, config.fastpath.network)
        return cls(config, state, Names(config, state))


class MeshWatch:
    """The file, and what to do when it changes.

    Args:
        loaded: names the file; the content that is in force.
        apply: gets each new mesh, in the event loop.
        report: is told of each new content, whether it is good.

    Raises:
        FastpathError: its directory can't be watched.
    """

    def __init__(
        self,
        loaded: Loaded,
        apply: Callable[[Mesh], None],
        report: Callable[[bool], None],
    ) -> None:
        path = loaded.config.fastpath.mesh
        assert path is not None
        self._path = path
        self._loaded = loaded
        self._apply = apply
        self._report = report
        self._content: int | None = loaded.content
        self._asked = False
        self._again = False
        self._task: asyncio.Task[None] | None = None
        try:
            self._watch = FilesWatch((path,))
        except OSError as exc:
            raise FastpathError(f"{path}", exc.strerror or str(exc)) from exc

    def start(self) -> None:
        """Follow the file; what changed since it was loaded counts."""
        self._watch.start(self.look)
        self.look()

    def look(self, *, again: bool = False) -> None:
        """Take what the file has, if that is another content, or `again`."""
        self._again |= again
        self._asked = True
        if self._task is None:
            self._task = asyncio.create_task(self._read(), name="mesh")

    def reload(self) -> None:
        """Take what the file has, whatever that is."""
        self._watch.renew()
        self.look(again=True)

    async def close(self) -> None:
        """Follow the file no more."""
        self._watch.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _read(self) -> None:
        try:
            while self._asked:
                self._asked = False
                again, self._again = self._again, False
                await self._read_once(again=again)
        except Exception:
            _log.exception("%s: following it failed", self._path)
        finally:
            self._task = None

    async def _read_once(self, *, again: bool) -> None:
        data, missing = await asyncio.to_thread(self._bytes)
        content = hash(data) if not missing else None
        if content == self._content and not again:
            return
        self._content = content
        try:
            mesh = await asyncio.to_thread(self._parse, data, missing)
        except FastpathError as exc:
            _log.error("the mesh stays as it was: %s", exc)
            self._report(False)
            return
        _log.warning("new mesh from %s", self._path)
        self._apply(mesh)
        self._report(True)

    def _bytes(self) -> tuple[bytes, str]:
        """The file's content, or why there is none."""
        try:
            return istio.read(self._path), ""
        except OSError as exc:
            return b"", exc.strerror or str(exc)

    def _parse(self, data: bytes, missing: str) -> Mesh:
        """Read and check a new content.

        Raises:
            FastpathError: it is wrong, or changes what can't change meanwhile.
        """
        if missing:
            raise FastpathError(f"{self._path}", missing, "put it back")
        new = self._loaded.with_mesh(data)
        for sandbox in self._loaded.config.fastpath.sandboxes:
            old_one = self._loaded.config.workload(sandbox.workload)
            new_one = new.config.workload(sandbox.workload)
            key = _changed(old_one, new_one)
            if key:
                index = new.config.workloads.index(new_one)
                why = f"is not what sandbox {sandbox.name} was started with"
                raise new.error(("workloads", index, key), why, _START)
        self._loaded = new
        return Mesh.of(new.config)


def _changed(old: Workload, new: Workload) -> str:
    """The key by which a sandbox's workload is another one; empty: none.

    Its guest and the proxies that it is handed to have been told of it.
    """
    if old.workload_ips != new.workload_ips:
        return "workloadIps"
    if old.identity != new.identity:
        other = old.trust_domain != new.trust_domain
        return "trustDomain" if other else "serviceAccount"
    return (
        "applicationTunnel" if old.application_tunnel != new.application_tunnel else ""
    )
