"""Where a certificate service is: an address such as CA_ADDRESS of Istio's ztunnel."""

from __future__ import annotations

import urllib.parse
from typing import Final

from fastpath.errors import FastpathError

DEFAULT_PORT: Final = 15012
"""istiod's."""


def parse_address(text: str) -> str:
    """Return the `HOST:PORT` of an address such as CA_ADDRESS.

    Raises:
        FastpathError: it is none.
    """
    try:
        parsed = urllib.parse.urlsplit(text)
        port = parsed.port or DEFAULT_PORT
    except ValueError:
        parsed, port = urllib.parse.urlsplit(""), 0
    bare = parsed.path in ("", "/") and not parsed.query and not parsed.fragment
    if parsed.scheme != "https" or not parsed.hostname or not bare or parsed.username:
        raise FastpathError(
            f"CA address {text}", "is no https://HOST:PORT", "https://localhost:15012"
        )
    host = f"[{parsed.hostname}]" if ":" in parsed.hostname else parsed.hostname
    return f"{host}:{port}"
