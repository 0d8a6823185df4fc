"""Other proxies that connections are handed to: what Python tells the engine of one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhost_user import targets
from vhost_user._native import ffi, lib
from vhost_user.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv6Address

    from vhost_user._vu import CStruct
    from vhost_user.targets import SocketAddress


@dataclass(frozen=True, slots=True)
class UnixProxy:
    """A stream unix socket: each connection begins with a PROXY protocol v2 header.

    Its source is the address of the same IP version and the lower half of the guest's
    vsock port; without such an address the connection fails with ENETUNREACH.
    """

    path: str
    addresses: Sequence[IPv4Address | IPv6Address]
    """The guest's; the first of each version."""
    identity: str = ""
    """In TLV 0xD0, if there is one: a SPIFFE ID."""


@dataclass(frozen=True, slots=True)
class Socks5Proxy:
    """A SOCKS5 proxy without authentication."""

    address: SocketAddress


Proxy = UnixProxy | Socks5Proxy
"""`enum vu_handoff_kind`."""


def encode(proxy: Proxy) -> CStruct:
    """Return `proxy` as a `struct vu_handoff_config *`.

    Raises:
        StateError: a path or an identity is too long, or an address is no IP.
    """
    raw = ffi.new("struct vu_handoff_config *")
    who = b""
    if isinstance(proxy, UnixProxy):
        raw.kind = lib.VU_HANDOFF_UNIX
        where, who = os.fsencode(proxy.path), proxy.identity.encode()
        targets.put_addresses(raw, proxy.addresses)
    else:
        raw.kind = lib.VU_HANDOFF_SOCKS5
        where = targets.sockaddr(proxy.address)
    if len(where) > len(raw.addr) or len(who) > len(raw.identity):
        raise StateError(f"{proxy}: its address or identity is too long")
    raw.addr_len, raw.identity_len = len(where), len(who)
    ffi.memmove(raw.addr, where, len(where))
    ffi.memmove(raw.identity, who, len(who))
    return raw
