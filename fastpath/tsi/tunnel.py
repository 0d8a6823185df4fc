"""Clients of a guest that come by another proxy, each with a PROXY protocol v2 header.

One TCP listener for all ports of a guest: what a client is for, and whose it is, its
header says. This is the other end of Istio's application tunnel (`protocol: PROXY`), so
it listens on loopback in the pod's namespace, where only the pod's own proxy is.

Whoever connects may be anyone in there. So what waits is bounded: a header is of so
many bytes, comes within `HEADER_S`, and beyond `MAX_WAITING` the one that waits for
longest has to go. A client whose header is none is reset.

Spec: docs/handoff-protocol.md; `fastpath.proxy_protocol`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from fastpath import proxy_protocol
from fastpath.proxy_protocol import HEAD, HeaderError
from fastpath.throttle import Throttle
from fastpath.tsi.clients import Client
from vhost_user.sockets import Listener

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

HEADER_S: Final = 10.0
"""For a client to send its header; a proxy sends it at once."""
MAX_WAITING: Final = 256
"""Clients whose headers are not there yet."""

log = logging.getLogger(__name__)


class Tunnel:
    """The listener of one guest.

    Args:
        sock: listens, does not block; taken over.
        take: takes over each client whose header is read.
        name: the sandbox's, for the log.
    """

    def __init__(
        self, sock: socket.socket, take: Callable[[Client], None], *, name: str
    ) -> None:
        self.refused = 0
        """Clients without a good header so far."""
        self._take = take
        self._name = name
        self._waiting: dict[asyncio.Task[None], None] = {}  # by age
        self._lines = Throttle(
            lambda count: log.warning("%s: %d more lines about headers", name, count)
        )
        self._listener = Listener(f"{name}: application tunnel", self._accept)
        self._listener.listen(sock)

    @property
    def waiting(self) -> int:
        """Clients whose headers are not there yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Stop listening; clients that wait are reset. Again: nothing."""
        self._listener.close()
        for task in list(self._waiting):
            task.cancel()
        self._lines.flush()

    def _accept(self, sock: socket.socket) -> None:
        client = Client(("", 0), ("", 0), 0, sock=sock)
        task = asyncio.get_running_loop().create_task(self._admit(sock, client))
        self._waiting[task] = None
        task.add_done_callback(lambda done: self._done(done, client))
        if len(self._waiting) > MAX_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]  # it ends with its next turn
            oldest.cancel()
            self._refused(f"{MAX_WAITING} clients without a header: the oldest goes")

    def _done(self, task: asyncio.Task[None], client: Client) -> None:
        self._waiting.pop(task, None)
        if task.cancelled():
            client.reset()

    async def _admit(self, sock: socket.socket, client: Client) -> None:
        """Read a client's header, and let it in."""
        try:
            async with asyncio.timeout(HEADER_S):
                head = await _exactly(sock, HEAD)
                rest = await _exactly(sock, proxy_protocol.length(head))
            header = proxy_protocol.parse(head, rest)
        except TimeoutError:
            client.reset()
            self._refused(f"a client is refused: no header within {HEADER_S:g} s")
        except (HeaderError, OSError) as error:
            client.reset()
            self._refused(f"a client is refused: {error}")
        else:
            client.address, client.reached = header.source, header.destination
            client.port, client.identity = header.destination[1], header.identity
            client.tunnelled = True
            self._take(client)

    def _refused(self, why: str) -> None:
        self.refused += 1
        if self._lines.admits():
            log.warning("%s: application tunnel: %s", self._name, why)


async def _exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes, and none of those behind them.

    Raises:
        HeaderError: they end before.
        OSError: the socket fails.
    """
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise HeaderError("it ends within its header")
        data += more
    return data
