"""Pods' network namespaces for hand-offs, wired to a node.

    ztunnel netns          node netns          server netns
    eth0 ----------------- ztunnel
                           server ------------ eth0
    pod netns              |
    eth0 ----------------- pod1

What a proxy in a pod sends to the server crosses as many devices as what ztunnel
sends there. No mesh's rules are here: who wants them writes them into the pod.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final, Self

from fastpath.datapath import wires
from fastpath.datapath.netns import Namespace
from fastpath.datapath.wires import Wire

if TYPE_CHECKING:
    from types import TracebackType

ZTUNNEL: Final = Wire(
    name="ztunnel",
    node=IPv4Interface("10.200.3.1/30"),
    peer=IPv4Interface("10.200.3.2/30"),
)
SERVER: Final = Wire(
    name="server",
    node=IPv4Interface("10.200.4.1/30"),
    peer=IPv4Interface("10.200.4.2/30"),
)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod without a VM: its namespace and its IP there."""

    netns: Namespace
    ip: str


class Node:
    """A node with ztunnel's and a server's namespaces, as a context manager.

    Leaving it, or the end of the process by any means, leaves nothing behind.

    Raises:
        FastpathError: a right or a kernel feature is missing.
    """

    netns: Namespace
    ztunnel_netns: Namespace
    server_netns: Namespace

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.netns = stack.enter_context(Namespace())
            self.ztunnel_netns = stack.enter_context(Namespace())
            self.server_netns = stack.enter_context(Namespace())
            wires.prepare_node(self.netns)
            wires.join(self.netns, self.ztunnel_netns, ZTUNNEL)
            wires.join(self.netns, self.server_netns, SERVER)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stack.close()


def add(node: Namespace, number: int, stack: ExitStack, *, own: str | None) -> Pod:
    """Wire another pod to a node.

    Args:
        node: its namespace.
        number: of the pod, from 1 to 99.
        stack: closes it.
        own: an address besides, on the pod's lo; None: none.
    """
    net = f"10.200.{100 + number}"
    wire = Wire(
        name=f"pod{number}",
        node=IPv4Interface(f"{net}.1/30"),
        peer=IPv4Interface(f"{net}.2/30"),
    )
    netns = stack.enter_context(Namespace())
    wires.join(node, netns, wire)
    if own:
        wires.own_address(netns, own)
    return Pod(netns, str(wire.peer.ip))
