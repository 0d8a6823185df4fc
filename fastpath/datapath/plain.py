"""No mesh: what tap, veth and a node that forwards cost by themselves, the floor.

    guest     pod netns              node netns      server netns
    eth0 ---- tap0_kata == eth0 ---- pod             the server, and who answers
              (Kata's tcfilter)      server -------- eth0
                                     ztunnel ------- (only the fast path's)

Who answers where ztunnel would is a server of its own beside the one behind it. ztunnel
is there for the fast path; none of this path's packets meet it.

Spec: kata-containers, src/runtime/virtcontainers/network_linux.go ("tcfilter").
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final

from fastpath.datapath import plan
from fastpath.datapath.declared import (
    NODE,
    POD,
    SERVER,
    ZTUNNEL,
    Capture,
    Datapath,
    Hop,
)
from fastpath.datapath.steps import Address, Route

if TYPE_CHECKING:
    from fastpath.datapath.steps import Step

NAME: Final = "plain"
ANSWERS: Final = "198.18.0.3"
"""Of who answers in ztunnel's place; RFC 2544's range for benchmarks."""

_PICTURE: Final = """\
guest     pod netns              node netns      server netns
eth0 ---- tap0_kata == eth0 ---- pod             the server, and who answers
          (Kata's tcfilter)      server -------- eth0
                                 ztunnel ------- (only the fast path's)
"""


def without_tap() -> tuple[Step, ...]:
    """All but how the guest is attached."""
    answers = f"{ANSWERS}/32"
    return (
        *plan.wired(POD, ZTUNNEL, SERVER),
        Address(at=SERVER, device="lo", address=IPv4Interface(answers)),
        Route(at=NODE, to=answers, dev=SERVER, via=str(plan.SERVER_WIRE.peer.ip)),
    )


def declare() -> Datapath:
    """Declare the path."""
    return Datapath(
        name=NAME,
        title="no mesh: Kata's tcfilter and veth alone",
        spec="kata-containers, network_linux.go",
        picture=_PICTURE,
        steps=(*without_tap(), *plan.tcfilter()),
        hops=(
            Hop(POD, plan.TAP, "the guest's tap"),
            Hop(POD, "eth0", "the pod's veth, by tcfilter"),
            Hop(NODE, POD, "its other end"),
            Hop(NODE, SERVER, "forwarded to the server's veth"),
            Hop(SERVER, "eth0", "its other end"),
        ),
        sandbox=plan.SANDBOX,
        capture=Capture.NONE,
        server=str(plan.SERVER_WIRE.peer.ip),
        answers=ANSWERS,
    )
