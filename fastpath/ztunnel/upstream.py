"""Asking resolvers: one after the other, without giving up on the first.

    0 s     the first resolver is asked
    2 s     the second as well, or as soon as the first has failed
    4 s     the third as well
    ...     the first answer is taken

So a resolver that is slow is waited for as long as the client itself waits, and one
that is dead costs 2 s, not an error. SERVFAIL, REFUSED and NOTIMP are failures as long
as there is another resolver to ask (resolv.conf(5)).

Each exchange has a socket and an id of its own, so nobody can tell what others ask, or
spoof it from elsewhere. Answers are passed on as bytes; see `dnswire` for what is read.

Spec: RFC 1035 section 4.2; RFC 7766 for TCP.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from fastpath.ztunnel import dnswire
from fastpath.ztunnel.dnswire import MalformedError, Query, Rcode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhost_user.engine import SocketAddress

STAGGER_S: Final = 2.0
"""A resolver that is silent for so long is not the only one to be asked any more."""
MAX_STRAYS: Final = 16
"""Datagrams that are no answer to our query; after so many it has failed."""

_LENGTH: Final = struct.Struct("!H")
_FAILURES: Final = frozenset({Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED})


class Exchange:
    """One query's way through the resolvers.

    Args:
        query: the client's.
        tcp: it came over TCP, and goes on over TCP.
        failed: told of each resolver that failed, and how.
        may_ask: whether there may be one more socket; when not, none more is asked.
        make: makes a socket of a family and kind, in the client's network namespace.
    """

    def __init__(
        self,
        query: Query,
        *,
        tcp: bool,
        failed: Callable[[str, Exception], None],
        may_ask: Callable[[], bool],
        make: Callable[[int, int], socket.socket] = socket.socket,
    ) -> None:
        self._query = query
        self._ask = _ask_tcp if tcp else _ask_udp
        self._failed = failed
        self._may_ask = may_ask
        self._make = make
        self._tasks: dict[asyncio.Task[bytes], str] = {}
        self._failure: bytes | None = None

    @property
    def sockets(self) -> int:
        """Open now, or about to be."""
        return max(len(self._tasks), 1)

    async def run(
        self, resolvers: Sequence[SocketAddress], timeout_s: float
    ) -> bytes | None:
        """Return an answer, as bytes; None: no resolver has answered."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._run(list(resolvers))
        except TimeoutError:
            return self._failure
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._tasks.clear()

    async def _run(self, left: list[SocketAddress]) -> bytes | None:
        while left or self._tasks:
            if left and (not self._tasks or self._may_ask()):
                host, port = left.pop(0)
                ask = self._ask(self._query, host, port, self._make)
                self._tasks[asyncio.create_task(ask)] = host
            done, _ = await asyncio.wait(
                self._tasks,
                timeout=STAGGER_S if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                answer = self._result(task)
                if answer is not None:
                    return answer
        return self._failure

    def _result(self, task: asyncio.Task[bytes]) -> bytes | None:
        """Return an answer that settles it."""
        host = self._tasks.pop(task)
        try:
            answer = task.result()
        except (OSError, EOFError, MalformedError) as error:
            self._failed(host, error)
            return None
        if dnswire.rcode(answer) in _FAILURES:
            self._failure = answer
            return None
        return answer


class _Datagrams(asyncio.DatagramProtocol):
    """Waits for the answer to one query."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self._id = int.from_bytes(os.urandom(2))
        self.question = dnswire.question_for(query, self._id)
        self._strays = 0
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        del addr  # connected: the kernel takes from the resolver only
        try:
            ours = dnswire.is_answer(self._query, self._id, data)
        except MalformedError as error:
            self._fail(error)
            return
        self._strays += not ours
        if ours and not self.answer.done():
            self.answer.set_result(data)
        elif self._strays >= MAX_STRAYS:
            self._fail(MalformedError(f"{MAX_STRAYS} datagrams are no answer"))

    def error_received(self, exc: Exception) -> None:
        self._fail(exc)

    def _fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


async def _connect(
    make: Callable[[int, int], socket.socket], host: str, port: int, kind: int
) -> socket.socket:
    """Make a socket and connect it.

    Raises:
        OSError: it can't be.
    """
    loop = asyncio.get_running_loop()
    ((family, _, _, _, address), *_) = await loop.getaddrinfo(
        host, port, type=kind, flags=socket.AI_NUMERICHOST
    )
    sock = make(family, kind)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _ask_udp(
    query: Query, host: str, port: int, make: Callable[[int, int], socket.socket]
) -> bytes:
    """Ask one resolver; no limit of time.

    Raises:
        OSError: it can't be reached.
        MalformedError: its answer is none.
    """
    loop = asyncio.get_running_loop()
    sock = await _connect(make, host, port, socket.SOCK_DGRAM)
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: _Datagrams(query), sock=sock
    )
    try:
        transport.sendto(protocol.question)
        return await protocol.answer
    finally:
        transport.close()


async def _ask_tcp(
    query: Query, host: str, port: int, make: Callable[[int, int], socket.socket]
) -> bytes:
    """Likewise, over TCP.

    Raises:
        OSError: it can't be reached.
        EOFError: it closes without an answer.
        MalformedError: its answer is none.
    """
    sock = await _connect(make, host, port, socket.SOCK_STREAM)
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        number = int.from_bytes(os.urandom(2))
        wire = dnswire.question_for(query, number)
        writer.write(_LENGTH.pack(len(wire)) + wire)
        size = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0]
        answer = await reader.readexactly(size)
    finally:
        writer.close()
    if not dnswire.is_answer(query, number, answer):
        raise MalformedError("it is no answer to what was asked")
    return answer
