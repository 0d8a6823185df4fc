"""Istio ambient's first data path: ipset, policy routing, Geneve, TPROXY.

    microVM --- tap0 === eth0 --- pod ... istioout ~~~~~ pistioout ... :15001
     guest  |   pod netns   |        node netns        |  ztunnel netns
            +- Kata tcfilter +  mark 0x100, table 101   +- TPROXY, mark 0x400

Spec: istio 1.18, cni/pkg/ambient/net_linux.go; reference section 4a.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from types import TracebackType

    from fastpath.datapath.netns import Namespace
    from fastpath.vm.spec import Tap


class Mode(enum.Enum):
    """Which packets of the pod take the tunnel."""

    EVERY_PACKET = "every-packet"
    """Each packet towards ztunnel: what the design describes."""
    ISTIO_ALPHA = "istio-alpha"
    """The rules as shipped: the first packet of each connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """One veth pair: the node's end and the other netns's `eth0`."""

    name: str
    """Of the node's end."""
    node: IPv4Interface
    peer: IPv4Interface
    mtu: int = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every name, address and number of the path."""

    pod: Wire = Wire(
        name="pod",
        node=IPv4Interface("10.200.1.1/30"),
        peer=IPv4Interface("10.200.1.2/30"),
    )
    container: Wire = Wire(
        name="container",
        node=IPv4Interface("10.200.2.1/30"),
        peer=IPv4Interface("10.200.2.2/30"),
    )
    """A pod without a VM: what the host's share of the path costs."""
    ztunnel: Wire = Wire(
        name="ztunnel",
        node=IPv4Interface("10.200.3.1/30"),
        peer=IPv4Interface("10.200.3.2/30"),
        mtu=1550,
    )
    server: Wire = Wire(
        name="server",
        node=IPv4Interface("10.200.4.1/30"),
        peer=IPv4Interface("10.200.4.2/30"),
        mtu=1550,
    )


class AmbientGeneve:
    """The whole path as a context manager; see `fastpath.datapath.Path`.

    Args:
        geneve: "kernel", "bpf", or "auto": the kernel's if it has it.
        mode: which packets take the tunnel.
        plan: the addresses.

    Raises:
        FastpathError: a right, a program or a kernel feature is missing.
    """

    tap: Tap
    geneve: Literal["kernel", "bpf"]
    ztunnel_netns: Namespace
    server_netns: Namespace
    container_netns: Namespace
    """Of a pod without a VM: its programs take the same path."""

    def __init__(
        self,
        *,
        geneve: Literal["auto", "kernel", "bpf"] = "auto",
        mode: Mode = Mode.EVERY_PACKET,
        plan: Plan | None = None,
    ) -> None:
        self.mode = mode
        self.plan = plan or Plan()
        self._want = geneve

    @property
    def guest_address(self) -> IPv4Interface:
        """Address and prefix of the guest's interface."""
        return self.plan.pod.peer

    @property
    def guest_gateway(self) -> str:
        """The guest's default route."""
        return str(self.plan.pod.node.ip)

    @property
    def server_address(self) -> str:
        """Where a server behind ztunnel listens."""
        return str(self.plan.server.peer.ip)

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        raise NotImplementedError
