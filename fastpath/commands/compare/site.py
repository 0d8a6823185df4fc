"""Where the processes of a comparison run.

PathSite    a standard path is compared: its namespaces, `fastpath.datapath`'s
NodeSite    none is, but a hand-off takes pods' namespaces: a node for them
HostSite    neither: all stays where we are, which needs no right at all
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from fastpath.datapath import plan, pods, wires
from fastpath.datapath.declared import NODE, OUTBOUND_PORT, SERVER, Capture
from fastpath.datapath.steps import GeneveEnd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastpath.datapath.build import Built
    from fastpath.datapath.declared import Datapath
    from fastpath.datapath.netns import Namespace
    from fastpath.datapath.steps import Step
    from fastpath.vm.spec import Nic

SERVER_PORT: Final = 7007
"""Of the echo server behind ztunnel."""
HTTP_PORT: Final = 7008
"""Of the HTTP server beside it."""
PEER: Final = "198.18.4.9"
"""Of another node's ztunnel, where there are namespaces."""


class Site(Protocol):
    """What the scenario needs to know of its place."""

    geneve: str | None
    nic: Nic | None
    pod_ip: str
    """The sandbox's address, on all paths that share its microVM."""
    server: str
    """The server's address, as the guest has it."""
    listen: str
    """The same, as the server has it: another one if it is a service's."""
    capture: tuple[str, int] | None
    """How ztunnel takes captured connections, and at which port; None: there are none.
    """
    answers: str | None
    """The address of who answers where no ztunnel does; None: ztunnel does."""
    network: tuple[str, str, int] | None
    """The guest's address with its prefix, its gateway, its MTU."""
    inside: tuple[Step, ...]
    """What is done in the guest, where a sidecar takes its connections; empty: nothing.
    """
    pids: Mapping[str, int]
    """Processes that carry the standard path's packets, by name."""
    node: Namespace | None
    """Where pods can be wired to; None: nowhere."""

    def ztunnel(self, argv: Sequence[str]) -> list[str]:
        """Wrap a command line so that it runs where ztunnel does."""

    def behind(self, argv: Sequence[str]) -> list[str]:
        """Wrap a command line so that it runs where the server does."""

    def tunnel_packets(self) -> int:
        """Packets that the sandbox's node has sent into the tunnel so far."""

    def add_peer(self) -> str:
        """Return an address for another node's ztunnel, which runs `behind`."""


class HostSite:
    """No namespaces: ztunnel and the server run in our own.

    Args:
        number: of such sites in this run, from 0; each has addresses of its own.
    """

    geneve: str | None = None
    nic: Nic | None = None
    pod_ip = "10.200.1.2"
    server = "198.18.0.2"  # what leads to loopback in a guest is the guest's own
    capture: tuple[str, int] | None = None
    answers: str | None = None
    network: tuple[str, str, int] | None = None
    inside: tuple[Step, ...] = ()
    pids: Mapping[str, int] = MappingProxyType({})
    node: Namespace | None = None

    def __init__(self, number: int = 0) -> None:
        self._number = number
        self.listen = f"127.0.0.{1 + number}"

    def ztunnel(self, argv: Sequence[str]) -> list[str]:
        """Leave it as it is."""
        return list(argv)

    def behind(self, argv: Sequence[str]) -> list[str]:
        """Leave it as it is."""
        return list(argv)

    def tunnel_packets(self) -> int:
        """No tunnel, no packets."""
        return 0

    def add_peer(self) -> str:
        """One of loopback's."""
        return f"127.0.1.{1 + self._number}"


class NodeSite(HostSite):
    """A node that pods can be wired to, and no standard path.

    Args:
        node: entered; the caller leaves it.
    """

    def __init__(self, node: pods.Node) -> None:
        super().__init__()
        self.server = self.listen = str(pods.SERVER.peer.ip)
        self._node = node
        self.node: Namespace | None = node.netns

    def ztunnel(self, argv: Sequence[str]) -> list[str]:
        """Into ztunnel's namespace."""
        return self._node.ztunnel_netns.command(argv)

    def behind(self, argv: Sequence[str]) -> list[str]:
        """Into the server's namespace."""
        return self._node.server_netns.command(argv)

    def add_peer(self) -> str:
        """Beside the server."""
        wires.add_route(self._node.netns, self._node.server_netns, pods.SERVER, PEER)
        return PEER


class PathSite:
    """A standard path's namespaces.

    Args:
        path: entered; the caller leaves it.
    """

    def __init__(self, path: Built) -> None:
        declared = path.path
        self._path = path
        self.geneve: str | None = geneve_kind(declared)
        self.nic: Nic | None = path.nic
        self.pod_ip = str(declared.sandbox.address.ip)
        self.server = self.listen = declared.server
        self.capture: tuple[str, int] | None = None
        self.answers: str | None = declared.answers or None
        if declared.capture is not Capture.NONE:
            self.capture = declared.capture.value, OUTBOUND_PORT
        self.network: tuple[str, str, int] | None = (
            str(declared.sandbox.address),
            declared.sandbox.gateway,
            declared.sandbox.mtu,
        )
        self.inside = declared.inside
        self.pids: Mapping[str, int] = path.pids
        self.node: Namespace | None = path.netns[NODE]

    def ztunnel(self, argv: Sequence[str]) -> list[str]:
        """Into ztunnel's namespace."""
        return self._path.netns[self._path.path.ztunnel].command(argv)

    def behind(self, argv: Sequence[str]) -> list[str]:
        """Into the server's namespace."""
        return self._path.netns[SERVER].command(argv)

    def add_peer(self) -> str:
        """Beside the server."""
        netns = self._path.netns
        wires.add_route(netns[NODE], netns[SERVER], plan.SERVER_WIRE, PEER)
        return PEER

    def tunnel_packets(self) -> int:
        """Ask the path: a BPF tunnel's device counts nothing."""
        return self._path.tunnel_packets()


def geneve_kind(path: Datapath) -> str | None:
    """The kind of a path's Geneve tunnel; None: it has none."""
    ends = [step.kind for step in path.steps if isinstance(step, GeneveEnd)]
    return ends[0] if ends else None
