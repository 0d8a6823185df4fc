"""The embedded CA: a P-256 root in a directory, and certificates from it.

For development, and for one node without Istio's control plane. A restart has the
same root. What it issues is what Istio's CA issues: an empty subject, one SPIFFE URI
as critical SAN, digitalSignature and keyEncipherment, serverAuth and clientAuth.

    DIR/root-cert.pem    whom to trust: CA_ROOT_CA of Istio's ztunnel
    DIR/root-key.pem     mode 0600; whoever reads it is any workload
    DIR/lock             held while a root is made

Time is passed in.

Spec: RFC 5280, sections 4.1 and 4.2; SPIFFE X.509-SVID, sections 4 and 5.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import stat
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastpath import files
from fastpath.errors import FastpathError
from fastpath.mesh import signing
from fastpath.mesh.issued import MAX_PEM_BYTES, stamp
from fastpath.mesh.material import (
    UNREADABLE,
    Material,
    certificates,
    pem,
    private_pem,
    public_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificatePublicKeyTypes,
    )

    from fastpath.identity import Identity

ROOT_CERT: Final = "root-cert.pem"
ROOT_KEY: Final = "root-key.pem"
ROOT_LIFE: Final = timedelta(days=3650)
MAX_SKEW: Final = timedelta(minutes=2)
"""How much earlier than now a certificate begins, for clocks that are behind; a tenth
of its life at most, so that half of it is not over at once."""
KEY_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Authority:
    """A root that signs; `open()` finds or makes it."""

    trust_domain: str
    root: x509.Certificate
    root_path: Path
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, directory: Path, trust_domain: str, now: datetime) -> Self:
        """Take the root in `directory`, or make one there.

        Raises:
            FastpathError: what is there is no root, another trust domain's, over, or
                readable for others; others can put another one there.
            OSError: the directory can't be used; `filename` says which.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(directory.stat().st_mode)
        if mode & 0o002:  # whoever else has it can put a root of theirs there
            why = f"others can write to it (mode {mode:04o})"
            raise FastpathError(f"{directory}", why, f"chmod 700 {directory}")
        cert_path, key_path = directory / ROOT_CERT, directory / ROOT_KEY
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not cert_path.exists():
                key = _load_key(key_path) if key_path.exists() else _make_key(key_path)
                files.replace(cert_path, _make_root(key, trust_domain, now).decode())
            else:
                key = _load_key(key_path)
        root = _load_root(cert_path)
        self = cls(trust_domain, root, cert_path, key)
        self._check(now)
        return self

    @property
    def root_pem(self) -> bytes:
        """Whom to trust."""
        return pem((self.root,))

    def issue(
        self, csr_pem: bytes, identity: Identity, life: timedelta, now: datetime
    ) -> bytes:
        """Certify the key of a request for `identity`; return the leaf as PEM.

        Raises:
            ValueError: see `signing.judge`; also an identity of another trust domain.
            signing.NotGrantedError: see there.
        """
        if identity.trust_domain != self.trust_domain:
            raise ValueError(f"{identity} is not of trust domain {self.trust_domain}")
        key = signing.judge(csr_pem, identity)
        usages = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
        leaf = self._sign(key, signing.names(identity), usages, life, now)
        return pem((leaf,))

    def workload(self, identity: Identity, life: timedelta, now: datetime) -> Material:
        """A new key and its certificate for `identity`, without a request's way round.

        Raises:
            ValueError: an identity of another trust domain.
        """
        key_pem, csr_pem = signing.make(identity)
        leaf = self.issue(csr_pem, identity, life, now)
        return Material.parse(key_pem, leaf, self.root_pem)

    def server(
        self, hosts: Iterable[str], life: timedelta, now: datetime
    ) -> tuple[bytes, bytes]:
        """A new key and certificate chain for a server that answers at `hosts`, as PEM.

        It names no identity, so no workload takes it for another one.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_host(each) for each in hosts])
        usages = (ExtendedKeyUsageOID.SERVER_AUTH,)
        leaf = self._sign(key.public_key(), names, usages, life, now)
        return private_pem(key), pem((leaf, self.root))

    def _sign(
        self,
        key: CertificatePublicKeyTypes,
        names: x509.SubjectAlternativeName,
        usages: Iterable[x509.ObjectIdentifier],
        life: timedelta,
        now: datetime,
    ) -> x509.Certificate:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(
            self.key.public_key()
        )
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - min(MAX_SKEW, life / 10))
            .not_valid_after(min(now + life, self.root.not_valid_after_utc))
            .add_extension(names, critical=True)
            .add_extension(_key_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(authority, critical=False)
            .sign(self.key, hashes.SHA256())
        )

    def _check(self, now: datetime) -> None:
        """Refuse a root that can't sign for this trust domain."""
        fresh = f"move {self.root_path.parent} away, and a new root is made"
        if public_bytes(self.key.public_key()) != public_bytes(self.root.public_key()):
            raise FastpathError(f"{self.root_path}", f"is not {ROOT_KEY}'s", fresh)
        if now >= self.root.not_valid_after_utc:
            over = stamp(self.root.not_valid_after_utc)
            raise FastpathError(f"{self.root_path}", f"was valid until {over}", fresh)
        owner = self.root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        found = [each.value for each in owner]
        if found != [self.trust_domain]:
            raise FastpathError(
                f"{self.root_path}",
                f"is the root of {found}, not of trust domain {self.trust_domain}",
                "give each trust domain a --dir of its own",
            )


def _make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    new = path.with_name(f".{path.name}.new")  # the lock is ours: nobody else's
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, KEY_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private_pem(key))
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    return key


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        data = files.read_secret(path, MAX_PEM_BYTES)
    except FileNotFoundError:
        raise FastpathError(
            f"{path}",
            f"is missing beside {ROOT_CERT}",
            f"put it back, or move {path.parent} away, and a new root is made",
        ) from None
    except ValueError as exc:
        raise FastpathError(f"{path}", str(exc), f"chmod 600 {path}") from exc
    try:
        key = serialization.load_pem_private_key(data, None)
    except UNREADABLE as exc:
        raise FastpathError(f"{path}", f"is no private key: {exc}") from exc
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(
        key.curve, ec.SECP256R1
    ):
        return key
    raise FastpathError(f"{path}", "is no key on P-256")


def _make_root(
    key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime
) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain)])
    subject_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - MAX_SKEW)
        .not_valid_after(now + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(_key_usage(sign=True), critical=True)
        .add_extension(subject_key, critical=False)
        .sign(key, hashes.SHA256())
    )
    return pem((root,))


def _load_root(path: Path) -> x509.Certificate:
    try:
        return certificates("it", files.read(path, MAX_PEM_BYTES))[0]
    except ValueError as exc:
        raise FastpathError(f"{path}", f"{exc}") from exc


def _key_usage(*, sign: bool) -> x509.KeyUsage:
    """A root's that signs certificates and revocation lists, or a leaf's."""
    return x509.KeyUsage(
        digital_signature=not sign,
        key_encipherment=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
