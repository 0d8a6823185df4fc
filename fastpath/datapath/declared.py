"""A path as data: namespaces by role, steps, hops, and where its two ends are.

`build` makes one of these, `show` prints one, `probe` sends a connection over one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ipaddress import IPv4Interface

    from fastpath.datapath.steps import Step

NODE: Final = "node"
POD: Final = "pod"
CONTAINER: Final = "container"
ZTUNNEL: Final = "ztunnel"
SERVER: Final = "server"
GUEST: Final = "guest"
"""No namespace of the host's: the microVM itself."""

OUTBOUND_PORT: Final = 15001
INBOUND_PORT: Final = 15006
"""Both are Istio's."""


class Capture(enum.Enum):
    """How a connection of the sandbox reaches ztunnel's listener."""

    TPROXY = "tproxy"
    """As it is: the listener's own address is the original destination."""
    REDIRECT = "redirect"
    """By NAT: SO_ORIGINAL_DST says where it wanted to go."""
    NONE = "none"
    """Not at all: there is no mesh."""


@dataclass(frozen=True, slots=True)
class Hop:
    """A device that the sandbox's packets pass, in this order."""

    at: str
    device: str
    what: str
    replies: bool = True
    """Whether they come back over it, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Where the microVM is attached."""

    address: IPv4Interface
    """Of the guest's eth0."""
    gateway: str
    mac: str
    at: str = POD
    device: str = "tap0_kata"
    """What its eth0 is attached to: a step's that `World` keeps."""
    mtu: int = 1500
    by_proxy: bool = False
    """Who it is attached to makes its connections anew: no hop sees its own port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Datapath:
    """One standard path."""

    name: str
    title: str
    spec: str
    """Whose sources say that it is built like this."""
    picture: str
    steps: tuple[Step, ...]
    hops: tuple[Hop, ...]
    """From the sandbox to ztunnel."""
    inbound: tuple[Hop, ...] = ()
    """From a client on the node to the sandbox; empty: that half isn't built."""
    sandbox: Sandbox
    capture: Capture
    ztunnel: str = ZTUNNEL
    """The role of the namespace that ztunnel's listener is in."""
    server: str
    """The address of a server behind ztunnel, in `SERVER`."""
    answers: str = ""
    """The address, in `SERVER`, of who answers in ztunnel's place; empty: ztunnel does.
    """
    tunnel: str = ""
    """The node's tunnel device; empty: there is no tunnel."""
    every_packet: bool = field(default=True)
    """Whether each packet takes the tunnel; else the first of a connection."""
    inside: tuple[Step, ...] = ()
    """What is done in the guest, where a sidecar listens at `OUTBOUND_PORT`; empty:
    nothing, and there is none."""
    image: str = ""
    """The guest's, if that takes one of its own."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Those of its namespaces, in the order in which they come up."""
        return tuple(dict.fromkeys(step.at for step in self.steps))
