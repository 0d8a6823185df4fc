"""What the embedded CA answers to one request: a certificate chain, or why not.

Whose certificate it becomes is decided by the token alone: the entry's own identity,
or one that it may impersonate. No I/O is in here, and time is passed in.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from fastpath.identity import Identity
from fastpath.mesh import signing, wire
from fastpath.mesh.issued import stamp
from fastpath.mesh.tokens import Token
from fastpath.throttle import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from fastpath.mesh.authority import Authority
    from fastpath.mesh.tokens import Entry, Tokens

_JWT: Final = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
"""The form of a Kubernetes service account's token: JSON, as base64url."""
_BEARER: Final = re.compile(r"Bearer +(\S+)", re.ASCII | re.IGNORECASE)


class Reason(enum.Enum):
    """Whose fault a refusal is, in gRPC's words."""

    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"


class RefusedError(Exception):
    """No certificate: `what is wrong; hint: what mends it`."""

    def __init__(self, reason: Reason, why: str, hint: str) -> None:
        super().__init__(f"{why}; hint: {hint}")
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What the holder of one token may take."""

    rate: float = 100.0
    """Requests a second, in the long run."""
    burst: float = 500.0
    """Requests at once after a quiet time: a node that starts has many workloads."""
    at_once: int = 256
    """Requests that are under way, such as ones whose body doesn't come."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate, and what to say of it."""

    response: bytes
    identity: Identity
    life: timedelta


class Issuer:
    """Answers requests.

    Args:
        authority: signs.
        tokens: returns the tokens that are good now.
        ttl: the longest life of a certificate, and that of one without a wish.
        shares: of each token.
    """

    def __init__(
        self,
        authority: Authority,
        tokens: Callable[[], Tokens],
        ttl: timedelta,
        shares: Shares,
    ) -> None:
        self._authority = authority
        self._tokens = tokens
        self._ttl = ttl
        self._shares = shares
        self._buckets: dict[Token, Bucket] = {}
        self._under_way: Counter[Token] = Counter()

    @contextmanager
    def caller(self, authorization: Sequence[str], clock_s: float) -> Iterator[Entry]:
        """Find out who calls, for as long as the request is under way.

        Args:
            authorization: the values of the header.
            clock_s: seconds of a clock that doesn't go back.

        Raises:
            RefusedError: nobody that is known, or one that asks too much.
        """
        entry = self._entry(authorization)
        bucket = self._bucket(entry, clock_s)
        busy = self._under_way[entry.token] >= self._shares.at_once
        if busy or not bucket.take(clock_s):
            raise RefusedError(
                Reason.RESOURCE_EXHAUSTED,
                f"{_name(entry)} asks too often, or too much at once",
                "try again later",
            )
        self._under_way[entry.token] += 1
        try:
            yield entry
        finally:
            self._under_way[entry.token] -= 1
            self._under_way += Counter()  # drops what is 0

    def issue(self, entry: Entry, data: bytes, now: datetime) -> Issued:
        """Certify what a caller asks for.

        Args:
            entry: who it is.
            data: the request's bytes.
            now: the time.

        Raises:
            RefusedError: it asks for what it may not have, or for nothing sensible.
        """
        over = self._authority.root.not_valid_after_utc
        if now >= over:
            why = f"the CA's root was valid until {stamp(over)}"
            raise RefusedError(Reason.UNAVAILABLE, why, "start it with another --dir")
        try:
            request = wire.Request.decode(data)
            identity = self._identity(entry, request)
            life = self._life(request)
            leaf = self._authority.issue(request.csr.encode(), identity, life, now)
        except signing.NotGrantedError as exc:
            hint = f"leave the name out, or have a token for it; this is {_name(entry)}"
            raise RefusedError(Reason.PERMISSION_DENIED, f"{exc}", hint) from exc
        except ValueError as exc:
            hint = "send a PEM CSR with a P-256 key"
            raise RefusedError(Reason.INVALID_ARGUMENT, f"{exc}", hint) from exc
        chain = (leaf.decode(), self._authority.root_pem.decode())
        return Issued(wire.Response(chain).encode(), identity, life)

    def _entry(self, authorization: Sequence[str]) -> Entry:
        hint = "send `authorization: Bearer TOKEN` (Istio's ztunnel: AUTH_TOKEN=FILE)"
        if len(authorization) != 1:
            why = f"there are {len(authorization)} authorization headers, not one"
            raise RefusedError(Reason.UNAUTHENTICATED, why, hint)
        match = _BEARER.fullmatch(authorization[0])
        if match is None:
            why = "the authorization header is no bearer token"
            raise RefusedError(Reason.UNAUTHENTICATED, why, hint)
        entry = self._tokens().find(Token.of(match[1]))
        if entry is None and _JWT.fullmatch(match[1]):
            raise RefusedError(
                Reason.UNAUTHENTICATED,
                "the token is not known, and a JWT, as Kubernetes' are, which only a"
                " cluster's own CA can judge",
                "send one of those in the CA's --token-file, or ask istiod",
            )
        if entry is None:
            raise RefusedError(
                Reason.UNAUTHENTICATED,
                "the token is not known",
                "send one of those in the CA's --token-file, or add it there",
            )
        return entry

    def _identity(self, entry: Entry, request: wire.Request) -> Identity:
        own = entry.identity.of(self._authority.trust_domain)
        if request.impersonated is None:
            return own
        identity = Identity.parse(request.impersonated)
        if identity.trust_domain != own.trust_domain:
            raise RefusedError(
                Reason.PERMISSION_DENIED,
                f"{identity} is not of trust domain {own.trust_domain}",
                "ask for a name of this trust domain, or set the CA's --trust-domain",
            )
        if identity != own and not any(
            each.cover(identity) for each in entry.impersonate
        ):
            raise RefusedError(
                Reason.PERMISSION_DENIED,
                f"{_name(entry)} may not ask for {identity}",
                "add it to `impersonate` of this token in the CA's --token-file",
            )
        return identity

    def _life(self, request: wire.Request) -> timedelta:
        if request.validity_s <= 0:
            return self._ttl
        return timedelta(seconds=min(request.validity_s, self._ttl.total_seconds()))

    def _bucket(self, entry: Entry, clock_s: float) -> Bucket:
        """The bucket of a token; those of tokens that are gone are dropped."""
        if entry.token not in self._buckets:
            tokens = self._tokens()
            self._buckets = {
                token: bucket
                for token, bucket in self._buckets.items()
                if tokens.find(token)
            }
            self._buckets[entry.token] = Bucket(
                self._shares.rate, self._shares.burst, clock_s
            )
        return self._buckets[entry.token]


def _name(entry: Entry) -> str:
    return f"{entry.identity.namespace}/{entry.identity.name}"
