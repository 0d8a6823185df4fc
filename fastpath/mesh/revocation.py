"""Certificate revocation lists, as Istio's ztunnel takes them (CRL_PATH).

A file holds any number of lists, PEM one after another, or one as DER; what else is in
it is skipped. No file, or an empty one, revokes nothing. A list counts for the
certificates of the issuer that signed it, of all in a chain but its root; whom no list
speaks of is good, and a list that is past its next update still counts. A list that
claims an issuer and isn't signed by that issuer's key is of another CA with that name.

Delta lists are refused: what they leave out is elsewhere.

Spec: RFC 5280, sections 5 and 6.3.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from fastpath import files
from fastpath.errors import FastpathError
from fastpath.mesh.material import UNREADABLE
from fastpath.watch import Followed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

MAX_FILE_BYTES: Final = 64 << 20
_BEGIN: Final = b"-----BEGIN X509 CRL-----"
_END: Final = b"-----END X509 CRL-----"
_KNOWN: Final = frozenset(
    {x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid}
    | {x509.IssuingDistributionPoint.oid}
)
"""Extensions that may be critical."""


class Revocations:
    """Lists by their issuer's name."""

    def __init__(self, lists: Iterable[x509.CertificateRevocationList] = ()) -> None:
        self._lists: dict[bytes, list[x509.CertificateRevocationList]] = {}
        for each in lists:
            self._lists.setdefault(each.issuer.public_bytes(), []).append(each)

    def __len__(self) -> int:
        return sum(map(len, self._lists.values()))

    @property
    def pem(self) -> bytes:
        """The lists one after another."""
        lists = itertools.chain.from_iterable(self._lists.values())
        return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in lists)

    def find(self, chain: Sequence[x509.Certificate]) -> x509.Certificate | None:
        """The first certificate of a chain that is revoked, or None.

        Args:
            chain: leaf first, each signed by the next, its root last.
        """
        for cert, issuer in itertools.pairwise(chain):
            for each in self._lists.get(cert.issuer.public_bytes(), ()):
                revoked = each.get_revoked_certificate_by_serial_number(
                    cert.serial_number
                )
                if revoked is not None and _is_signed(each, issuer):
                    return cert
        return None


def parse(data: bytes) -> Revocations:
    """Read the content of a file.

    Raises:
        ValueError: it has a list that can't be read, or is not understood.
    """
    if not data.strip():
        return Revocations()
    if not data.lstrip().startswith(b"-----BEGIN"):
        return Revocations([_load(x509.load_der_x509_crl, data, 1)])
    blocks = [_BEGIN + part.split(_END)[0] + _END for part in data.split(_BEGIN)[1:]]
    return Revocations(
        _load(x509.load_pem_x509_crl, block, index + 1)
        for index, block in enumerate(blocks)
    )


def follow(
    path: Path, *, changed: Callable[[], None] = lambda: None
) -> Followed[Revocations]:
    """Return the lists in a file, followed once they are started.

    Args:
        path: the file, which may be missing at first; once it was there, its lists
            stay in force until there are others.
        changed: called in the event loop when there are new ones: live connections are
            to be looked at again.

    Raises:
        FastpathError: the file is there and not good, or its directory isn't there.
    """
    try:
        return Followed(
            path,
            what="revocation lists",
            hint="put it back",
            read=_read,
            parse=lambda data: _parse(data, path),
            absent=Revocations(),
            changed=changed,
        )
    except OSError as exc:
        raise FastpathError(
            f"{path.parent}", exc.strerror or str(exc), "make the directory"
        ) from exc


def _read(path: Path) -> bytes:
    try:
        return files.read(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise FastpathError(f"{path}", exc.strerror or str(exc)) from exc


def _parse(data: bytes, path: Path) -> Revocations:
    try:
        return parse(data)
    except ValueError as exc:
        hint = "put PEM lists there, one after another"
        raise FastpathError(f"{path}", f"{exc}", hint) from exc


def _load(
    load: Callable[[bytes], x509.CertificateRevocationList], data: bytes, number: int
) -> x509.CertificateRevocationList:
    try:
        crl = load(data)
        crl.issuer.public_bytes()
        extensions = list(crl.extensions)
    except UNREADABLE as exc:
        raise ValueError(f"list {number} can't be read: {exc}") from exc
    for each in extensions:
        if each.critical and each.oid not in _KNOWN:
            name = each.oid.dotted_string
            raise ValueError(f"list {number} has the critical extension {name}")
    return crl


def _is_signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (*UNREADABLE, InvalidSignature):
        return False
