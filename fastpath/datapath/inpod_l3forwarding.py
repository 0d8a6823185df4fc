"""Istio's in-pod redirection with Kata's l3forwarding: ambient and Kata of 2026.

    guest                pod netns                            node netns
    eth0 -- tap0_kata    tcp from the tap: REDIRECT 15001
            169.254.0.1        |
                           ztunnel :15001 -- its own --- eth0 ---- pod
                                   :15006 <- REDIRECT - tcp in      |
    server netns                                                    |
    eth0 ------------------------------------------------------- server

Kata routes between its tap and the pod's eth0 instead of joining them, so that rules
in the pod's namespace see the guest's packets; the pod's IP is the guest's, no more the
namespace's. ztunnel's sockets are in that namespace. What comes in on eth0 gets the
mark 0x111 and so is delivered there, whatever its address: clients, by REDIRECT to
15006 or to 15008 as they are, and the answers to what ztunnel dialled itself. What the
guest answers to ztunnel has a socket here, which `-m socket` finds.

Nothing is tuned, as in `ambient_geneve`. Istio's chained CNI plugin runs before the
sandbox starts, so its rules are there before Kata's.

Spec: kata-containers PR 13281 (4.1.0), src/runtime-rs, network_model:
l3_forwarding_model and port_forwarding; istio PR 60876 (open), cni/pkg/iptables.
"""

from __future__ import annotations

from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final

from fastpath.datapath import plan
from fastpath.datapath.declared import (
    INBOUND_PORT,
    NODE,
    OUTBOUND_PORT,
    POD,
    SERVER,
    Capture,
    Datapath,
    Hop,
)
from fastpath.datapath.rules import Mark
from fastpath.datapath.steps import (
    Address,
    Iptables,
    NotLocal,
    Route,
    Rule,
    Sysctl,
)

if TYPE_CHECKING:
    from fastpath.datapath.steps import Step

NAME: Final = "inpod-l3forwarding"

DELIVER: Final = Mark(0x111, 0xFFF)
"""To a socket of this namespace."""
OWN: Final = Mark(0x539, 0xFFF)
"""ztunnel's own packets."""

HBONE_PORT: Final = 15008
DNS_PORT: Final = 15053
PROBES: Final = "169.254.7.127"
"""What the node's rules make the source of kubelet's probes."""
TAP_ADDRESS: Final = IPv4Interface("169.254.0.1/32")

_TABLE: Final = 100
_RULE: Final = 32764
_POD_IP: Final = str(plan.POD_WIRE.peer.ip)
_GATEWAY: Final = plan.SANDBOX.gateway

_PICTURE: Final = """\
guest                pod netns                            node netns
eth0 -- tap0_kata    tcp from the tap: REDIRECT 15001
        169.254.0.1        |
                       ztunnel :15001 -- its own --- eth0 ---- pod
                               :15006 <- REDIRECT - tcp in      |
server netns                                                    |
eth0 ------------------------------------------------------- server
"""


def declare() -> Datapath:
    """Declare the path."""
    return Datapath(
        name=NAME,
        title="Istio ambient since 1.21, Kata since 4.1: in-pod rules, l3forwarding",
        spec="kata-containers PR 13281; istio PR 60876",
        picture=_PICTURE,
        steps=(*plan.wired(POD, SERVER), *_istio(), *_kata()),
        hops=(Hop(POD, plan.TAP, "the guest's tap: REDIRECT 15001"),),
        inbound=(
            Hop(NODE, POD, "the pod's veth on the node"),
            Hop(POD, "eth0", "its other end: mark 0x111, REDIRECT 15006"),
            Hop(POD, plan.TAP, "from ztunnel to the guest"),
        ),
        sandbox=plan.SANDBOX,
        capture=Capture.REDIRECT,
        ztunnel=POD,
        server=str(plan.SERVER_WIRE.peer.ip),
    )


def _istio() -> tuple[Step, ...]:
    """Istio's CNI plugin in the pod: createInpodRulesKata."""
    return (
        Sysctl(at=POD, name="ipv4/conf/all/route_localnet"),
        Route(at=POD, to="0.0.0.0/0", dev="lo", table=_TABLE, kind="local"),
        Rule(at=POD, priority=_RULE, mark=DELIVER, table=_TABLE),
        Iptables(at=POD, rules=tuple(istio_rules())),
    )


def istio_rules() -> list[str]:
    """Istio's rules for a Kata pod, with DNS capture, in its order."""
    deliver = f"-j MARK --set-xmark {DELIVER}"
    foreign = f"-m mark ! --mark {OWN}"
    in_mangle = "-t mangle -A ISTIO_PRERT"
    in_nat = "-t nat -A ISTIO_PRERT"
    in_raw = "-t raw -A ISTIO_PRERT"
    to_dns = f"-j DNAT --to-destination 127.0.0.1:{DNS_PORT}"
    return [
        *(
            f"-t {table} -N ISTIO_{chain}"
            for table in ("mangle", "nat", "raw")
            for chain in ("PRERT", "OUTPUT")
        ),
        "-t nat -N ISTIO_POSTRT",
        "-t mangle -A PREROUTING -j ISTIO_PRERT",
        "-t mangle -A OUTPUT -j ISTIO_OUTPUT",
        "-t nat -A OUTPUT -j ISTIO_OUTPUT",
        "-t raw -A PREROUTING -j ISTIO_PRERT",
        "-t raw -A OUTPUT -j ISTIO_OUTPUT",
        "-t nat -A PREROUTING -j ISTIO_PRERT",
        f"{in_mangle} -s {PROBES} -p tcp -j ACCEPT",
        f"{in_mangle} -i eth0 -p tcp {deliver}",
        f"{in_mangle} -p tcp -m socket {deliver}",
        f"{in_nat} -i {plan.TAP} -p udp -m udp --dport 53 {to_dns}",
        f"{in_nat} -i {plan.TAP} -p tcp --dport 53 {to_dns}",
        f"{in_mangle} -i eth0 -p udp --sport 53 {deliver}",
        f"{in_nat} -i {plan.TAP} -p tcp -j REDIRECT --to-ports {OUTBOUND_PORT}",
        "-t nat -A POSTROUTING -j ISTIO_POSTRT",
        (
            f"-t nat -A ISTIO_POSTRT -s {PROBES} -o {plan.TAP}"
            f" -j SNAT --to-source {_GATEWAY}"
        ),
        (
            f"-t mangle -A ISTIO_OUTPUT -d {_POD_IP}/32 -p tcp --dport {HBONE_PORT}"
            f" {deliver}"
        ),
        f"{in_nat} -s {PROBES} -p tcp -m tcp -j ACCEPT",
        (
            f"{in_nat} ! -d 127.0.0.1/32 -p tcp ! --dport {HBONE_PORT} {foreign}"
            f" -j REDIRECT --to-ports {INBOUND_PORT}"
        ),
        (
            f"-t raw -A ISTIO_OUTPUT -p udp -m mark --mark {OWN} -m udp --dport 53"
            " -j CT --zone 1"
        ),
        f"{in_raw} -p udp {foreign} -m udp --sport 53 -j CT --zone 1",
    ]


def _kata() -> tuple[Step, ...]:
    """Kata's l3forwarding, and its forwarding of ports to the guest."""
    return (
        *plan.tap(),
        Sysctl(at=POD, name=f"ipv4/conf/{plan.TAP}/proxy_arp"),
        Sysctl(at=POD, name="ipv4/conf/eth0/proxy_arp"),
        Sysctl(at=POD, name="ipv4/ip_forward"),
        Address(at=POD, device=plan.TAP, address=TAP_ADDRESS),
        NotLocal(at=POD, address=_POD_IP, dev="eth0"),
        Route(at=POD, to=f"{_POD_IP}/32", dev=plan.TAP),
        Iptables(at=POD, rules=tuple(kata_rules())),
    )


def kata_rules() -> list[str]:
    """Kata's rules, which lead 127.0.0.1 to the guest for `kubectl port-forward`."""
    postrouting, output = "KATA_PORTFW_POSTRT", "KATA_PORTFW_OUTPUT"
    return [
        f"-t nat -N {postrouting}",
        f"-t nat -N {output}",
        (
            f"-t nat -A {postrouting} -s 127.0.0.1/32 -d {_POD_IP}/32 -o {plan.TAP}"
            f" -p tcp -j SNAT --to-source {TAP_ADDRESS.ip}"
        ),
        f"-t nat -A POSTROUTING -j {postrouting}",
        (
            f"-t nat -A {output} -s 127.0.0.1/32 -d 127.0.0.1/32 -p tcp"
            f" -j DNAT --to-destination {_POD_IP}"
        ),
        f"-t nat -A OUTPUT -j {output}",
    ]
