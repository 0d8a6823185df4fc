"""No mesh, without a tap: passt makes sockets of the guest's connections.

    guest          pod netns              node netns      server netns
    eth0 == passt, its own sockets        pod             the server, and who answers
     vhost-user    eth0 ----------------- server -------- eth0
     (QEMU)                               ztunnel ------- (only the fast path's)

What a user without rights takes in place of a tap: passt speaks vhost-user with QEMU,
ends the guest's TCP, and makes each connection anew by a socket of the pod's namespace.
All else is `plain`'s.

Spec: passt(1), "vhost-user"; QEMU, docs/system/devices/net.rst, "Using passt".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fastpath.datapath import plain, plan
from fastpath.datapath.attach import Passt
from fastpath.datapath.declared import NODE, POD, SERVER, Datapath, Hop

NAME: Final = "passt"
MTU: Final = 65520
"""What passt gives its guests: the largest frame, rounded."""

_PICTURE: Final = """\
guest         pod netns               node netns      server netns
eth0 == passt, its own sockets        pod             the server, and who
 vhost-user    eth0 ----------------- server -------- eth0        answers
 (QEMU)                               ztunnel ------- (only the fast path's)
"""


def declare() -> Datapath:
    """Declare the path."""
    floor = plain.declare()
    return replace(
        floor,
        name=NAME,
        title="no mesh, no tap: passt, by vhost-user",
        spec="passt(1), vhost-user mode",
        picture=_PICTURE,
        steps=(*plain.without_tap(), Passt(at=POD, device=NAME)),
        hops=(
            Hop(POD, "eth0", "the pod's veth, from a socket of passt's"),
            Hop(NODE, POD, "its other end"),
            Hop(NODE, SERVER, "forwarded to the server's veth"),
            Hop(SERVER, "eth0", "its other end"),
        ),
        sandbox=replace(plan.SANDBOX, device=NAME, mtu=MTU, by_proxy=True),
    )
