"""The standard paths from a sandbox to ztunnel, built in namespaces of their own.

The fast path is compared with what a mesh does today, so each standard path is
built as its project builds it and left as the kernel runs it: nothing here
makes one slower. One module a path; each is a context manager that offers what
`Path` says.

    netns             network namespaces held by descriptors
    links             devices, addresses, routes, rules, filters: over netlink
    rules             iptables rules
    geneve            tunnel devices, the kernel's or our tc-eBPF ones
    ambient_geneve    Istio ambient 1.18 to 1.20: ipset, policy routing, Geneve
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ipaddress import IPv4Interface

    from fastpath.datapath.netns import Namespace
    from fastpath.vm.spec import Tap


class Path(Protocol):
    """What `run` and `compare` need of a standard path, once it is entered.

    The guest gets `tap` as its only interface and configures it itself. What it
    sends to any other address reaches the listener on port 15001 of
    `ztunnel_netns`, which must be IP_TRANSPARENT.
    """

    @property
    def tap(self) -> Tap:
        """The guest's device: an open tap, and the MAC address it must take."""

    @property
    def guest_address(self) -> IPv4Interface:
        """Address and prefix of the guest's interface: the pod's."""

    @property
    def guest_gateway(self) -> str:
        """The guest's default route."""

    @property
    def ztunnel_netns(self) -> Namespace:
        """Where the ztunnel process runs."""

    @property
    def server_netns(self) -> Namespace:
        """Where a server behind ztunnel runs."""

    @property
    def server_address(self) -> str:
        """The address of that server, for the guest and for ztunnel."""
