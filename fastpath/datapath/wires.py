"""A node and what is wired to it: veth pairs between network namespaces.

    node            other namespaces
    NAME ---------- eth0, whose default route is the node

Everything that a path of ours stands on begins like this. `node` and `wired` are the
steps; `prepare_node` and `join` do them in namespaces that are there.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final

from fastpath.datapath.build import apply
from fastpath.datapath.declared import NODE
from fastpath.datapath.steps import Address, Route, Sysctl, Up, Veth

if TYPE_CHECKING:
    from fastpath.datapath.netns import Namespace
    from fastpath.datapath.steps import Step

_OTHER: Final = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """Two ends: a device of the node, and another namespace's `eth0`."""

    name: str
    node: IPv4Interface
    peer: IPv4Interface
    mtu: int = 1500
    node_mac: str | None = None
    peer_mac: str | None = None
    """None: the kernel makes one."""


def node() -> tuple[Step, ...]:
    """A namespace that forwards."""
    return (*_fresh(NODE), Sysctl(at=NODE, name="ipv4/ip_forward"))


def wired(role: str, wire: Wire) -> tuple[Step, ...]:
    """Another namespace, wired to the node, which is its default route."""
    mac, peer_mac = wire.node_mac, wire.peer_mac
    return (
        *_fresh(role),
        Veth(at=NODE, device=wire.name, to=role, mac=mac, peer_mac=peer_mac),
        Address(at=NODE, device=wire.name, address=wire.node),
        Up(at=NODE, device=wire.name, mtu=wire.mtu),
        Address(at=role, device="eth0", address=wire.peer),
        Up(at=role, device="eth0", mtu=wire.mtu),
        Route(at=role, to="default", dev="eth0", via=str(wire.node.ip)),
    )


def _fresh(role: str) -> tuple[Step, ...]:
    """A new namespace's sysctls, which devices copy when they are made.

    The largest of `all` and the device's own counts; new namespaces may start with the
    host's values.
    """
    scopes = ("all", "default")
    filters = [
        Sysctl(at=role, name=f"ipv4/conf/{x}/rp_filter", value=0) for x in scopes
    ]
    without6 = [
        Sysctl(at=role, name=f"ipv6/conf/{x}/disable_ipv6", optional=True)
        for x in scopes
    ]
    return (*filters, *without6, Up(at=role, device="lo"))


def prepare_node(namespace: Namespace) -> None:
    """Make a new namespace one that forwards."""
    with ExitStack() as stack:
        apply(node(), {NODE: namespace}, stack, what=NODE)


def join(namespace: Namespace, other: Namespace, wire: Wire) -> None:
    """Wire a new namespace to the node."""
    both = {NODE: namespace, _OTHER: other}
    with ExitStack() as stack:
        apply(wired(_OTHER, wire), both, stack, what=wire.name)


def add_route(namespace: Namespace, other: Namespace, wire: Wire, address: str) -> None:
    """Give what is wired to a node one more address."""
    to, via = f"{address}/32", str(wire.peer.ip)
    both = {NODE: namespace, _OTHER: other}
    steps = (
        Address(at=_OTHER, device="lo", address=IPv4Interface(to)),
        Route(at=NODE, to=to, dev=wire.name, via=via),
    )
    with ExitStack() as stack:
        apply(steps, both, stack, what=wire.name)


def own_address(namespace: Namespace, address: str) -> None:
    """Add an address to lo, which leads nowhere else."""
    step = Address(at=_OTHER, device="lo", address=IPv4Interface(f"{address}/32"))
    with ExitStack() as stack:
        apply([step], {_OTHER: namespace}, stack, what=address)
