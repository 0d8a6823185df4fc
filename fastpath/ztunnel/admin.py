"""HTTP for those who watch: `/metrics` and `/healthz/ready`.

The loop only accepts; each request has a thread of its own, so that a slow reader
never holds the loop, and nothing runs while nobody asks.
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


class AdminServer:
    """Serves the two paths on one address.

    Args:
        address: where; port 0 takes a free one.
        metrics: gives the text; called on a request's thread.
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
        self._metrics = metrics
        self._ready = ready
        self._lock = threading.Lock()
        """Held while the process is looked at; `close` waits for that."""
        self._closed = False
        server = _Server6 if address.host.version == 6 else _Server
        try:
            self._server = server((str(address.host), address.port), _handler(self))
        except OSError as exc:
            raise FastpathError(
                f"cannot listen on {address}",
                f"{exc.strerror}",
                "name a free address of this host in fastpath.metrics"
                " and fastpath.readiness",
            ) from exc
        self._server.socket.setblocking(False)
        asyncio.get_running_loop().add_reader(
            self._server.fileno(), self._server.handle_request
        )

    @property
    def port(self) -> int:
        """The port that was taken."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop serving; afterwards neither `metrics` nor `ready` is called."""
        asyncio.get_running_loop().remove_reader(self._server.fileno())
        self._server.server_close()
        with self._lock:
            self._closed = True

    def page(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body of a page; called on a request's thread."""
        with self._lock:
            if path == "/metrics" and not self._closed:
                return HTTPStatus.OK, CONTENT_TYPE_LATEST, self._metrics()
            if path == "/healthz/ready":
                if not self._closed and self._ready():
                    return HTTPStatus.OK, "text/plain", b"ready\n"
                return HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"not ready\n"
        return HTTPStatus.NOT_FOUND, "text/plain", b"no such page\n"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    timeout: float | None = 0
    """`handle_request` is called when there is one."""


class _Server6(_Server):
    address_family: int = socket.AF_INET6


def _handler(admin: AdminServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout: ClassVar[float | None] = READ_TIMEOUT_S

        def do_GET(self) -> None:
            status, kind, body = admin.page(self.path.partition("?")[0])
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing: a scrape every few seconds is no news."""

    return Handler
