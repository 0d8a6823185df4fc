"""Istio ambient's first data path: ipset, policy routing, Geneve, TPROXY.

    guest     pod netns              node netns               ztunnel netns
    eth0 ---- tap0_kata == eth0 ---- pod                      :15001
              (Kata's tcfilter)       | mangle: mark 0x100      | TPROXY
                                      | rule 101: table 101     | mark 0x400
                                     istioout ~~ Geneve ~~~~~ pistioout
                                     ztunnel ---------------- eth0
    container netns                   |                         (underlay, replies,
    eth0 --------------------------- container                   upstream)
    server netns                      |
    eth0 --------------------------- server

What the pod sends is marked by its source address, routed into the tunnel by
its mark, and caught by TPROXY where the tunnel ends; ztunnel's listener sees
the original destination as its own address. Replies go back over the plain
veth, as they do with Istio. Only this outbound half exists here: Istio's other
tunnel, istioin, carries what others send to the pod, which nobody measures yet.

This is the baseline, so nothing is tuned. Left as the kernel makes it: offloads
(GSO and TSO on, so a 64 KiB packet stays one from the guest to ztunnel, through
the tunnel too), GRO off on veth, no queueing discipline on veth, the host's
default one on the tap, TCP's settings. Set: the sysctls and rules that Istio
sets, IPv6 off, and the underlay's MTU (see geneve.py).

Spec: istio 1.18, cni/pkg/ambient/net_linux.go; kata-containers,
src/runtime/virtcontainers/network_linux.go ("tcfilter").
"""

from __future__ import annotations

import enum
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final

from fastpath.datapath import geneve, plan, tunnels
from fastpath.datapath.declared import (
    CONTAINER,
    NODE,
    OUTBOUND_PORT,
    POD,
    SERVER,
    ZTUNNEL,
    Capture,
    Datapath,
    Hop,
)
from fastpath.datapath.rules import Mark
from fastpath.datapath.steps import GeneveEnd, IpSet, Iptables, Route, Rule, Sysctl
from fastpath.datapath.tunnels import TunnelEnd

if TYPE_CHECKING:
    from fastpath.datapath.steps import Step

NAME: Final = "ambient-geneve"
POD_SET: Final = "ztunnel-pods-ips"

OUTBOUND: Final = Mark(0x100, 0x100)
"""A pod's packet: to ztunnel, through the tunnel."""
SKIP: Final = Mark(0x200, 0x200)
"""Leave alone: to where the main table says."""
DIRECT: Final = Mark(0x040, 0x040)
"""A later packet of a known connection: to ztunnel without the tunnel."""
PROXY: Final = Mark(0x220, 0x220)
"""From ztunnel itself, or for it from the node."""
PROXY_AS_POD: Final = Mark(0x210, 0x210)
"""From ztunnel with another's address: the answer to a caught connection."""
TPROXY: Final = Mark(0x400, 0xFFF)
ORIGINAL_SOURCE: Final = Mark(0x4D3, 0xFFF)

_TABLE_LOCAL: Final = 100
_TABLE_INBOUND: Final = 100
_TABLE_OUTBOUND: Final = 101
_TABLE_DIRECT: Final = 102
_RULE_MAIN: Final = 32766

TUNNEL: Final = "istioout"
ZTUNNEL_TUNNEL: Final = "pistioout"
VNI: Final = 1001
_NODE_END: Final = IPv4Interface("192.168.127.1/30")
_ZTUNNEL_END: Final = IPv4Interface("192.168.127.2/30")

_WIRE: Final = plan.ZTUNNEL_WIRE
NODE_IP: Final = str(_WIRE.node.ip)
"""The node's end of the underlay: Istio's HIP."""
ZTUNNEL_IP: Final = str(_WIRE.peer.ip)
"""The pod IP of ztunnel: Istio's ZIP."""

_PICTURE: Final = """\
guest     pod netns              node netns               ztunnel netns
eth0 ---- tap0_kata == eth0 ---- pod                      :15001
          (Kata's tcfilter)       | mangle: mark 0x100      | TPROXY
                                  | rule 101: table 101     | mark 0x400
                                 istioout ~~ Geneve ~~~~~ pistioout
                                 ztunnel ---------------- eth0
container netns                   |                         (underlay, replies,
eth0 --------------------------- container                   upstream)
server netns                      |
eth0 --------------------------- server
"""


class Mode(enum.Enum):
    """Which packets from the pod take the tunnel."""

    EVERY_PACKET = "every-packet"
    """Each one: what Istio's design describes."""
    ISTIO_ALPHA = "istio-alpha"
    """The first of each connection, with the rules as shipped: the reply's mark
    is kept with the connection and sends the rest over the plain veth."""


def declare(
    kind: geneve.Kind | tunnels.Kind,
    mode: Mode = Mode.EVERY_PACKET,
    name: str = NAME,
) -> Datapath:
    """Declare the path.

    Args:
        kind: of the tunnel, which the kernel may lack; another one than Geneve is
            this path with that in its place.
        mode: which packets take the tunnel.
        name: of the path.
    """
    every = mode is Mode.EVERY_PACKET
    which = "each packet" if every else "the first packet of a connection"
    how, inside = "Geneve", "Geneve in UDP"
    picture = _PICTURE
    if isinstance(kind, tunnels.Kind):
        how = inside = kind.title
        picture = _PICTURE.replace("~~ Geneve ~~~~~", f"~~ {kind.name} ".ljust(15, "~"))
    return Datapath(
        name=name,
        title=f"Istio ambient 1.18 to 1.20: {which} by {how}, TPROXY",
        spec="istio 1.18, cni/pkg/ambient/net_linux.go; Kata's tcfilter",
        picture=picture,
        steps=(
            *plan.wired(POD, CONTAINER, ZTUNNEL, SERVER),
            *_node(kind, mode),
            *_ztunnel(kind),
            *plan.tcfilter(),
        ),
        hops=(
            Hop(POD, plan.TAP, "the guest's tap"),
            Hop(POD, "eth0", "the pod's veth, by tcfilter"),
            Hop(NODE, POD, "its other end: mark 0x100, table 101"),
            Hop(NODE, ZTUNNEL, f"the underlay, {inside}"),
            Hop(ZTUNNEL, "eth0", "its other end"),
            Hop(ZTUNNEL, ZTUNNEL_TUNNEL, "out of the tunnel: TPROXY", replies=False),
        ),
        sandbox=plan.SANDBOX,
        capture=Capture.TPROXY,
        server=str(plan.SERVER_WIRE.peer.ip),
        tunnel=TUNNEL,
        every_packet=every,
    )


def _end(at: str, tunnel: geneve.Tunnel, kind: geneve.Kind | tunnels.Kind) -> Step:
    if isinstance(kind, tunnels.Kind):
        return TunnelEnd(at=at, tunnel=tunnel, kind=kind)
    return GeneveEnd(at=at, tunnel=tunnel, kind=kind)


def _node(kind: geneve.Kind | tunnels.Kind, mode: Mode) -> tuple[Step, ...]:
    """Istio's node: CreateRulesOnNode and what adds a pod to the mesh."""
    assert _WIRE.peer_mac
    tunnel = geneve.Tunnel(
        device=TUNNEL,
        address=_NODE_END,
        vni=VNI,
        underlay=_WIRE.name,
        local=NODE_IP,
        remote=ZTUNNEL_IP,
        remote_mac=_WIRE.peer_mac,
    )
    tables = (_TABLE_INBOUND, _TABLE_OUTBOUND, _TABLE_DIRECT)
    out = Route(
        at=NODE,
        to="default",
        dev=TUNNEL,
        via=str(_ZTUNNEL_END.ip),
        table=_TABLE_OUTBOUND,
    )
    direct = Route(
        at=NODE,
        to="default",
        dev=_WIRE.name,
        via=ZTUNNEL_IP,
        table=_TABLE_DIRECT,
        onlink=True,
    )
    port = kind.port if isinstance(kind, tunnels.Kind) else geneve.PORT
    pods = (plan.POD_WIRE, plan.CONTAINER_WIRE)
    return (
        _end(NODE, tunnel, kind),
        *(
            Sysctl(at=NODE, name=f"ipv4/conf/{device}/accept_local")
            for device in (TUNNEL, _WIRE.name)
        ),
        *(
            Route(at=NODE, to=f"{ZTUNNEL_IP}/32", dev=_WIRE.name, table=table)
            for table in tables
        ),
        out,
        direct,
        Rule(at=NODE, priority=100, mark=SKIP, goto=_RULE_MAIN),
        Rule(at=NODE, priority=101, mark=OUTBOUND, table=_TABLE_OUTBOUND),
        Rule(at=NODE, priority=102, mark=DIRECT, table=_TABLE_DIRECT),
        Rule(at=NODE, priority=103, table=_TABLE_INBOUND),
        IpSet(at=NODE, name=POD_SET, members=tuple(str(it.peer.ip) for it in pods)),
        Iptables(at=NODE, rules=tuple(node_rules(mode, port))),
    )


def _ztunnel(kind: geneve.Kind | tunnels.Kind) -> tuple[Step, ...]:
    """Istio's ztunnel pod: CreateRulesWithinNodeProxyNS."""
    assert _WIRE.node_mac
    tunnel = geneve.Tunnel(
        device=ZTUNNEL_TUNNEL,
        address=_ZTUNNEL_END,
        vni=VNI,
        underlay="eth0",
        local=ZTUNNEL_IP,
        remote=NODE_IP,
        remote_mac=_WIRE.node_mac,
    )
    return (
        _end(ZTUNNEL, tunnel, kind),
        Rule(at=ZTUNNEL, priority=20000, mark=TPROXY, table=_TABLE_LOCAL),
        Rule(at=ZTUNNEL, priority=20003, mark=ORIGINAL_SOURCE, table=_TABLE_LOCAL),
        Route(at=ZTUNNEL, to="0.0.0.0/0", dev="lo", table=_TABLE_LOCAL, kind="local"),
        Iptables(at=ZTUNNEL, rules=tuple(ztunnel_rules())),
    )


def node_rules(mode: Mode, port: int | None = geneve.PORT) -> list[str]:
    """Rules of the node, for iptables, in Istio's order.

    Args:
        mode: which packets take the tunnel.
        port: of the tunnel's own packets in UDP; None: it has none.

    Without the connection marks each packet is judged by its source address
    alone, so each takes the tunnel; the other rules are the same in both modes.
    """
    chains = [("nat", "PREROUTING"), ("nat", "POSTROUTING")]
    chains += [("mangle", c) for c in ("PREROUTING", "OUTPUT", "INPUT", "FORWARD")]
    rules = [f"-t {table} -N ztunnel-{chain}" for table, chain in chains]
    rules += [f"-t {table} -I {chain} -j ztunnel-{chain}" for table, chain in chains]
    rules += [
        f"-t nat -A ztunnel-{chain} -m mark --mark {OUTBOUND} -j ACCEPT"
        for chain in ("PREROUTING", "POSTROUTING")
    ]
    rules += [
        f"-t mangle -A ztunnel-PREROUTING {rule}" for rule in _prerouting_rules(port)
    ]
    rules.append(f"-t mangle -A ztunnel-OUTPUT -s {NODE_IP} -j MARK --set-mark {PROXY}")
    rules += [
        f"-t mangle -A ztunnel-{chain} -m mark --mark {mark} -j CONNMARK"
        f" --save-mark --nfmask {mark.mask:#x} --ctmask {mark.mask:#x}"
        for chain in ("FORWARD", "INPUT")
        for mark in (PROXY, PROXY_AS_POD)
    ]
    if mode is Mode.EVERY_PACKET:
        rules = [rule for rule in rules if "connmark" not in rule.lower()]
    return rules


def _prerouting_rules(port: int | None) -> list[str]:
    """How the node tells a pod's packet from ztunnel's: the order counts."""
    device = _WIRE.name
    answer = f"-i {device} ! -s {ZTUNNEL_IP}"
    known = f"! -i {device} -m connmark --mark {PROXY_AS_POD}"
    skip = f"-m mark --mark {SKIP} -j RETURN"
    return [
        f"-i {TUNNEL} -j MARK --set-mark {SKIP}",
        f"-i {TUNNEL} -j RETURN",
        *([f"-p udp -m udp --dport {port} -j RETURN"] if port else []),
        f"-m connmark --mark {PROXY} -j MARK --set-mark {SKIP}",
        skip,
        f"{known} -j MARK --set-mark {DIRECT}",
        f"-m mark --mark {DIRECT} -j RETURN",
        f"{answer} -j MARK --set-mark {PROXY_AS_POD}",
        skip,
        f"-i {device} -j MARK --set-mark {PROXY}",
        f"-p udp -j MARK --set-mark {PROXY}",
        skip,
        f"-p tcp -m set --match-set {POD_SET} src -j MARK --set-mark {OUTBOUND}",
    ]


def ztunnel_rules() -> list[str]:
    """Rules for iptables of ztunnel's namespace."""
    pre = "-t mangle -A PREROUTING"
    to = f"--tproxy-mark {TPROXY} --on-port {OUTBOUND_PORT} --on-ip 127.0.0.1"
    source = ORIGINAL_SOURCE
    return [
        f"{pre} -p tcp -i pistioout -j TPROXY {to}",
        f"{pre} -p tcp -i eth0 ! -d {ZTUNNEL_IP} -j MARK --set-mark {source}",
    ]
