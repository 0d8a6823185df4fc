"""A CA of a mesh for tests: certificates with SPIFFE identities, good and bad."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

HOUR = dt.timedelta(hours=1)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
WEB = "spiffe://cluster.local/ns/default/sa/web"
DB = "spiffe://cluster.local/ns/prod/sa/db"
FOREIGN = "spiffe://evil.example/ns/default/sa/web"


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, text)])


def _pem(*certs: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certs)


@dataclass
class Leaf:
    """A certificate with its key, as PEM."""

    chain: bytes
    key: bytes
    serial: int


@dataclass
class Ca:
    """A root that issues what it is told."""

    name: str = "cluster.local"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self.cert = self._sign(_name(self.name), self.key.public_key(), 1, True, -1, 24)

    @property
    def roots(self) -> bytes:
        return _pem(self.cert)

    def _sign(self, subject, public, serial, ca, begin_h, end_h, *extensions):
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(_name(self.name))
            .public_key(public)
            .serial_number(serial)
            .not_valid_before(now + begin_h * HOUR)
            .not_valid_after(now + end_h * HOUR)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, *uris: str, begin_h: int = -1, end_h: int = 12, dns=()) -> Leaf:
        """Issue a certificate; its SAN has these URIs, and DNS names."""
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(each) for each in uris
        ]
        names += [x509.DNSName(each) for each in dns]
        names = names or [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        cert = self._sign(
            x509.Name([]),
            key.public_key(),
            serial,
            False,
            begin_h,
            end_h,
            (x509.SubjectAlternativeName(names), True),
            (x509.ExtendedKeyUsage(BOTH), False),
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return Leaf(_pem(cert), pem, serial)

    def crl(self, *serials: int, next_update_h: int = 12) -> bytes:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(_name(self.name))
            .last_update(now - 2 * HOUR)
            .next_update(now + next_update_h * HOUR)
        )
        for serial in serials:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(serial)
                .revocation_date(now - HOUR)
                .build()
            )
        crl = builder.sign(self.key, hashes.SHA256())
        return crl.public_bytes(serialization.Encoding.PEM)


def context(
    folder: Path,
    leaf: Leaf | None,
    roots: bytes,
    *,
    server: bool,
    alpn: tuple[str, ...] = ("h2",),
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> ssl.SSLContext:
    """Return a context of Python's, which asks for nothing but a chain."""
    made = ssl.SSLContext(
        ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    )
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.minimum_version = made.maximum_version = version
    made.load_verify_locations(cadata=roots.decode())
    if alpn:
        made.set_alpn_protocols(list(alpn))
    if leaf is not None:
        chain, key = folder / "chain.pem", folder / "key.pem"
        chain.write_bytes(leaf.chain)
        key.write_bytes(leaf.key)
        made.load_cert_chain(chain, key)
    return made
