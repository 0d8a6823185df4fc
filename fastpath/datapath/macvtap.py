"""No mesh, by Kata's macvtap model in tcfilter's place.

    guest     pod netns                     node netns      server netns
    eth0 ---- tap0_kata (macvtap) - eth0 -- pod             the server, and who answers
                                            server -------- eth0
                                            ztunnel ------- (only the fast path's)

The macvtap device takes the Ethernet address of eth0, which gets another one and gives
up its IP. Rules in the pod's namespace never see a packet, as with tcfilter. All else
is `plain`'s.

Spec: kata-containers, src/runtime/virtcontainers/network_linux.go (tapNetworkPair).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastpath.datapath import plain, plan
from fastpath.datapath.attach import Macvtap
from fastpath.datapath.declared import NODE, POD, SERVER, Datapath, Hop
from fastpath.datapath.steps import Mac, NoAddress, Up

if TYPE_CHECKING:
    from fastpath.datapath.steps import Step

NAME: Final = "macvtap"
EMPTY_MAC: Final = "02:00:0a:c8:01:fe"
"""Of eth0, whose own the guest has."""

_PICTURE: Final = """\
guest     pod netns                     node netns      server netns
eth0 ---- tap0_kata (macvtap) - eth0 -- pod             the server, and who
                                        server -------- eth0        answers
                                        ztunnel ------- (only the fast path's)
"""


def declare() -> Datapath:
    """Declare the path."""
    floor = plain.declare()
    return replace(
        floor,
        name=NAME,
        title="no mesh: Kata's macvtap in tcfilter's place",
        spec="kata-containers, network_linux.go (tapNetworkPair)",
        picture=_PICTURE,
        steps=(*plain.without_tap(), *_tap()),
        hops=(
            Hop(POD, "eth0", "the pod's veth, below the macvtap"),
            Hop(NODE, POD, "its other end"),
            Hop(NODE, SERVER, "forwarded to the server's veth"),
            Hop(SERVER, "eth0", "its other end"),
        ),
    )


def _tap() -> tuple[Step, ...]:
    return (
        Mac(at=POD, device="eth0", mac=EMPTY_MAC),
        Macvtap(at=POD, device=plan.TAP, lower="eth0", mac=plan.SANDBOX.mac),
        NoAddress(at=POD, device="eth0", address=plan.POD_WIRE.peer),
        Up(at=POD, device=plan.TAP, mtu=plan.POD_WIRE.mtu),
    )
