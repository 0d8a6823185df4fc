"""What a TSI service asks of whoever decides on connections.

Spec: docs/tsi-protocol.md, section 7 "Trust".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fastpath.tsi.policy import SandboxPolicy
    from vhost_user.engine import Event, SocketAddress, Target


@dataclass(frozen=True, slots=True)
class Here:
    """This process is the other end: `serve` takes over a connected socket."""

    serve: Callable[[socket.socket], None]


@dataclass(frozen=True, slots=True)
class Later:
    """It can't be said yet: `then` calls back once the router may be asked again."""

    then: Callable[[Callable[[], object]], None]


@dataclass(frozen=True, slots=True)
class Routed:
    """A router's answer."""

    target: Target | Here | Later
    """`Reset(errno)`: denied."""
    cacheable: bool
    """Whether the answer to this destination will always be the same."""


class Router(Protocol):
    """Decides on connections and hears of their fate, in the event loop."""

    def set_policy(self, policy: SandboxPolicy) -> None:
        """Decide by `policy` from now on, and end what it denies."""
        ...

    def route(self, destination: SocketAddress, conn: int) -> Routed:
        """Decide on the request `conn`. Not called if an answer was cacheable."""
        ...

    def opened(self, event: Event, destination: SocketAddress) -> None:
        """A connection is established; perhaps one that `route` never saw."""
        ...

    def failed(self, event: Event, destination: SocketAddress) -> None:
        """A connection never was."""
        ...

    def closed(self, event: Event, destination: SocketAddress) -> None:
        """An established connection ended."""
        ...
