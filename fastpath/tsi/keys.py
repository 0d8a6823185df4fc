"""Keys of sandboxes: who has one may speak for the guest (docs/tsi-protocol.md).

The host gives init the key on init's own stream, and init keeps it where only root
reads it. So a program can't announce listeners, or take streams, by being in the guest.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fastpath.errors import FastpathError
from fastpath.tsi.protocol import KEY_SIZE

if TYPE_CHECKING:
    from pathlib import Path


def make(path: Path) -> bytes:
    """Write a new key to a file that only its owner reads; return it."""
    key = os.urandom(KEY_SIZE)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        file.write(key.hex() + "\n")
    return key


def read(path: Path) -> bytes:
    """Return the key in a file.

    Raises:
        FastpathError: it has none.
    """
    hint = f"openssl rand -hex {KEY_SIZE} > {path}"
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as error:
        raise FastpathError(f"key {path}", error.strerror or str(error), hint) from None
    except ValueError:
        key = b""
    if len(key) != KEY_SIZE:
        raise FastpathError(f"key {path}", f"not {2 * KEY_SIZE} hex digits", hint)
    return key
