"""Records of TLS 1.3 by hand, from RFC 8446 sections 5 and 7; AES-GCM is OpenSSL's."""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CCS, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23
TAG = 16


def expand(hash_name: str, secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label of section 7.1, for one block of output."""
    label = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0" + b"\1"
    return hmac.digest(secret, info, hash_name)[:length]


class Direction:
    """Keys of one direction.

    Args:
        secret: its traffic secret: 32 bytes with AES-128-GCM, 48 with AES-256-GCM.
    """

    def __init__(self, secret: bytes) -> None:
        self.hash, size = ("sha256", 16) if len(secret) == 32 else ("sha384", 32)
        self.secret, self.number = secret, 0
        self._cipher = AESGCM(expand(self.hash, secret, b"key", size))
        self.iv = expand(self.hash, secret, b"iv", 12)

    def next(self) -> Direction:
        """Return what a KeyUpdate makes of it (section 7.2)."""
        size = len(self.secret)
        return Direction(expand(self.hash, self.secret, b"traffic upd", size))

    def seal(self, inner: bytes, head: bytes = b"") -> bytes:
        """Return the record of a TLSInnerPlaintext: content, type and padding."""
        head = head or b"\x17\x03\x03" + (len(inner) + TAG).to_bytes(2, "big")
        return head + self._cipher.encrypt(self._nonce(), inner, head)

    def open(self, record: bytes) -> tuple[int, bytes]:
        """Return a record's type and content."""
        plain = self._cipher.decrypt(self._nonce(), record[5:], record[:5])
        plain = plain.rstrip(b"\0")
        return plain[-1], plain[:-1]

    def _nonce(self) -> bytes:
        number = self.number.to_bytes(12, "big")
        self.number += 1
        return bytes(a ^ b for a, b in zip(self.iv, number, strict=True))
