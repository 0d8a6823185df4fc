"""HTTP for those who watch: `/metrics` and `/healthz/ready`.

Each server has a thread of its own, so that a slow reader never holds the loop.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

from prometheus_client import CONTENT_TYPE_LATEST

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpath.ztunnel.model import ListenAddress

READ_TIMEOUT_S = 5.0
"""A client that sends nothing for so long is dropped."""
_POLL_S = 0.05
"""How fast `close` is noticed."""


class AdminServer:
    """Serves the two paths on one address.

    Args:
        address: where; port 0 takes a free one.
        metrics: gives the text; called on a thread of the server.
        ready: whether the process takes connections; the same.

    Raises:
        FastpathError: the address cannot be taken.
    """

    def __init__(
        self,
        address: ListenAddress,
        metrics: Callable[[], bytes],
        ready: Callable[[], bool],
    ) -> None:
        handler = _handler(metrics, ready)
        server = _Server6 if address.host.version == 6 else _Server
        try:
            self._server = server((str(address.host), address.port), handler)
        except OSError as exc:
            raise FastpathError(
                f"cannot listen on {address}",
                f"{exc.strerror}",
                "name a free address of this host in fastpath.metrics"
                " and fastpath.readiness",
            ) from exc
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="admin"
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that was taken."""
        return int(self._server.server_address[1])

    async def close(self) -> None:
        """Stop serving; requests that are under way are abandoned."""
        await asyncio.to_thread(self._server.shutdown)
        await asyncio.to_thread(self._thread.join)
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _Server6(_Server):
    address_family: int = socket.AF_INET6


def _handler(
    metrics: Callable[[], bytes], ready: Callable[[], bool]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout: ClassVar[float | None] = READ_TIMEOUT_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, metrics())
            elif path == "/healthz/ready" and ready():
                self._answer(HTTPStatus.OK, "text/plain", b"ready\n")
            elif path == "/healthz/ready":
                status = HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, "text/plain", b"not ready\n")
            else:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n")

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing: a scrape every few seconds is no news."""

    return Handler
