"""Host to guest over vsock: connections to this host's ports go on to the guest.

What `--forward-listen` of vhost-device-vsock does. A client's port is the guest's
port, its socket is the connection; no protocol comes before its bytes. The way
back, guest to host, is `Vsock` in `targets.py`.

A port is listened on for whoever can reach this host by vsock: programs here by
CID 1 (module vsock_loopback), and other guests by CID 2 (vhost_vsock).
"""

from __future__ import annotations

import functools
import logging
import socket
from typing import TYPE_CHECKING, Final

from vhost_user.errors import VhostUserError
from vhost_user.sockets import Listener
from vhost_user.vsock.packet import CID_ANY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.vsock.device import VsockDevice

log = logging.getLogger(__name__)

_BACKLOG: Final = 128


class ForwardListener:
    """Accepts vsock clients of this host and connects them to the guest.

    Args:
        device: whose guest it is.
        ports: where to listen, and where in the guest the clients arrive.
    """

    def __init__(self, device: VsockDevice, ports: Sequence[int]) -> None:
        self.refused = 0
        """Clients closed because the guest has no room for them."""
        self._device = device
        self._ports = tuple(ports)
        self._listeners: list[Listener] = []

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: a port is taken, or this host has no vsock; `filename` is set.
        """
        for port in self._ports:
            on_client = functools.partial(self._open, port)
            listener = Listener(f"vsock port {port}", on_client)
            listener.listen(_listen(port))
            self._listeners.append(listener)

    async def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _open(self, port: int, sock: socket.socket) -> None:
        try:
            self._device.handle.open(port, sock, hybrid=False)
        except (OSError, VhostUserError) as error:
            sock.close()
            self.refused += 1
            if self.refused & (self.refused - 1) == 0:  # 1, 2, 4, ...
                log.warning(
                    "vsock port %d: client refused: %s (%d so far)",
                    port,
                    error,
                    self.refused,
                )


def _listen(port: int) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            sock.bind((CID_ANY, port))
            sock.listen(_BACKLOG)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        error.filename = f"vsock port {port}"
        raise
    return sock
