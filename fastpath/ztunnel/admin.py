"""HTTP for those who watch: `/metrics` and `/healthz/ready`.

Requests are read and answered in the loop, so a slow client costs a task and no
thread, and at most `MAX_CLIENTS` are there at once. Pages are made one after the
other by one thread of the server's: a page of many sandboxes takes longer than the
loop may.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from prometheus_client import CONTENT_TYPE_LATEST

from fastpath.errors import FastpathError
from vhost_user.sockets import Listener

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpath.ztunnel.model import ListenAddress

READ_TIMEOUT_S = 5.0
"""A client that has not sent its request by then is dropped, and so is one that has
not read the page by then."""
MAX_CLIENTS: Final = 16
"""One more, and the one that has been there longest is dropped."""
MAX_REQUEST: Final = 8192
"""Bytes of a request's head."""

_TEXT: Final = "text/plain"
Page = tuple[HTTPStatus, str, bytes]
"""Status, content type and body."""


class AdminServer:
    """Serves the two paths on one address.

    Args:
        address: where; port 0 takes a free one.
        metrics: gives the text; called on the server's thread.
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
        self._clients: dict[asyncio.Task[None], None] = {}  # by age
        sock = _listen(address)
        self.port: int = sock.getsockname()[1]
        """The port that was taken."""
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="admin")
        self._listener = Listener(f"admin {address}", self._on_client)
        self._listener.listen(sock)

    def close(self) -> None:
        """Stop serving; afterwards neither `metrics` nor `ready` is called."""
        self._listener.close()
        for client in self._clients:
            client.cancel()
        with self._lock:
            self._closed = True
        self._maker.shutdown(wait=False, cancel_futures=True)

    def page(self, method: str, path: str) -> Page:
        """Make a page; called on the server's thread."""
        if method != "GET":
            return HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"GET it\n"
        with self._lock:
            if path == "/metrics" and not self._closed:
                return HTTPStatus.OK, CONTENT_TYPE_LATEST, self._metrics()
            if path == "/healthz/ready":
                if not self._closed and self._ready():
                    return HTTPStatus.OK, _TEXT, b"ready\n"
                return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, b"not ready\n"
        return HTTPStatus.NOT_FOUND, _TEXT, b"no such page\n"

    def _on_client(self, sock: socket.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            oldest = next(iter(self._clients))
            del self._clients[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._serve(sock), name="admin")
        self._clients[task] = None
        task.add_done_callback(lambda task: self._clients.pop(task, None))

    async def _serve(self, sock: socket.socket) -> None:
        """Answer one request and hang up."""
        with sock, contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(READ_TIMEOUT_S):
                head = await _head(sock)
            if head is None:
                return
            loop = asyncio.get_running_loop()
            page = await loop.run_in_executor(self._maker, self._answer, head)
            async with asyncio.timeout(READ_TIMEOUT_S):
                await loop.sock_sendall(sock, page)

    def _answer(self, head: bytes) -> bytes:
        words = head.partition(b"\r\n")[0].decode("latin-1").split()
        if len(words) != 3:
            return _http((HTTPStatus.BAD_REQUEST, _TEXT, b"no HTTP request\n"))
        return _http(self.page(words[0], words[1].partition("?")[0]))


async def _head(sock: socket.socket) -> bytes | None:
    """Read a request's head; None: the client left, or goes on and on."""
    head = b""
    loop = asyncio.get_running_loop()
    while b"\r\n\r\n" not in head:
        data = await loop.sock_recv(sock, MAX_REQUEST - len(head))
        if not data:
            return None
        head += data
    return head


def _http(page: Page) -> bytes:
    status, kind, body = page
    head = (
        f"HTTP/1.0 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _listen(address: ListenAddress) -> socket.socket:
    family = socket.AF_INET6 if address.host.version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address.host), address.port))
        sock.listen(MAX_CLIENTS)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise FastpathError(
            f"cannot listen on {address}",
            exc.strerror or str(exc),
            "name a free address of this host in fastpath.metrics"
            " and fastpath.readiness",
        ) from exc
    return sock
