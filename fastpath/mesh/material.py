"""A workload's material: private key, certificate chain, trusted roots.

Whatever it comes from, a value of `Material` is whole: the key is the leaf's, the
leaf is of one SPIFFE identity. Nothing is said about time or trust; `check()` is
asked that with the time passed in.

Spec: SPIFFE X.509-SVID, sections 2 "SPIFFE ID" and 4.3 "Key Usage".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from fastpath.identity import Identity
from fastpath.mesh.issued import stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.types import (
        PrivateKeyTypes,
        PublicKeyTypes,
    )

T = TypeVar("T")

MAX_CHAIN: Final = 10
"""Certificates from a leaf up to its root."""

UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for what it can't read."""


@dataclass(frozen=True, slots=True)
class Material:
    """What one end of mutual TLS needs."""

    key_pem: bytes
    """PKCS #8, not encrypted."""
    chain: tuple[x509.Certificate, ...]
    """Leaf first, then intermediates, without a root."""
    roots: tuple[x509.Certificate, ...]
    """Whom to trust."""
    identity: Identity
    """The leaf's."""

    @classmethod
    def parse(cls, key_pem: bytes, chain_pem: bytes, roots_pem: bytes) -> Self:
        """Put together what belongs together.

        Args:
            key_pem: the private key.
            chain_pem: leaf first, then intermediates; a root at the end is left out.
            roots_pem: one or more roots.

        Raises:
            ValueError: a part is not PEM, or is not of the others.
        """
        key = _part("the key", _load_key, key_pem)
        chain = certificates("the chain", chain_pem)
        roots = certificates("the roots", roots_pem)
        if public_bytes(key.public_key()) != public_bytes(chain[0].public_key()):
            raise ValueError("the key is not that of the first certificate")
        chain = (chain[0], *(each for each in chain[1:] if each not in roots))
        if len(chain) > MAX_CHAIN:
            raise ValueError(f"the chain has more than {MAX_CHAIN} certificates")
        return cls(private_pem(key), chain, roots, identity_of(chain[0]))

    @property
    def not_before(self) -> datetime:
        """When the last of the chain's certificates begins."""
        return max(each.not_valid_before_utc for each in self.chain)

    @property
    def not_after(self) -> datetime:
        """When the first of the chain's certificates ends, or the last of the roots."""
        last = max(each.not_valid_after_utc for each in self.roots)
        return min(last, *(each.not_valid_after_utc for each in self.chain))

    @property
    def half_life(self) -> datetime:
        """When to have another one."""
        begin = self.chain[0].not_valid_before_utc
        return begin + (self.not_after - begin) / 2

    @property
    def chain_pem(self) -> bytes:
        """Leaf first."""
        return pem(self.chain)

    @property
    def roots_pem(self) -> bytes:
        """In no order."""
        return pem(self.roots)

    def check(self, now: datetime) -> None:
        """Refuse what can't be used now.

        Raises:
            ValueError: it is over, or has not begun.
        """
        if now >= self.not_after:
            raise ValueError(f"the certificate was valid until {stamp(self.not_after)}")
        if now < self.not_before:
            begin = stamp(self.not_before)
            raise ValueError(f"the certificate is valid from {begin} on only")


def certificates(what: str, data: bytes) -> tuple[x509.Certificate, ...]:
    """Read one or more certificates.

    Raises:
        ValueError: `what`, and why it is none.
    """
    return tuple(_part(what, x509.load_pem_x509_certificates, data))


def identity_of(leaf: x509.Certificate) -> Identity:
    """The one URI of a certificate, as SPIFFE has it.

    Raises:
        ValueError: there is none, there are several, or it is not of Istio's form.
    """
    try:
        names = leaf.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        names = []
    except UNREADABLE as exc:
        raise ValueError(f"the certificate's names can't be read: {exc}") from exc
    if len(names) != 1:
        raise ValueError(f"the certificate has {len(names)} URIs, not one")
    return Identity.parse(names[0])


def public_bytes(key: PublicKeyTypes) -> bytes:
    """A public key as comparable bytes."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def private_pem(key: PrivateKeyTypes) -> bytes:
    """A private key as PKCS #8, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def pem(certs: Iterable[x509.Certificate]) -> bytes:
    """Certificates one after another."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certs)


def _load_key(data: bytes) -> PrivateKeyTypes:
    return serialization.load_pem_private_key(data, None)


def _part(what: str, load: Callable[[bytes], T], data: bytes) -> T:
    try:
        return load(data)
    except UNREADABLE as exc:  # the library's own hint is about certificates of others
        why = f"{exc}".partition(". See http")[0]
        raise ValueError(f"{what} can't be read: {why}") from exc
