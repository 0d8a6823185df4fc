"""A caller of Istio's certificate service: of istiod, or of `fastpath ca`.

It sends what Istio's ztunnel sends: a request with a fresh P-256 key, the bearer token
that the token file has now, and, on behalf of a workload, ImpersonatedIdentity. What
comes back is believed only as far as it is of our key and our identity; the roots are
the service's to say.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from grpc import aio

from fastpath import files
from fastpath.errors import FastpathError
from fastpath.mesh import signing, wire
from fastpath.mesh.address import parse_address
from fastpath.mesh.issued import MAX_PEM_BYTES, since
from fastpath.mesh.material import Material, certificates

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from pathlib import Path

    from fastpath.identity import Identity

CALL_S: Final = 10.0
"""For one request, connecting included."""
MAX_TOKEN_BYTES: Final = 8 << 10
MAX_REASON: Final = 512
"""Characters of a service's words in ours."""

_HINTS: Final = {
    grpc.StatusCode.UNAVAILABLE: "is it running, does its certificate name this host,"
    " and do the roots hold its root?",
    grpc.StatusCode.DEADLINE_EXCEEDED: "is it running, and reachable?",
    grpc.StatusCode.UNAUTHENTICATED: "give it a token that it knows",
    grpc.StatusCode.PERMISSION_DENIED: "let the CA allow this token the identity",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSource:
    """A certificate service.

    Each fetch has a connection of its own, and reads roots and token anew: they change.
    """

    address: str
    """`https://HOST:PORT`; HOST stands in the service's certificate."""
    roots: Path
    """Whom to believe that it is the service."""
    token: Path | None
    """A bearer token; white space around it is none of it."""
    identity: Identity
    """Whom the certificate is to name."""
    impersonate: bool
    """The token is a node's, not the identity's own."""
    life: timedelta
    """To ask for."""
    call_s: float = CALL_S
    paths: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        parse_address(self.address)

    async def fetch(self, now: datetime) -> Material:
        """Ask for a certificate.

        Raises:
            FastpathError: it can't be asked, refuses, or answers nonsense.
        """
        began_s = time.monotonic()
        key_pem, csr_pem = signing.make(self.identity)
        request = wire.Request(
            csr=csr_pem.decode(),
            validity_s=int(self.life.total_seconds()),
            impersonated=str(self.identity) if self.impersonate else None,
        )
        what = f"CA {self.address}"
        try:
            data = await self._call(request.encode())
            # what the CA made meanwhile may begin after `now`
            return self._believe(key_pem, data, since(now, began_s))
        except aio.AioRpcError as exc:
            why = f"{exc.code().name}: {(exc.details() or 'no reason')[:MAX_REASON]}"
            raise FastpathError(what, why, _HINTS.get(exc.code())) from exc
        except OSError as exc:
            hint = "put the file there"
            why = f"{exc.filename}: {exc.strerror or exc}"
            raise FastpathError(what, why, hint) from exc
        except ValueError as exc:
            raise FastpathError(what, f"{exc}") from exc

    def look(self) -> None:
        """There is nothing to warn of."""

    async def close(self) -> None:
        """Nothing is held."""

    async def _call(self, request: bytes) -> bytes:
        roots = files.read(self.roots, MAX_PEM_BYTES)
        certificates(f"{self.roots}", roots)  # gRPC would only say "unavailable"
        credentials = grpc.ssl_channel_credentials(root_certificates=roots)
        options = [
            ("grpc.max_receive_message_length", MAX_PEM_BYTES),
            ("grpc.enable_http_proxy", 0),
        ]
        async with aio.secure_channel(
            parse_address(self.address), credentials, options
        ) as channel:
            call: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                wire.PATH
            )
            answer = call(request, metadata=self._metadata(), timeout=self.call_s)
            return bytes(await answer)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        if self.token is None:
            return ()
        token = files.read(self.token, MAX_TOKEN_BYTES).strip()
        if not token or not token.isascii() or not token.decode().isprintable():
            raise ValueError(f"{self.token}: is no bearer token")
        return (("authorization", f"Bearer {token.decode()}"),)

    def _believe(self, key_pem: bytes, data: bytes, now: datetime) -> Material:
        chain = wire.Response.decode(data).cert_chain
        if len(chain) < 2:
            raise ValueError(f"answers with {len(chain)} certificates, without a root")
        *leafs, roots = (each.encode() for each in chain)
        material = Material.parse(key_pem, b"\n".join(leafs), roots)
        if material.identity != self.identity:
            raise ValueError(f"answers with a certificate of {material.identity}")
        material.check(now)
        return material
