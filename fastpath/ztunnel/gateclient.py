"""A client of a sandbox that came by HBONE: a CONNECT that a gate holds.

To `fastpath.tsi` it is a client as any: it is offered to the guest, perhaps again, and
ends with an answer in place of a reset. Who it is, its certificate has proved.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from fastpath.tsi.clients import Client

if TYPE_CHECKING:
    from fastpath.ztunnel.istio.headers import Said
    from fastpath.ztunnel.istio.inbound import Accepted
    from vhost_user.engine import DeviceHandle, SocketAddress


class Holder(Protocol):
    """The gate that holds a client's CONNECT."""

    def offer(
        self, client: GateClient, guest: DeviceHandle, listener: int, port: int
    ) -> int | None:
        """Offer it to a guest; None: it is gone."""
        ...

    def refuse(self, client: GateClient, error: int) -> None:
        """Answer it by the status for an errno."""
        ...

    def decide(
        self, client: GateClient, guest: DeviceHandle, listener: int, first_port: int
    ) -> None:
        """Have the engine offer others that ask the same by itself."""
        ...

    def let_go(self, client: GateClient) -> None:
        """The guest has it."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class GateClient(Client):
    """One CONNECT, and the connection that it becomes."""

    holder: Holder
    conn: int
    """The gate's; another one is the guest's."""
    source: SocketAddress
    """Of its tunnel; `address` is what the program sees."""
    authority: str
    """As it came."""
    accepted: Accepted
    """Where it goes, and what policies are asked about."""
    host: str = ""
    """The service that it was asked for, as `forwarded` says."""
    far: bool = False
    """It comes from another network, through a gateway: its IP names nobody here."""
    said: Said | None = None
    """What it says of itself in `baggage`."""
    preface: bytes = b""
    """What the program gets before the peer's bytes."""
    alike: bool = False
    """Others that say the same may go the same way, unasked."""

    @property
    def gated(self) -> bool:
        """It came by HBONE."""
        return True

    def offer(self, guest: DeviceHandle, listener: int, *, port: int) -> int:
        """Ask a guest to take it.

        Raises:
            StateError: the ports are in use, or the VM may have no more.
            ConnectionResetError: it has left.
        """
        found = None
        if not self.gone:
            found = self.holder.offer(self, guest, listener, port)
        if found is None:
            self.gone = True
            raise ConnectionResetError(errno.ECONNRESET, "the peer reset the stream")
        return found

    def decide(self, guest: DeviceHandle, listener: int, first_port: int) -> None:
        """Others that ask the same may be offered by the engine itself.

        Not, if the guest has refused this one: it is offered again from here.
        """
        if self.alike:
            self.alike = False
            self.holder.decide(self, guest, listener, first_port)

    def reset(self, error: int = errno.ECONNREFUSED) -> None:
        """Answer it by a status: there is no connection."""
        self.holder.refuse(self, error)

    def release(self) -> None:
        """The guest has it."""
        self.holder.let_go(self)
