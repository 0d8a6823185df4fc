"""A node and what is wired to it: veth pairs between network namespaces.

    node            other namespaces
    NAME ---------- eth0, whose default route is the node

Everything that a path of ours stands on begins like this.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

from fastpath.datapath.links import Links
from fastpath.datapath.netns import sysctl

if TYPE_CHECKING:
    from fastpath.datapath.netns import Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """Two ends: a device of the node, and another namespace's `eth0`."""

    name: str
    node: IPv4Interface
    peer: IPv4Interface
    mtu: int = 1500


def join(node: Namespace, other: Namespace, wire: Wire) -> None:
    """Wire a new namespace to the node, which `prepare_node` was run in."""
    other.run(_prepare)
    node.run(_connect, wire, other.fileno())
    other.run(_configure_peer, wire)


def add_route(node: Namespace, other: Namespace, wire: Wire, address: str) -> None:
    """Give what is wired to a node one more address."""
    other.run(own_address, address)
    node.run(_route, address, wire)


def own_address(address: str) -> None:
    """Add an address to lo, which leads nowhere else."""
    with Links() as ip:
        ip.address("lo", IPv4Interface(f"{address}/32"))


def prepare_node() -> None:
    """In the node: sysctls of who forwards."""
    _prepare()
    sysctl("ipv4/ip_forward", 1)


def _prepare() -> None:
    """Sysctls that devices copy when they are made; so before the first one."""
    # The largest of `all` and the device's own counts; new namespaces may start
    # with the host's values.
    for scope in ("all", "default"):
        sysctl(f"ipv4/conf/{scope}/rp_filter", 0)
        with suppress(FileNotFoundError):  # a kernel started with ipv6.disable=1
            sysctl(f"ipv6/conf/{scope}/disable_ipv6", 1)
    with Links() as ip:
        ip.up("lo")


def _connect(wire: Wire, peer_netns: int) -> None:
    """In the node: one end of a wire, and its other end where it belongs."""
    with Links() as ip:
        ip.veth(wire.name, peer="eth0", peer_netns=peer_netns)
        ip.address(wire.name, wire.node)
        ip.up(wire.name, mtu=wire.mtu)


def _configure_peer(wire: Wire) -> None:
    with Links() as ip:
        ip.address("eth0", wire.peer)
        ip.up("eth0", mtu=wire.mtu)
        ip.route("default", dev="eth0", via=str(wire.node.ip))


def _route(address: str, wire: Wire) -> None:
    with Links() as ip:
        ip.route(f"{address}/32", dev=wire.name, via=str(wire.peer.ip))
