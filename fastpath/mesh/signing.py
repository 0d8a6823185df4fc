"""Certificate requests: made for a workload, and judged by a CA.

A request is the client's word: its key is taken, once the request proves to be
signed with it, and nothing else. Names in it may only repeat the identity that the
caller was granted; other extensions and the subject are dropped.

Spec: RFC 2986, section 4.1; SPIFFE X.509-SVID, section 5.2 "Leaf Validation".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from fastpath.mesh.material import UNREADABLE, private_pem

if TYPE_CHECKING:
    from fastpath.identity import Identity

MAX_CSR_BYTES: Final = 8 << 10
"""One with an RSA key of 4096 bits has less than 2 KiB."""
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 4096
CURVES: Final = (ec.SECP256R1, ec.SECP384R1)

Key = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class NotGrantedError(Exception):
    """The request asks for another name than the caller's."""


def make(identity: Identity) -> tuple[bytes, bytes]:
    """Make a P-256 key and a request for `identity`, as Istio's ztunnel makes it.

    Returns:
        The key and the request, as PEM.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(names(identity), critical=True)
        .sign(key, hashes.SHA256())
    )
    return private_pem(key), csr.public_bytes(serialization.Encoding.PEM)


def judge(csr_pem: bytes, granted: Identity) -> Key:
    """Return the key that a request proves to have.

    Args:
        csr_pem: the request.
        granted: who the caller is.

    Raises:
        ValueError: it is no request, or its key is not to be certified.
        NotGrantedError: it names somebody or something else.
    """
    if len(csr_pem) > MAX_CSR_BYTES:
        raise ValueError(f"the CSR has more than {MAX_CSR_BYTES} bytes")
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        public_key = csr.public_key()
        asked = _names_of(csr)
    except UNREADABLE as exc:
        raise ValueError(f"the CSR can't be read: {exc}") from exc
    key = _acceptable(public_key)  # before it is computed with
    if not _is_signed(csr):
        raise ValueError("the CSR is not signed with its own key")
    for name in sorted(asked - {f"URI:{granted}"}):
        raise NotGrantedError(
            f"the CSR asks for {name}, and the token is for {granted}"
        )
    return key


def names(identity: Identity) -> x509.SubjectAlternativeName:
    """The extension that names an identity."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])


def _acceptable(key: object) -> Key:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, CURVES):
        return key
    if (
        isinstance(key, rsa.RSAPublicKey)
        and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
    ):
        return key
    raise ValueError(
        f"its key must be P-256, P-384 or RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits"
    )


def _is_signed(csr: x509.CertificateSigningRequest) -> bool:
    try:
        return csr.is_signature_valid
    except (*UNREADABLE, InvalidSignature):
        return False


def _names_of(csr: x509.CertificateSigningRequest) -> set[str]:
    try:
        extension = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return {
        f"{'URI' if isinstance(each, x509.UniformResourceIdentifier) else 'name'}:"
        f"{each.value}"
        for each in extension.value
    }
