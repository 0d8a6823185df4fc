"""Tunnel devices of other kinds than Geneve, for the same path.

What carries Ethernet frames has an address of its own to resolve; the others carry IPv4
packets from one end to the other. Each is as its kind is by default, with the path's
network as its id or key where the kind has one.

`isatap` isn't here, because it carries IPv6 alone, nor `vti`, which is IPsec.

Spec: RFC 7348 (vxlan); RFC 2784 and 2890 (gre); RFC 2003 (ipip); ip-link(8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.datapath import features, geneve

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpath.datapath.features import Feature
    from fastpath.datapath.geneve import Tunnel
    from fastpath.datapath.steps import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of tunnel device of the kernel's."""

    name: str
    """As ip-link(8) has it."""
    title: str
    words: str = ""
    """More options of ip-link(8); `{vni}` is the network."""
    attributes: tuple[tuple[str, int], ...] = ()
    """The same, as netlink attributes without the kind's name."""
    network: tuple[str, ...] = ()
    """Attributes whose value is the network."""
    remote: str = "remote"
    """The attribute of the other end."""
    feature: Feature
    port: int | None = None
    """Of UDP."""


_KEYED: Final = 0x2000
"""GRE_KEY: RFC 2890's K bit."""

VXLAN: Final = Kind(
    name="vxlan",
    title="VXLAN",
    words="id {vni} dstport 4789",
    attributes=(("port", 4789),),
    network=("id",),
    remote="group",
    feature=features.VXLAN,
    port=4789,
)
GRE: Final = Kind(
    name="gre",
    title="GRE",
    words="key {vni}",
    attributes=(("iflags", _KEYED), ("oflags", _KEYED)),
    network=("ikey", "okey"),
    feature=features.GRE,
)
GRETAP: Final = Kind(
    name="gretap",
    title="Ethernet in GRE",
    words=GRE.words,
    attributes=GRE.attributes,
    network=GRE.network,
    feature=features.GRE,
)
IPIP: Final = Kind(name="ipip", title="IP in IP", feature=features.IPIP)
SIT: Final = Kind(
    name="sit",
    title="sit in its mode ipip",
    words="mode ipip",
    attributes=(("proto", 4),),
    feature=features.SIT,
)

KINDS: Final = (VXLAN, GRE, GRETAP, IPIP, SIT)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelEnd:
    """One end of a tunnel, as a step."""

    at: str
    tunnel: Tunnel
    kind: Kind

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """Two ip-link(8), one ip-address(8)."""
        del name
        it = self.tunnel
        add = f"ip link add {it.device} type {self.kind.name}"
        ends = f"local {it.local} remote {it.remote}"
        more = self.kind.words.format(vni=it.vni)
        return [
            f"{add} {ends} {more}".rstrip(),
            f"ip link set {it.device} up mtu {geneve.TUNNEL_MTU}",
            f"ip address add {it.address} dev {it.device}",
        ]

    def apply(self, world: World) -> None:
        """Make it."""
        kind, it = self.kind, self.tunnel
        attributes: dict[str, int | str] = dict(kind.attributes)
        attributes |= dict.fromkeys(kind.network, it.vni)
        attributes |= {"local": it.local, kind.remote: it.remote}
        world.ip.tunnel(it.device, kind.name, attributes, kind.feature)
        world.ip.up(it.device, mtu=geneve.TUNNEL_MTU)
        world.ip.address(it.device, it.address)
