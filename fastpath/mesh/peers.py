"""Whose certificate a peer has shown.

What Istio's ztunnel asks of it: the chain ends in our roots and is valid now, no list
revokes a part of it, it names one SPIFFE identity; that is of our trust domain where
the peer is a client, one of those that were expected where it is a server.

Spec: SPIFFE X.509-SVID, section 5; RFC 5280, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from fastpath.mesh.material import MAX_CHAIN, UNREADABLE, identity_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from fastpath.identity import Identity
    from fastpath.mesh.revocation import Revocations

MAX_CHAIN_BYTES: Final = 64 << 10
"""Of what a peer shows."""


class PeerError(Exception):
    """The peer is not who it has to be; says why."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """Judges chains.

    Each rotation and each change of the lists makes a new one.
    """

    roots: tuple[x509.Certificate, ...]
    revocations: Revocations

    def client(
        self, chain_der: Sequence[bytes], trust_domain: str, now: datetime
    ) -> Identity:
        """Return who a client is.

        Args:
            chain_der: what it showed, leaf first.
            trust_domain: ours.
            now: the time.

        Raises:
            PeerError: see above.
        """
        identity = self._identity(chain_der, ExtendedKeyUsageOID.CLIENT_AUTH, now)
        if identity.trust_domain != trust_domain:
            raise PeerError(f"{identity} is not of trust domain {trust_domain}")
        return identity

    def server(
        self, chain_der: Sequence[bytes], expected: Collection[Identity], now: datetime
    ) -> Identity:
        """Return who a server is; arguments as above.

        Raises:
            PeerError: see above.
        """
        identity = self._identity(chain_der, ExtendedKeyUsageOID.SERVER_AUTH, now)
        if identity not in expected:
            names = ", ".join(sorted(map(str, expected)))
            raise PeerError(f"the server is {identity}, not one of: {names}")
        return identity

    def _identity(
        self, chain_der: Sequence[bytes], usage: x509.ObjectIdentifier, now: datetime
    ) -> Identity:
        if not chain_der:
            raise PeerError("it shows no certificate")
        if len(chain_der) > MAX_CHAIN or sum(map(len, chain_der)) > MAX_CHAIN_BYTES:
            raise PeerError("it shows too many certificates")
        try:
            leaf, *others = map(x509.load_der_x509_certificate, chain_der)
            identity = identity_of(leaf)
            chain = self._verifier(usage, now).verify(leaf, others).chain
        except verification.VerificationError as exc:
            raise PeerError(f"its certificate is not to be trusted: {exc}") from exc
        except UNREADABLE as exc:
            raise PeerError(f"{exc}") from exc
        revoked = self.revocations.find(chain)
        if revoked is not None:
            raise PeerError(f"its certificate {revoked.serial_number:x} is revoked")
        return identity

    def _verifier(
        self, usage: x509.ObjectIdentifier, now: datetime
    ) -> verification.ClientVerifier:
        """One that compares no names: a workload's is none that it knows."""
        return (
            verification.PolicyBuilder()
            .store(verification.Store(list(self.roots)))
            .time(now)
            .max_chain_depth(MAX_CHAIN)
            .extension_policies(ca_policy=_CA, ee_policy=_leaf_policy(usage))
            .build_client_verifier()
        )


def _leaf_policy(usage: x509.ObjectIdentifier) -> verification.ExtensionPolicy:
    """The Web's policy, but for what CAs of meshes leave out or mark otherwise."""

    def check(
        _policy: verification.Policy,
        _leaf: x509.Certificate,
        found: x509.ExtendedKeyUsage | None,
    ) -> None:
        if found is not None and usage not in found:
            raise ValueError("the certificate is for another usage")

    return (
        verification.ExtensionPolicy.webpki_defaults_ee()
        .may_be_present(x509.AuthorityKeyIdentifier, _ANY, None)
        .require_present(x509.SubjectAlternativeName, _ANY, None)
        .may_be_present(x509.ExtendedKeyUsage, _ANY, check)
    )


_ANY: Final = verification.Criticality.AGNOSTIC
_CA: Final = (
    verification.ExtensionPolicy.webpki_defaults_ca()
    .may_be_present(x509.AuthorityKeyIdentifier, _ANY, None)
    .may_be_present(x509.SubjectKeyIdentifier, _ANY, None)
)
