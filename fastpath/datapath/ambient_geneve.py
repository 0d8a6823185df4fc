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
import os
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final, Literal, Self

from fastpath.datapath import geneve, links, wires
from fastpath.datapath.links import Links
from fastpath.datapath.netns import Namespace, sysctl
from fastpath.datapath.rules import Mark, iptables
from fastpath.datapath.wires import Wire
from fastpath.vm.spec import Tap

if TYPE_CHECKING:
    from types import TracebackType

POD_SET: Final = "ztunnel-pods-ips"
TPROXY_PORT: Final = 15001

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


class Mode(enum.Enum):
    """Which packets from the pod take the tunnel."""

    EVERY_PACKET = "every-packet"
    """Each one: what Istio's design describes."""
    ISTIO_ALPHA = "istio-alpha"
    """The first of each connection, with the rules as shipped: the reply's mark
    is kept with the connection and sends the rest over the plain veth."""


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
    """A pod without a VM: the host's share of the path alone."""
    ztunnel: Wire = Wire(
        name="ztunnel",
        node=IPv4Interface("10.200.3.1/30"),
        peer=IPv4Interface("10.200.3.2/30"),
        mtu=geneve.UNDERLAY_MTU,
    )
    server: Wire = Wire(
        name="server",
        node=IPv4Interface("10.200.4.1/30"),
        peer=IPv4Interface("10.200.4.2/30"),
        mtu=geneve.UNDERLAY_MTU,
    )
    """As wide as ztunnel's, or ztunnel's own packets would not pass."""
    tunnel: Wire = Wire(
        name="istioout",
        node=IPv4Interface("192.168.127.1/30"),
        peer=IPv4Interface("192.168.127.2/30"),
        mtu=geneve.TUNNEL_MTU,
    )
    """Not a veth: the Geneve devices, of which ztunnel's is called pistioout."""
    vni: int = 1001

    @property
    def node_ip(self) -> str:
        """The node's end of the underlay: Istio's HIP."""
        return str(self.ztunnel.node.ip)

    @property
    def ztunnel_ip(self) -> str:
        """The pod IP of ztunnel: Istio's ZIP."""
        return str(self.ztunnel.peer.ip)


class AmbientGeneve:
    """The whole path, as a context manager.

    Leaving it, or the end of the process by any means, leaves nothing behind.

    Args:
        geneve: the tunnel: "kernel", "bpf", or "auto": the kernel's if it has it.
        mode: which packets take the tunnel.
        plan: the addresses.

    Raises:
        FastpathError: a right, a program or a kernel feature is missing.
    """

    tap: Tap
    geneve: geneve.Kind
    """Which tunnel it became."""
    node_netns: Namespace
    ztunnel_netns: Namespace
    server_netns: Namespace
    pod_netns: Namespace
    """The sandbox's, with the tap; the guest's packets pass it by."""
    container_netns: Namespace
    """A pod without a VM: a program in it takes the same path."""

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
        self._stack = ExitStack()

    @property
    def guest_address(self) -> IPv4Interface:
        """Address and prefix of the guest's interface: the pod's."""
        return self.plan.pod.peer

    @property
    def guest_gateway(self) -> str:
        """The guest's default route."""
        return str(self.plan.pod.node.ip)

    @property
    def server_address(self) -> str:
        """Where a server behind ztunnel listens."""
        return str(self.plan.server.peer.ip)

    def tunnel_packets(self) -> int:
        """Packets that the node sent into the tunnel so far, ARP's among them."""
        return self.node_netns.run(_sent, self.plan.tunnel.name)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.geneve = geneve.choose(self._want)
            self.node_netns = stack.enter_context(Namespace())
            self.pod_netns = stack.enter_context(Namespace())
            self.container_netns = stack.enter_context(Namespace())
            self.ztunnel_netns = stack.enter_context(Namespace())
            self.server_netns = stack.enter_context(Namespace())
            self._build()
            fd, mac = self.pod_netns.run(_kata_tcfilter, self.plan.pod.mtu)
            stack.callback(os.close, fd)
            self.tap = Tap(fd=fd, mac=mac)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _build(self) -> None:
        """Connect the namespaces and configure the node and ztunnel's side."""
        plan = self.plan
        self.node_netns.run(wires.prepare_node)
        for wire, netns in (
            (plan.pod, self.pod_netns),
            (plan.container, self.container_netns),
            (plan.ztunnel, self.ztunnel_netns),
            (plan.server, self.server_netns),
        ):
            wires.join(self.node_netns, netns, wire)

        node_mac = self.node_netns.run(_mac, plan.ztunnel.name)
        ztunnel_mac = self.ztunnel_netns.run(_mac, "eth0")
        self.node_netns.run(_configure_node, plan, self.mode, self.geneve, ztunnel_mac)
        self.ztunnel_netns.run(_configure_ztunnel, plan, self.geneve, node_mac)


def _mac(device: str) -> str:
    with Links() as ip:
        return ip.mac(device)


def _sent(device: str) -> int:
    with Links() as ip:
        return ip.sent(device)


def _kata_tcfilter(mtu: int) -> tuple[int, str]:
    """In the pod: join the tap and eth0, past the namespace's own IP stack.

    Returns:
        The tap's descriptor, and the MAC address of eth0: the node sends to it,
        so the guest must have it.
    """
    fd = links.tap("tap0_kata")
    try:
        with Links() as ip:
            ip.up("tap0_kata", mtu=mtu)
            ip.redirect("eth0", "tap0_kata")
            ip.redirect("tap0_kata", "eth0")
            return fd, ip.mac("eth0")
    except BaseException:
        os.close(fd)
        raise


def _configure_node(
    plan: Plan, mode: Mode, kind: geneve.Kind, ztunnel_mac: str
) -> None:
    """Istio's node: CreateRulesOnNode and what adds a pod to the mesh."""
    wire = plan.ztunnel
    tunnel = geneve.Tunnel(
        device=plan.tunnel.name,
        address=plan.tunnel.node,
        vni=plan.vni,
        underlay=wire.name,
        local=plan.node_ip,
        remote=plan.ztunnel_ip,
        remote_mac=ztunnel_mac,
    )
    with Links() as ip:
        geneve.add(ip, tunnel, kind)
        for device in (plan.tunnel.name, wire.name):
            sysctl(f"ipv4/conf/{device}/accept_local", 1)

        for table in (_TABLE_INBOUND, _TABLE_OUTBOUND, _TABLE_DIRECT):
            ip.route(f"{plan.ztunnel_ip}/32", dev=wire.name, table=table)
        via = str(plan.tunnel.peer.ip)
        ip.route("default", dev=plan.tunnel.name, via=via, table=_TABLE_OUTBOUND)
        via = plan.ztunnel_ip
        ip.route("default", dev=wire.name, via=via, table=_TABLE_DIRECT, onlink=True)

        ip.rule(100, mark=SKIP, goto=_RULE_MAIN)
        ip.rule(101, mark=OUTBOUND, table=_TABLE_OUTBOUND)
        ip.rule(102, mark=DIRECT, table=_TABLE_DIRECT)
        ip.rule(103, table=_TABLE_INBOUND)
    links.ipset(POD_SET, [str(plan.pod.peer.ip), str(plan.container.peer.ip)])
    iptables(*node_rules(plan, mode))


def _configure_ztunnel(plan: Plan, kind: geneve.Kind, node_mac: str) -> None:
    """Istio's ztunnel pod: CreateRulesWithinNodeProxyNS."""
    tunnel = geneve.Tunnel(
        device="pistioout",
        address=plan.tunnel.peer,
        vni=plan.vni,
        underlay="eth0",
        local=plan.ztunnel_ip,
        remote=plan.node_ip,
        remote_mac=node_mac,
    )
    with Links() as ip:
        geneve.add(ip, tunnel, kind)
        ip.rule(20000, mark=TPROXY, table=_TABLE_LOCAL)
        ip.rule(20003, mark=ORIGINAL_SOURCE, table=_TABLE_LOCAL)
        ip.route("0.0.0.0/0", dev="lo", table=_TABLE_LOCAL, kind="local")
    iptables(*ztunnel_rules(plan))


def node_rules(plan: Plan, mode: Mode) -> list[str]:
    """Rules of the node, for iptables, in Istio's order.

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
        f"-t mangle -A ztunnel-PREROUTING {rule}" for rule in _prerouting_rules(plan)
    ]
    rules.append(
        f"-t mangle -A ztunnel-OUTPUT -s {plan.node_ip} -j MARK --set-mark {PROXY}"
    )
    rules += [
        f"-t mangle -A ztunnel-{chain} -m mark --mark {mark} -j CONNMARK"
        f" --save-mark --nfmask {mark.mask:#x} --ctmask {mark.mask:#x}"
        for chain in ("FORWARD", "INPUT")
        for mark in (PROXY, PROXY_AS_POD)
    ]
    if mode is Mode.EVERY_PACKET:
        rules = [rule for rule in rules if "connmark" not in rule.lower()]
    return rules


def _prerouting_rules(plan: Plan) -> list[str]:
    """How the node tells a pod's packet from ztunnel's: the order counts."""
    device = plan.ztunnel.name
    answer = f"-i {device} ! -s {plan.ztunnel_ip}"
    known = f"! -i {device} -m connmark --mark {PROXY_AS_POD}"
    skip = f"-m mark --mark {SKIP} -j RETURN"
    return [
        f"-i {plan.tunnel.name} -j MARK --set-mark {SKIP}",
        f"-i {plan.tunnel.name} -j RETURN",
        f"-p udp -m udp --dport {geneve.PORT} -j RETURN",
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


def ztunnel_rules(plan: Plan) -> list[str]:
    """Rules for iptables of ztunnel's namespace."""
    pre = "-t mangle -A PREROUTING"
    to = f"--tproxy-mark {TPROXY} --on-port {TPROXY_PORT} --on-ip 127.0.0.1"
    source = ORIGINAL_SOURCE
    return [
        f"{pre} -p tcp -i pistioout -j TPROXY {to}",
        f"{pre} -p tcp -i eth0 ! -d {plan.ztunnel_ip} -j MARK --set-mark {source}",
    ]
