"""Istio ambient's second data path, of 1.18 to 1.20: tc redirects and bpf_sk_assign.

    guest     pod netns              node netns               ztunnel netns
    eth0 ---- tap0_kata == eth0 ---- pod  app_out             :15001
              (Kata's tcfilter)      |   +- redirect -+        | bpf_sk_assign
                                     |                v        | mark 0x400
                                     ztunnel ---------------- eth0 to_ztunnel
    server netns                     |  from_ztunnel: back to pod
    eth0 --------------------------- server

Packets of a pod go from veth to veth by BPF programs, past the node's IP stack: no
Geneve, no ipset, no iptables. In ztunnel's namespace a program finds the socket of the
connection, or ztunnel's listener, and its mark leads to a local route.

Spec: istio 1.20, cni/pkg/ebpf; bpf/redirect.bpf.c has what the programs do.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.datapath import bpf, plan
from fastpath.datapath.declared import (
    NODE,
    POD,
    SERVER,
    ZTUNNEL,
    Capture,
    Datapath,
    Hop,
)
from fastpath.datapath.geneve import mac_value, wire_order
from fastpath.datapath.rules import Mark
from fastpath.datapath.steps import Program, Route, Rule

if TYPE_CHECKING:
    from fastpath.datapath.steps import Step

NAME: Final = "ambient-ebpf"
MARK: Final = Mark(0x400, 0xFFF)

_SOURCE: Final = Path(bpf.__file__).with_name("redirect.bpf.c")
_TABLE: Final = 100

_PICTURE: Final = """\
guest     pod netns              node netns               ztunnel netns
eth0 ---- tap0_kata == eth0 ---- pod  app_out             :15001
          (Kata's tcfilter)      |   +- redirect -+        | bpf_sk_assign
                                 |                v        | mark 0x400
                                 ztunnel ---------------- eth0 to_ztunnel
server netns                     |  from_ztunnel: back to pod
eth0 --------------------------- server
"""


def declare() -> Datapath:
    """Declare the path."""
    return Datapath(
        name=NAME,
        title="Istio ambient 1.18 to 1.20: tc redirects, bpf_sk_assign",
        spec="istio 1.20, cni/pkg/ebpf; Kata's tcfilter",
        picture=_PICTURE,
        steps=(
            *plan.wired(POD, ZTUNNEL, SERVER),
            *_programs(),
            Rule(at=ZTUNNEL, priority=20000, mark=MARK, table=_TABLE),
            Route(at=ZTUNNEL, to="0.0.0.0/0", dev="lo", table=_TABLE, kind="local"),
            *plan.tcfilter(),
        ),
        hops=(
            Hop(POD, plan.TAP, "the guest's tap"),
            Hop(POD, "eth0", "the pod's veth, by tcfilter"),
            Hop(NODE, POD, "its other end: redirected to ztunnel's"),
            Hop(NODE, ZTUNNEL, "ztunnel's veth on the node"),
            Hop(ZTUNNEL, "eth0", "its other end: to ztunnel's socket"),
        ),
        sandbox=plan.SANDBOX,
        capture=Capture.TPROXY,
        server=str(plan.SERVER_WIRE.peer.ip),
    )


def _programs() -> tuple[Step, ...]:
    pod, ztunnel = plan.POD_WIRE, plan.ZTUNNEL_WIRE
    assert pod.peer_mac
    assert ztunnel.peer_mac
    to_ztunnel = {"ztunnel_mac": mac_value(ztunnel.peer_mac)}
    node = {"node_ip": wire_order(pod.node.ip.packed)}
    to_pod = {
        "pod_ip": wire_order(pod.peer.ip.packed),
        "pod_mac": mac_value(pod.peer_mac),
    }
    device = (("ztunnel_device", ZTUNNEL),)
    values = tuple((node | to_ztunnel).items())

    def on_pod(section: str, *, egress: bool) -> Program:
        return Program(
            at=NODE,
            device=POD,
            source=_SOURCE,
            section=section,
            values=values,
            devices=device,
            egress=egress,
            first=not egress,
        )

    return (
        on_pod("tc/app_out", egress=False),
        on_pod("tc/app_in", egress=True),
        Program(
            at=NODE,
            device=ZTUNNEL,
            source=_SOURCE,
            section="tc/from_ztunnel",
            values=tuple(to_pod.items()),
            devices=(("pod_device", POD),),
        ),
        Program(at=ZTUNNEL, device="eth0", source=_SOURCE, section="tc/to_ztunnel"),
    )
