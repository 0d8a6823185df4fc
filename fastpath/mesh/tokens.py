"""Whom the embedded CA knows: a file of bearer tokens, and what each may ask for.

    tokens:
    - token: 2f1c...                   # what the caller sends; openssl rand -hex 32
      identity: default/client         # NAMESPACE/SERVICE_ACCOUNT: who the caller is
      impersonate: [default/*, "*"]    # for whom else it may ask: a node's ztunnel

It stands for what Istio's CA learns from Kubernetes: a token's service account, and
whether that is a node's proxy. The classes are the description of the format. The file
is followed; one with an error leaves the last good one in force.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from fastpath import files
from fastpath.errors import FastpathError
from fastpath.identity import NAMESPACE, SERVICE_ACCOUNT, Identity
from fastpath.watch import Followed
from vhost_user import decode

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES: Final = 1 << 20
HINTS: Final = {
    "token": "openssl rand -hex 32",
    "identity": "write NAMESPACE/SERVICE_ACCOUNT, for example default/client",
    "impersonate": 'write a list of NAMESPACE/SERVICE_ACCOUNT, NAMESPACE/* and "*"',
}
"""By key."""

_HINT: Final = "write one as docs/certificates.md shows"
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{16,8192}")
_ACCOUNT: Final = re.compile(rf"({NAMESPACE})/({SERVICE_ACCOUNT})", re.ASCII)
_PATTERN: Final = re.compile(
    rf"(?:\*|({NAMESPACE})/(?:\*|({SERVICE_ACCOUNT})))", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Account:
    """A service account of a namespace."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `NAMESPACE/SERVICE_ACCOUNT`, or raise `ValueError`."""
        match = _ACCOUNT.fullmatch(text)
        if match is None:
            raise ValueError(f"must be NAMESPACE/SERVICE_ACCOUNT, not {text!r}")
        return cls(match[1], match[2])

    def of(self, trust_domain: str) -> Identity:
        """Return its identity."""
        return Identity(trust_domain, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Accounts:
    """Service accounts: all (None, None), a namespace's, or one."""

    namespace: str | None
    name: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `*`, `NAMESPACE/*` or `NAMESPACE/NAME`, or raise `ValueError`."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(f"must be NAMESPACE/SERVICE_ACCOUNT or *, not {text!r}")
        return cls(match[1], match[2])

    def cover(self, identity: Identity) -> bool:
        """Whether `identity` is among them, in whatever trust domain."""
        return self.namespace in (None, identity.namespace) and self.name in (
            None,
            identity.service_account,
        )


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token, known by its hash: neither a look-up nor a message tells it."""

    digest: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what callers send, or raise `ValueError`."""
        if not _TOKEN.fullmatch(text):
            raise ValueError("must be a bearer token of 16 to 8192 characters")
        return cls.of(text)

    @classmethod
    def of(cls, text: str) -> Self:
        """What a caller sent, whatever it is."""
        return cls(hashlib.sha256(text.encode(errors="replace")).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A token and what it is good for."""

    token: Token
    identity: Account
    impersonate: tuple[Accounts, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFile:
    """The whole file."""

    tokens: tuple[Entry, ...]


class Tokens:
    """What tokens are good for."""

    def __init__(self, file: TokenFile) -> None:
        self._entries = {entry.token: entry for entry in file.tokens}
        if len(self._entries) != len(file.tokens):
            raise ValueError("two entries have the same token")

    def find(self, token: Token) -> Entry | None:
        """What it is good for, or None: nothing."""
        return self._entries.get(token)


def parse(data: bytes, name: str) -> Tokens:
    """Read a token file.

    Raises:
        FastpathError: `NAME:LINE: key.path: what is wrong; hint: what to do`.
    """
    document = decode.Document(name, FastpathError, hints=HINTS)
    file = decode.loads(data, TokenFile, document)
    try:
        return Tokens(file)
    except ValueError as exc:
        raise document.error(("tokens",), str(exc)) from exc


def follow(path: Path) -> Followed[Tokens]:
    """Return the tokens in a file, followed once they are started.

    Raises:
        FastpathError: there is no such file, others can read it, or it has an error.
    """
    try:
        return Followed(
            path,
            what="tokens",
            hint=_HINT,
            read=_read,
            parse=lambda data: parse(data, str(path)),
        )
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _read(path: Path) -> bytes:
    try:
        return files.read_secret(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    except ValueError as exc:
        raise FastpathError(f"{path}", str(exc), f"chmod 600 {path}") from exc


def _unreadable(path: Path, exc: OSError) -> FastpathError:
    return FastpathError(
        f"{path}",
        exc.strerror or str(exc),
        _HINT,
    )
