"""Short answers for those who watch: a page over HTTP, or bytes for who connects.

Each client is a task in the loop, so a slow one costs no thread. At most `MAX_CLIENTS`
are there at once, and each has `TIMEOUT_S` to send its request and again to take the
answer.

Spec: RFC 1945 (HTTP/1.0): one request a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from vhost_user.sockets import Listener

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

MAX_CLIENTS: Final = 16
"""One more, and the one that has been there longest is dropped."""
TIMEOUT_S: float = 5.0
MAX_REQUEST: Final = 8192
"""Bytes of a request's head."""
TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """What a request is answered with."""

    body: bytes
    kind: str = TEXT
    """Content type."""
    status: HTTPStatus = HTTPStatus.OK

    def encode(self) -> bytes:
        """Return the response."""
        head = (
            f"HTTP/1.0 {self.status.value} {self.status.phrase}\r\n"
            f"Content-Type: {self.kind}\r\nContent-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


NOT_FOUND: Final = Page(b"no such page\n", status=HTTPStatus.NOT_FOUND)


class ClientTasks:
    """Serves clients at the same time, as many as there may be.

    Args:
        name: of their tasks.
        serve: gets each one's socket, which is closed after it.
    """

    def __init__(
        self, name: str, serve: Callable[[socket.socket], Coroutine[Any, Any, None]]
    ) -> None:
        self._name = name
        self._serve = serve
        self._tasks: dict[asyncio.Task[None], None] = {}  # by age

    def add(self, sock: socket.socket) -> None:
        """Serve a client; its socket is non-blocking, and is taken over."""
        if len(self._tasks) >= MAX_CLIENTS:
            oldest = next(iter(self._tasks))
            del self._tasks[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._talk(sock), name=self._name)
        self._tasks[task] = None

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.pop(task, None)
            sock.close()  # here: a task may be cancelled before it begins

        task.add_done_callback(ended)

    def close(self) -> None:
        """Hang up, whatever they have."""
        for task in self._tasks:
            task.cancel()

    async def _talk(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, TimeoutError):  # a client's own loss
            await self._serve(sock)


async def send(sock: socket.socket, data: bytes) -> None:
    """Send `data`.

    Raises:
        TimeoutError: the client doesn't take it.
        OSError: the client is gone.
    """
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.get_running_loop().sock_sendall(sock, data)


class PageServer:
    """Answers GET, and POST where that is asked for, on a TCP address.

    Args:
        name: for messages.
        address: IP address and port; port 0 takes a free one.
        page: makes the page of a path.
        post: does what is asked for by POST, by path and query; None: nothing is.
    """

    def __init__(
        self,
        name: str,
        address: tuple[str, int],
        page: Callable[[str], Awaitable[Page]],
        post: Callable[[str, str], Awaitable[Page]] | None = None,
    ) -> None:
        self.address = address
        """Where it listens; with the real port after `start()`."""
        self._page = page
        self._post = post
        self._clients = ClientTasks(name, self._serve)
        self._listener = Listener(name, self._clients.add)

    def start(self) -> None:
        """Listen; OSError with `filename`: the address can't be taken."""
        family = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(self.address)
            sock.listen(MAX_CLIENTS)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            error.filename = f"{self.address[0]}:{self.address[1]}"
            raise
        self.address = sock.getsockname()[:2]
        self._listener.listen(sock)

    def close(self) -> None:
        """Stop listening and hang up."""
        self._listener.close()
        self._clients.close()

    async def _serve(self, sock: socket.socket) -> None:
        """Answer one request."""
        async with asyncio.timeout(TIMEOUT_S):
            head = await _head(sock)
        if head is not None:
            page = await self._answer(head)
            await send(sock, page.encode())

    async def _answer(self, head: bytes) -> Page:
        words = head.partition(b"\r\n")[0].decode("latin-1").split()
        if len(words) != 3:
            return Page(b"no HTTP request\n", status=HTTPStatus.BAD_REQUEST)
        path, _, query = words[1].partition("?")
        if words[0] == "POST" and self._post is not None:
            return await self._post(path, query)
        if words[0] != "GET":
            return Page(b"GET it\n", status=HTTPStatus.METHOD_NOT_ALLOWED)
        return await self._page(path)


async def _head(sock: socket.socket) -> bytes | None:
    """Read a request's head; None: the client left, or goes on and on."""
    head = b""
    loop = asyncio.get_running_loop()
    while b"\r\n\r\n" not in head:
        data = await loop.sock_recv(sock, MAX_REQUEST - len(head))
        if not data:  # also where no room is left
            return None
        head += data
    return head
