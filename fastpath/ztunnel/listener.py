"""The sockets that connections arrive on: captured ones, and clients of sandboxes.

Spec: Linux, Documentation/networking/tproxy.rst; ip(7) for IP_FREEBIND.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastpath.ztunnel.model import ListenAddress
    from vhost_user.backend import Backend
    from vhost_user.vsock.hybrid import HybridListener

IP_FREEBIND = 15
"""linux/in.h; Python's socket module has no name for it."""
IP_TRANSPARENT = 19
"""linux/in.h; Python's socket module has no name for it."""
IPV6_TRANSPARENT = 75
"""linux/in6.h."""
IPV6_FREEBIND = 78
"""linux/in6.h."""
BACKLOG = 4096

_HINTS = {
    errno.EPERM: "give the process CAP_NET_ADMIN, or run it in a user and network"
    " namespace of its own: unshare -Urn",
    errno.EADDRINUSE: "end the process that listens there, or name another port in"
    " outbound",
}


def captured(address: ListenAddress, *, tproxy: bool) -> socket.socket:
    """Listen where connections to other hosts' addresses are led to.

    With TPROXY a connection's `getsockname()` is its original destination.

    Args:
        address: where.
        tproxy: they come as they are; else by NAT, which takes no right here.

    Raises:
        FastpathError: a right is missing, or the address cannot be taken.
    """
    version6 = address.host.version == 6
    family = socket.AF_INET6 if version6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if tproxy:
            sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        if tproxy and version6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        sock.bind((str(address.host), address.port))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise FastpathError(
            f"cannot open the listener of captured connections {address}",
            exc.strerror or str(exc),
            _HINTS.get(exc.errno or 0),
        ) from exc
    return sock


def published(
    address: ListenAddress,
    backlog: int,
    make: Callable[[int, int], socket.socket] = socket.socket,
) -> socket.socket:
    """Listen for clients of a sandbox.

    The address may be one that is not this host's yet: a pod's, which routes or
    another interface bring later.

    Args:
        address: where.
        backlog: the program's.
        make: makes a socket of a family and kind.

    Raises:
        OSError: the port is taken, or the address cannot be had.
    """
    version6 = address.host.version == 6
    family = socket.AF_INET6 if version6 else socket.AF_INET
    sock = make(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
        sock.bind((str(address.host), address.port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def close(sock: socket.socket | None) -> None:
    """Close a socket that the engine has not taken over."""
    if sock is not None:
        sock.close()


async def listen(server: Backend | HybridListener, path: Path) -> None:
    """Have a server of a unix socket listen.

    Raises:
        FastpathError: it can't.
    """
    try:
        await server.start()
    except OSError as exc:
        raise FastpathError(
            f"cannot listen on {path}",
            exc.strerror or str(exc),
            "name a path in a directory of yours, used by no other process",
        ) from exc
