"""Material for whoever speaks TLS: contexts of Python's `ssl`, and PEM files.

The contexts are those of HBONE: TLS 1.3, both sides show a certificate, ALPN `h2`, no
session is resumed. They check that a peer's chain ends in our roots and that it is its
time. Whose it is, and whether it was revoked, `peers.Verifier` says; who uses a context
asks it once the handshake is over. A rotation makes a new context for new connections,
and old connections go on.

Spec: RFC 8446, section 4.4.2; Python, `ssl.SSLContext`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import ssl
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from fastpath.mesh.issued import Issued

ALPN: Final = "h2"
DATA: Final = "..data"
KEY: Final = "key.pem"
CHAIN: Final = "cert-chain.pem"
ROOTS: Final = "root-cert.pem"


def server_context(material: Issued) -> ssl.SSLContext:
    """Return a context for a server that asks its clients for certificates."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, material)
    context.num_tickets = 0
    return context


def client_context(material: Issued) -> ssl.SSLContext:
    """Return a context for a client; it sends no server name."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, material)


class PemDirectory:
    """PEM files for another program, all of one issue at any time.

        PATH/key.pem           mode 0600
        PATH/cert-chain.pem    leaf first
        PATH/root-cert.pem

    They are laid out as in a mounted Secret, whose watchers know it: symlinks into
    `..data`, a symlink that moves in one step. The issue before is kept, for a program
    that is just reading it.

    Args:
        path: a directory of ours; made if it is missing, mode 0700.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = path / KEY
        self.chain = path / CHAIN
        self.roots = path / ROOTS

    def write(self, material: Issued) -> None:
        """Make `material` the current one.

        Raises:
            OSError: it can't be written; what was there stays.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = self.path / DATA
        before = data.readlink().name if data.is_symlink() else None
        folder = self.path / f"..{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        try:
            _write(folder / KEY, material.key_pem)
            _write(folder / CHAIN, material.chain_pem)
            _write(folder / ROOTS, material.roots_pem)
            _link(data, folder.name)
        except BaseException:
            shutil.rmtree(folder)
            raise
        for each in (self.key, self.chain, self.roots):
            if not each.is_symlink():
                _link(each, f"{DATA}/{each.name}")
        for old in self.path.glob(f"..{'?' * 16}"):
            if old.name not in (folder.name, before):
                shutil.rmtree(old, ignore_errors=True)


def _context(protocol: int, material: Issued) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # a SPIFFE identity is no host's name
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=material.roots_pem.decode())
    context.set_alpn_protocols([ALPN])
    _load_key(context, material)
    return context


def _load_key(context: ssl.SSLContext, material: Issued) -> None:
    """Load chain and key, which `ssl` takes from a file only: one in memory."""
    with os.fdopen(os.memfd_create("material", os.MFD_CLOEXEC), "wb") as file:
        file.write(material.chain_pem + material.key_pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _link(path: Path, target: str) -> None:
    """Have `path` lead to `target`, in one step, whatever it was."""
    step = path.with_name(f"{path.name}.new")
    step.unlink(missing_ok=True)
    step.symlink_to(target)
    step.rename(path)
