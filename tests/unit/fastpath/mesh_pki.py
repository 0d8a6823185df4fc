"""CAs, requests and revocation lists for the tests of fastpath.mesh."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fastpath.identity import Identity
from fastpath.mesh.authority import Authority
from fastpath.mesh.material import Material, pem, private_pem

T0 = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)
SECOND = dt.timedelta(seconds=1)
WEB = Identity("cluster.local", "default", "web")
OTHER = Identity("cluster.local", "prod", "db")
FOREIGN = Identity("evil.example", "default", "web")
WEB_TOKEN = "web-" + "0" * 28
NODE_TOKEN = "node-" + "1" * 27
TOKENS = f"""
tokens:
- token: {WEB_TOKEN}
  identity: default/web
- token: {NODE_TOKEN}
  identity: istio-system/ztunnel
  impersonate: [default/*, prod/db]
"""
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def authority(folder, trust_domain="cluster.local", now=T0):
    return Authority.open(folder / trust_domain, trust_domain, now)


def uri(text):
    return x509.UniformResourceIdentifier(str(text))


def make_csr(*names, key=None, critical=True, extensions=()):
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        san = x509.SubjectAlternativeName(list(names))
        builder = builder.add_extension(san, critical=critical)
    for each in extensions:
        builder = builder.add_extension(each, critical=True)
    csr = builder.sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM)


def rsa_key(bits):
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@dataclass(frozen=True)
class Ca:
    """A CA that issues what it is told, good or bad."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def issue(
        self, *names, ca=None, usages=BOTH, begin=T0, life=DAY, key=None, serial=None
    ):
        """Return a certificate with a SAN of `names`, or a CA's by the name `ca`."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = name_of(ca) if ca else x509.Name([])
        builder = build(subject, self.cert.subject, key, begin, life, ca=bool(ca))
        if serial:
            builder = builder.serial_number(serial)
        else:
            builder = builder.serial_number(x509.random_serial_number())
        if names:
            san = x509.SubjectAlternativeName([uri(each) for each in names])
            builder = builder.add_extension(san, critical=True)
        if not ca and usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        return Ca(builder.sign(self.key, hashes.SHA256()), key)

    def material(self, *above, roots):
        """As leaf, with the CAs above it."""
        return Material.parse(
            private_pem(self.key),
            pem((self.cert, *(each.cert for each in above))),
            pem(each.cert for each in roots),
        )

    def crl(self, *serials, signer=None, begin=T0, extensions=()):
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.cert.subject)
            .last_update(begin)
            .next_update(begin + DAY)
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial)
            builder = builder.add_revoked_certificate(
                revoked.revocation_date(begin).build()
            )
        for each in extensions:
            builder = builder.add_extension(each, critical=True)
        crl = builder.sign((signer or self).key, hashes.SHA256())
        return crl.public_bytes(serialization.Encoding.PEM)


def root(name="cluster.local", *, begin=T0, life=10 * DAY):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = name_of(name)
    builder = build(subject, subject, key, begin, life, ca=True)
    cert = builder.serial_number(1).sign(key, hashes.SHA256())
    return Ca(cert, key)


def name_of(text):
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, text)])


def build(subject, issuer, key, begin, life, *, ca):
    never = ("content_commitment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys((*never, "encipher_only", "decipher_only"), False)
    usage |= dict.fromkeys(("key_cert_sign", "crl_sign"), ca)
    usage |= dict.fromkeys(("digital_signature", "key_encipherment"), not ca)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .not_valid_before(begin)
        .not_valid_after(begin + life)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
    )
