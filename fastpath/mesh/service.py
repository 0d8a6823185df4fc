"""Istio's certificate service over gRPC and TLS, in front of an `Issuer`.

What a client sends is hostile: who it is, is looked at before its message is read, and
each of these is bounded: connections, the time of their handshakes, idle ones, streams
of one, headers, messages, the time until a message is there, requests at once. A client
is told why; a log line says the same, and lines are bounded, too.

The method is declared as one that takes a stream of messages, which is the same on the
wire. So the handler runs before the message is there, and the wait for it ends.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
from grpc import aio

from fastpath.errors import FastpathError
from fastpath.mesh import wire
from fastpath.mesh.issued import stamp
from fastpath.mesh.issuing import RefusedError
from fastpath.throttle import Throttle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastpath.mesh.authority import Authority
    from fastpath.mesh.issuing import Issued, Issuer

    _Context = aio.ServicerContext[bytes, bytes]

_log = logging.getLogger(__name__)

SERVER_LIFE: Final = timedelta(days=30)
"""Of the server's own certificate; at half of it there is a new one."""
CLOSE_S: Final = 2.0
"""How long requests that are under way have at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What clients together may take; `issuing.Shares` is what one token may."""

    connections: int = 64
    handshake_s: float = 10.0
    """From accept() to the end of the handshake."""
    settings_s: float = 2.0
    """From then to the acknowledgement of our SETTINGS. gRPC's core keeps headers that
    come before it, as many as come: this is what bounds them."""
    idle_s: float = 60.0
    """A connection without a request for so long is closed."""
    streams: int = 256
    """Requests at once on one connection. gRPC's core counts one until some time after
    the client has its answer, and resets what is too much: have some to spare."""
    requests: int = 1024
    """Requests at once."""
    receive_s: float = 10.0
    """From a request's headers to its message."""
    message_bytes: int = 64 << 10
    metadata_bytes: int = 16 << 10
    """A service account's token has about 1 KiB."""

    def options(self) -> list[tuple[str, int]]:
        """As gRPC's core takes them."""
        return [
            ("grpc.so_reuseport", 0),  # else a second server shares the port unseen
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake_s)),
            ("grpc.http2.settings_timeout", _ms(self.settings_s)),
            ("grpc.max_connection_idle_ms", _ms(self.idle_s)),
            ("grpc.max_concurrent_streams", self.streams),
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_metadata_size", self.metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.metadata_bytes),
        ]


class Server:
    """Serves until it is closed.

    Args:
        authority: makes the server's certificate.
        issuer: answers.
        hosts: names and addresses that clients call it by.
        limits: see there.
        now: the time.
    """

    def __init__(
        self,
        authority: Authority,
        issuer: Issuer,
        hosts: Sequence[str],
        *,
        limits: Limits | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._authority = authority
        self._issuer = issuer
        self._hosts = tuple(hosts)
        self._limits = limits or Limits()
        self._now = now
        self._made_at = now()
        self._throttle = Throttle(_left_out)
        self._server: aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port; 0 takes any.

        Raises:
            FastpathError: it can't.
        """
        server = aio.server(
            options=self._limits.options(),
            maximum_concurrent_rpcs=self._limits.requests,
        )
        method: grpc.RpcMethodHandler[bytes, bytes] = (
            grpc.stream_unary_rpc_method_handler(self._create)
        )
        handler = grpc.method_handlers_generic_handler(
            wire.SERVICE, {wire.METHOD: method}
        )
        server.add_generic_rpc_handlers((handler,))
        credentials = grpc.dynamic_ssl_server_credentials(
            self._certificate(), cast("Callable[[], Any]", self._renewed)
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError:
            raise _cannot_listen(host, port, address) from None
        await server.start()
        self._server = server
        return port

    async def close(self) -> None:
        """End, with `CLOSE_S` for what is under way."""
        if self._server is not None:
            await self._server.stop(CLOSE_S)
        self._throttle.flush()

    async def _create(self, messages: AsyncIterator[bytes], context: _Context) -> bytes:
        try:
            issued = await self._answer(messages, context)
        except RefusedError as exc:
            code, why = grpc.StatusCode[exc.reason.value], f"{exc}"
        except (TimeoutError, StopAsyncIteration):
            code = grpc.StatusCode.DEADLINE_EXCEEDED
            why = f"no message within {self._limits.receive_s:g} s"
        else:
            if self._throttle.admits():
                until = stamp(self._now() + issued.life)
                _log.info("%s: %s until %s", context.peer(), issued.identity, until)
            return issued.response
        if self._throttle.admits():
            _log.warning("%s: refused: %s", context.peer(), why)
        return await context.abort(code, why)

    async def _answer(
        self, messages: AsyncIterator[bytes], context: _Context
    ) -> Issued:
        headers = [
            str(value)
            for key, value in context.invocation_metadata() or ()
            if key == "authorization"
        ]
        clock_s = asyncio.get_running_loop().time()
        with self._issuer.caller(headers, clock_s) as entry:
            async with asyncio.timeout(self._limits.receive_s):
                data = await anext(messages)
            return self._issuer.issue(entry, data, self._now())

    def _certificate(self) -> grpc.ServerCertificateConfiguration:
        now = self._now()
        self._made_at = now
        key, chain = self._authority.server(self._hosts, SERVER_LIFE, now)
        return grpc.ssl_server_certificate_configuration([(key, chain)])

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """A new certificate if it is time; gRPC asks at each handshake.

        It is, too, when the clock was set back to before there was one.
        """
        age = self._now() - self._made_at
        return None if timedelta() <= age < SERVER_LIFE / 2 else self._certificate()


def _left_out(lines: int) -> None:
    _log.warning("%d lines about requests were left out", lines)


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _cannot_listen(host: str, port: int, address: str) -> FastpathError:
    """Find out why; gRPC doesn't tell."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    why = "gRPC can't bind to it"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as exc:
            why = exc.strerror or str(exc)
    return FastpathError(
        f"cannot listen on {address}",
        why,
        "name an address of this host and a port that no other process has, by"
        " --listen",
    )
