"""HTTP for those who watch: `/metrics`, `/healthz/ready`; `/config_dump`, `/logging`.

Pages are made one after the other by one thread of the server's: a page of many
sandboxes takes longer than the loop may. `vhost_user.pages` has the rest.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastpath.errors import FastpathError
from fastpath.ztunnel.loglevel import USAGE, LogLevel
from vhost_user.pages import NOT_FOUND, Page, PageServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpath.ztunnel.model import ListenAddress


@dataclass(frozen=True, slots=True)
class Tools:
    """What is for who runs the process only."""

    dump: Callable[[], bytes]
    """Gives `/config_dump`; called on the server's thread."""
    log_level: LogLevel


class AdminServer:
    """Serves the two paths on one address.

    Args:
        address: where; port 0 takes a free one.
        metrics: gives the text; called on the server's thread.
        ready: whether the process takes connections; the same.
        tools: served in place of `metrics`; None: only those are.

    Raises:
        FastpathError: the address cannot be taken.
    """

    def __init__(
        self,
        address: ListenAddress,
        metrics: Callable[[], bytes],
        ready: Callable[[], bool],
        *,
        tools: Tools | None = None,
    ) -> None:
        self._metrics = metrics
        self._ready = ready
        self._tools = tools
        self._lock = threading.Lock()
        """Held while the process is looked at; `close` waits for that."""
        self._closed = False
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="admin")
        self._server = PageServer(
            f"admin {address}",
            (str(address.host), address.port),
            self._make,
            self._post,
        )
        try:
            self._server.start()
        except OSError as exc:
            raise FastpathError(
                f"cannot listen on {address}",
                exc.strerror or str(exc),
                "name a free address of this host in metrics, readiness and admin",
            ) from exc
        self.port = self._server.address[1]
        """The port that was taken."""

    def close(self) -> None:
        """Stop serving; afterwards neither `metrics` nor `ready` is called."""
        self._server.close()
        with self._lock:
            self._closed = True
        self._maker.shutdown(wait=False, cancel_futures=True)

    def page(self, path: str) -> Page:
        """Make a page; called on the server's thread."""
        with self._lock:
            if path == "/metrics" and not self._closed and not self._tools:
                from prometheus_client import CONTENT_TYPE_LATEST

                return Page(self._metrics(), CONTENT_TYPE_LATEST)
            if path == "/config_dump" and not self._closed and self._tools:
                return Page(self._tools.dump(), "application/json")
            if path == "/logging" and self._tools:
                return Page(USAGE.encode(), status=HTTPStatus.METHOD_NOT_ALLOWED)
            if path == "/healthz/ready":
                if not self._closed and self._ready():
                    return Page(b"ready\n")
                return Page(b"not ready\n", status=HTTPStatus.SERVICE_UNAVAILABLE)
        return NOT_FOUND

    async def _post(self, path: str, query: str) -> Page:
        if path == "/logging" and self._tools:
            return self._tools.log_level.page(query)
        return Page(b"GET it\n", status=HTTPStatus.METHOD_NOT_ALLOWED)

    async def _make(self, path: str) -> Page:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._maker, self.page, path)
