"""Istio's sidecar mode with Kata: rules and a proxy in the guest itself, no ztunnel.

    guest                                 pod netns             node netns
    program -- lo, REDIRECT 15001         tap0_kata == eth0 --- pod
       sidecar ------- eth0 ------------- (Kata's tcfilter)     server
    server netns                                                |
    eth0, the server, and who answers --------------------------+

istio-init's rules lead what the guest's programs connect to a proxy beside them, which
connects anew. Its own packets are told by its user. All else is `plain`'s: what leaves
the guest is the proxy's.

Spec: istio, tools/istio-iptables/pkg/capture, defaults (REDIRECT; all ports, but
15020, 15021 and 15090 inbound); kata-containers, network_linux.go ("tcfilter").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from fastpath.datapath import plain
from fastpath.datapath.declared import GUEST, INBOUND_PORT, OUTBOUND_PORT, Datapath, Hop
from fastpath.datapath.steps import Iptables

NAME: Final = "sidecar"
IMAGE: Final = "sidecar"
"""What has iptables in the guest."""
USER: Final = 1337
"""The proxy's, and its group's."""
CAUGHT: Final = "ISTIO_REDIRECT"
"""The chain, of table nat, that what is caught passes."""

_HBONE_PORT: Final = 15008
_NOT_INBOUND: Final = (15090, 15021, 15020)
"""The sidecar's own: statistics, readiness, both of these merged."""
_INBOUND_SOURCE: Final = "127.0.0.6/32"
"""Of what the sidecar hands to the guest's programs."""

_PICTURE: Final = """\
guest                              pod netns            node netns
program -- lo, REDIRECT 15001      tap0_kata == eth0 -- pod
   sidecar ------- eth0 ---------- (Kata's tcfilter)    server
server netns                                            |
eth0, the server, and who answers ----------------------+
"""


def declare() -> Datapath:
    """Declare the path."""
    floor = plain.declare()
    return replace(
        floor,
        name=NAME,
        title="Istio's sidecar mode: rules and a proxy in the guest, no ztunnel",
        spec="istio, tools/istio-iptables; kata-containers, network_linux.go",
        picture=_PICTURE,
        inside=(Iptables(at=GUEST, rules=tuple(istio_rules())),),
        image=IMAGE,
        hops=(
            Hop(GUEST, "lo", "from the program to the sidecar: REDIRECT 15001"),
            *floor.hops,
        ),
    )


def istio_rules() -> list[str]:
    """istio-init's rules, in its order."""
    out = "-t nat -A ISTIO_OUTPUT"
    inbound = "-t nat -A ISTIO_INBOUND -p tcp"

    def own(owner: str) -> list[str]:
        """What the sidecar itself sends."""
        not_local = f"! -d 127.0.0.1/32 -p tcp ! --dport {_HBONE_PORT}"
        return [
            f"{out} -o lo {not_local} -m owner --{owner} {USER} -j ISTIO_IN_REDIRECT",
            f"{out} -o lo -m owner ! --{owner} {USER} -j RETURN",
            f"{out} -m owner --{owner} {USER} -j RETURN",
        ]

    return [
        "-t nat -N ISTIO_INBOUND",
        f"-t nat -N {CAUGHT}",
        "-t nat -N ISTIO_IN_REDIRECT",
        "-t nat -N ISTIO_OUTPUT",
        f"{inbound} --dport {_HBONE_PORT} -j RETURN",
        f"-t nat -A {CAUGHT} -p tcp -j REDIRECT --to-ports {OUTBOUND_PORT}",
        f"-t nat -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports {INBOUND_PORT}",
        "-t nat -A PREROUTING -p tcp -j ISTIO_INBOUND",
        *(f"{inbound} --dport {port} -j RETURN" for port in _NOT_INBOUND),
        f"{inbound} -j ISTIO_IN_REDIRECT",
        "-t nat -A OUTPUT -j ISTIO_OUTPUT",
        f"{out} -o lo -s {_INBOUND_SOURCE} -j RETURN",
        *own("uid-owner"),
        *own("gid-owner"),
        f"{out} -d 127.0.0.1/32 -j RETURN",
        f"{out} -j {CAUGHT}",
    ]
