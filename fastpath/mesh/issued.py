"""Material as those have it who use it: plain, without a library of certificates.

`material.Material` is the same and can be looked into; who only keeps it fresh and
hands it on does with this.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol, Self

if TYPE_CHECKING:
    from datetime import datetime

    from fastpath.identity import Identity

MAX_PEM_BYTES: Final = 1 << 20
"""Of a file or an answer with certificates."""


class Issued(Protocol):
    """What one end of mutual TLS needs; `Material` has it, too."""

    @property
    def identity(self) -> Identity:
        """The leaf's."""

    @property
    def key_pem(self) -> bytes:
        """PKCS #8, not encrypted."""

    @property
    def chain_pem(self) -> bytes:
        """Leaf first, then intermediates, without a root."""

    @property
    def roots_pem(self) -> bytes:
        """Whom to trust."""

    @property
    def not_before(self) -> datetime:
        """When the last of the chain's certificates begins."""

    @property
    def not_after(self) -> datetime:
        """When the first of them ends, or the last of the roots."""

    @property
    def half_life(self) -> datetime:
        """When to have another one."""


@dataclass(frozen=True, slots=True)
class Plain:
    """It, and no more."""

    identity: Identity
    key_pem: bytes
    chain_pem: bytes
    roots_pem: bytes
    not_before: datetime
    not_after: datetime
    half_life: datetime

    @classmethod
    def of(cls, issued: Issued) -> Self:
        """The same as something that can be looked into."""
        return cls(*(getattr(issued, each.name) for each in fields(cls)))


def since(now: datetime, began_s: float) -> datetime:
    """What time it is.

    Args:
        now: what time it was.
        began_s: `time.monotonic()` of then.
    """
    return now + timedelta(seconds=time.monotonic() - began_s)


def stamp(when: datetime) -> str:
    """A time for messages, in UTC."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
