"""What the standard paths have in common: addresses, and how Kata attaches a guest.

guest                pod netns                    node netns
eth0 -- tap0_kata == eth0 ----------------------- pod
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final

from fastpath.datapath import geneve, wires
from fastpath.datapath.attach import TapDevice
from fastpath.datapath.declared import CONTAINER, POD, SERVER, ZTUNNEL, Sandbox
from fastpath.datapath.steps import Redirect, Up
from fastpath.datapath.wires import Wire

if TYPE_CHECKING:
    from fastpath.datapath.steps import Step

TAP: Final = "tap0_kata"

POD_WIRE: Final = Wire(
    name=POD,
    node=IPv4Interface("10.200.1.1/30"),
    peer=IPv4Interface("10.200.1.2/30"),
    node_mac="02:00:0a:c8:01:01",
    peer_mac="02:00:0a:c8:01:02",
)
CONTAINER_WIRE: Final = Wire(
    name=CONTAINER,
    node=IPv4Interface("10.200.2.1/30"),
    peer=IPv4Interface("10.200.2.2/30"),
)
"""A pod without a VM: the host's share of a path alone."""
ZTUNNEL_WIRE: Final = Wire(
    name=ZTUNNEL,
    node=IPv4Interface("10.200.3.1/30"),
    peer=IPv4Interface("10.200.3.2/30"),
    mtu=geneve.UNDERLAY_MTU,
    node_mac="02:00:0a:c8:03:01",
    peer_mac="02:00:0a:c8:03:02",
)
SERVER_WIRE: Final = Wire(
    name=SERVER,
    node=IPv4Interface("10.200.4.1/30"),
    peer=IPv4Interface("10.200.4.2/30"),
    mtu=geneve.UNDERLAY_MTU,
)
"""As wide as ztunnel's, or ztunnel's own packets would not pass."""
ROLES: Final = {
    POD: POD_WIRE,
    CONTAINER: CONTAINER_WIRE,
    ZTUNNEL: ZTUNNEL_WIRE,
    SERVER: SERVER_WIRE,
}

SANDBOX: Final = Sandbox(
    address=POD_WIRE.peer,
    gateway=str(POD_WIRE.node.ip),
    mac="02:00:0a:c8:01:02",  # that of eth0: who sends to the pod sends to it
)


def wired(*roles: str) -> tuple[Step, ...]:
    """A node, and what is wired to it."""
    each = (step for role in roles for step in wires.wired(role, ROLES[role]))
    return (*wires.node(), *each)


def tap() -> tuple[Step, ...]:
    """The device that QEMU takes."""
    return (
        TapDevice(at=POD, device=TAP),
        Up(at=POD, device=TAP, mtu=POD_WIRE.mtu),
    )


def tcfilter() -> tuple[Step, ...]:
    """Kata's default: tap and eth0 are joined, past the namespace's own IP stack.

    Spec: kata-containers, src/runtime/virtcontainers/network_linux.go, "tcfilter".
    """
    return (
        *tap(),
        Redirect(at=POD, source="eth0", target=TAP),
        Redirect(at=POD, source=TAP, target="eth0"),
    )
