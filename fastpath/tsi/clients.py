"""Clients of a guest's listeners; where those are reachable; whom agents know."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from fastpath.tsi.addresses import Address
    from fastpath.tsi.protocol import Listen
    from vhost_user.engine import DeviceHandle, Event, SocketAddress

_RESET: Final = struct.pack("ii", 1, 0)  # struct linger


@dataclass(slots=True, eq=False)
class Client:
    """A connection from outside, from accept() to its end."""

    address: SocketAddress
    """The client's."""
    reached: SocketAddress
    """Where it connected to, on the host."""
    port: int
    """TCP port in the guest."""
    sock: socket.socket | None = field(default=None, repr=False)
    """None if the engine alone has it."""
    deadline: float = 0.0
    range: int | None = None
    """Whose reference in `Peers` it holds."""
    shown: Address | None = None
    """Its IP, as accept() in the guest gives it."""
    taker: tuple[Announcer, Listen] | None = None
    """Whom the engine may offer others of its IP to, from its range."""
    ended: bool = False
    """By the policy."""
    denial: str = ""
    """Why an authorization policy denies it; empty: none does."""
    told: bool = False
    """Whether it was said what policies would do that are only tried."""
    identity: str = ""
    """A SPIFFE ID, if a proxy that it came by said so."""
    tunnelled: bool = False
    """It came by a proxy: its port may be that of others of its IP."""
    gone: bool = False
    """It left before the guest took it."""

    @classmethod
    def of(cls, event: Event, *, deadline: float = 0.0) -> Client:
        """The client that an event with a tag is about."""
        assert event.src is not None
        assert event.dst is not None
        return cls(event.src, event.dst, event.tag, deadline=deadline)

    @property
    def ip(self) -> Address:
        """The client's, without a scope."""
        return ipaddress.ip_address(self.address[0].partition("%")[0])

    @property
    def gated(self) -> bool:
        """Whether it came by HBONE, not by a TCP listener."""
        return False

    def offer(self, guest: DeviceHandle, listener: int, *, port: int) -> int:
        """Ask a guest to take it; it may be asked again if it refuses.

        Args:
            guest: whose program listens.
            listener: vsock port that it listens on.
            port: on our side.

        Returns:
            The connection's id.

        Raises:
            StateError: the ports are in use, or the VM may have no more.
            ConnectionResetError: it has left.
            OSError: no descriptor is left.
        """
        assert self.sock is not None
        return guest.offer(listener, self.sock, port=port)

    def decide(self, guest: DeviceHandle, listener: int, first_port: int) -> None:
        """The engine may offer others like it by itself, now that it is offered.

        Args:
            guest: as of `offer`.
            listener: the same; no other one listens on that port.
            first_port: of the client's IP, which the guest knows.
        """

    def reset(self, error: int = errno.ECONNREFUSED) -> None:  # noqa: ARG002
        """End it, as TCP does when nobody listens.

        Args:
            error: why, for those that can be told.
        """
        if self.sock is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.release()

    def release(self) -> None:
        """Close our descriptor; the engine may have another."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None


Place = TypeVar("Place", bound="Hashable")


class Publisher(Protocol[Place]):
    """Says where a guest's ports are reachable, and hears of their connections."""

    def addresses(self, port: int, version: int, *, covered: bool) -> Sequence[Place]:
        """Return where a guest's TCP port is reachable; none: it is not published.

        Args:
            port: in the guest.
            version: 4 or 6: of the clients.
            covered: whether the policy publishes it.
        """
        ...

    @property
    def gone(self) -> bool:
        """Whether nothing is reachable any more, ever."""
        ...

    def publishes(self, port: int, *, covered: bool) -> bool:
        """Whether a guest's TCP port is reachable, by an address or by the tunnel."""
        ...

    def gated(self, *, covered: bool) -> bool:
        """Whether clients may come to a guest's TCP port by HBONE.

        Args:
            covered: whether the policy publishes it.
        """
        ...

    def tunnel(self) -> socket.socket | None:
        """Open the listener of clients that come with a header; None: there is none.

        Raises:
            FastpathError: it cannot be opened.
        """
        ...

    def listen(self, address: Place, backlog: int) -> socket.socket:
        """Open a listener at one of the addresses, with the program's backlog.

        Raises:
            OSError: it cannot be opened; its errno is the program's.
        """
        ...

    def denial(self, client: Client) -> str:
        """Return why a client may not connect; empty: it may. Asked again later."""
        ...

    def opened(self, client: Client) -> None:
        """The guest took a client."""
        ...

    def failed(self, client: Client, error: int) -> None:
        """A client never got through; `error` is an errno."""
        ...

    def ended(self, client: Client) -> None:
        """An established connection is ended: its port is not published any more.

        Or, with a `denial` of the client, that is why.
        """
        ...

    def closed(self, client: Client, event: Event) -> None:
        """An established connection ended."""
        ...


DECIDED: Final = 1 << 31
"""`Event.tag` of clients that the engine offers by a `Client.decide` has this bit."""


class Decider(Protocol):
    """Knows which clients the engine offers by itself, of those without a door."""

    def client(self, event: Event) -> Client:
        """The client that an event with one of its tags is about."""
        ...

    def forget_all(self) -> None:
        """Have the engine offer nobody by itself."""
        ...

    def forgot(self, tag: int) -> None:
        """No event has that tag any more."""
        ...


@dataclass(slots=True, eq=False)
class Announcer:
    """An agent, as far as its listeners go."""

    send: Callable[[bytes], bool]
    """Sends a message; False: there is no room, it is lost."""
    listeners: dict[int, Listen] = field(default_factory=dict)
    """By vsock port."""
    known: dict[int, int] = field(default_factory=dict)
    """The ranges that it knows: which of their owners (`Peers.owner`)."""
