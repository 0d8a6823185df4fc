"""Tunnels between two namespaces: what the underlay carries, and that all arrives.

Kinds that this kernel lacks are left out here; tests/vm/test_node.py runs these tests
on one that has them all.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from contextlib import ExitStack, closing
from ipaddress import IPv4Interface, IPv6Interface

import pytest

from fastpath.datapath import geneve, plan, tunnels
from fastpath.datapath.build import apply
from fastpath.datapath.declared import NODE, ZTUNNEL
from fastpath.datapath.netns import Namespace, sysctl
from fastpath.datapath.probe import Capturing
from fastpath.datapath.steps import GeneveEnd
from fastpath.datapath.tunnels import TunnelEnd
from fastpath.errors import FastpathError
from tests.support.limits import LIMIT_S

pytestmark = pytest.mark.netns

VNI = 1001
NODE_END = IPv4Interface("192.168.127.1/30")
ZTUNNEL_END = IPv4Interface("192.168.127.2/30")
NODE_IPV6 = IPv6Interface("2001:db8::1/64")
ZTUNNEL_IPV6 = IPv6Interface("2001:db8::2/64")
PORT = 9000
ALL = ("geneve", "geneve-bpf", *(kind.name for kind in tunnels.KINDS))
# from the outer IPv4 header to the inner one; by hand, from each specification
HEADS = {
    "geneve": (17, "17c1", bytes.fromhex("0000 6558 0003e9 00"), 14),
    "vxlan": (17, "12b5", bytes.fromhex("0800 0000 0003e9 00"), 14),
    "gre": (47, "", bytes.fromhex("2000 0800 000003e9"), 0),
    "gretap": (47, "", bytes.fromhex("2000 6558 000003e9"), 14),
    "ipip": (4, "", b"", 0),
    "sit": (4, "", b"", 0),
}


def end(at, kind, *, there):
    wire = plan.ZTUNNEL_WIRE
    node = at == NODE
    tunnel = geneve.Tunnel(
        device="tun",
        address=NODE_END if node else ZTUNNEL_END,
        vni=VNI,
        underlay=ZTUNNEL if node else "eth0",
        local=str((wire.node if node else wire.peer).ip),
        remote=str((wire.peer if node else wire.node).ip),
        remote_mac=there,
    )
    if kind.startswith("geneve"):
        return GeneveEnd(
            at=at, tunnel=tunnel, kind="bpf" if kind == "geneve-bpf" else "kernel"
        )
    found = next(each for each in tunnels.KINDS if each.name == kind)
    return TunnelEnd(at=at, tunnel=tunnel, kind=found)


def build(stack, node_kind, ztunnel_kind):
    wire = plan.ZTUNNEL_WIRE
    both = {role: stack.enter_context(Namespace()) for role in (NODE, ZTUNNEL)}
    steps = (
        *plan.wired(ZTUNNEL),
        end(NODE, node_kind, there=wire.peer_mac),
        end(ZTUNNEL, ztunnel_kind, there=wire.node_mac),
    )
    apply(steps, both, stack, what="tunnel")
    return both


def has(kind):
    try:
        with ExitStack() as stack:
            build(stack, kind, kind)
    except FastpathError as exc:
        if "this kernel lacks" in str(exc):
            return False
    return True


BY_IPV6 = ("geneve", "geneve-bpf", "vxlan", "gre", "gretap")
"""Those that carry IPv6, too; sit does in another mode than ambient-sit's."""
MIXED = (("geneve", "geneve-bpf"), ("geneve-bpf", "geneve"))
HERE = [kind for kind in ALL if has(kind)]
PAIRS = [(kind, kind) for kind in HERE]
PAIRS += [pair for pair in MIXED if set(pair) <= set(HERE)]


@pytest.fixture
def ends(request):
    """A tunnel's two namespaces, and what its underlay carries."""
    with ExitStack() as stack:
        both = build(stack, *request.param)
        underlay = Capturing(both[NODE], ZTUNNEL)
        yield both, stack.enter_context(closing(underlay))


def exchange(both, data, *, family=socket.AF_INET, node=NODE_END, ztunnel=ZTUNNEL_END):
    """Send from the node, over the tunnel; return what came."""
    with both[ZTUNNEL].socket(family) as server, both[NODE].socket(family) as client:
        for each in (server, client):
            each.settimeout(LIMIT_S)
        server.bind((str(ztunnel.ip), PORT))
        server.listen()
        client.connect((str(ztunnel.ip), PORT))
        far, peer = server.accept()
        with far:
            far.settimeout(LIMIT_S)
            assert peer[0] == str(node.ip)
            client.sendall(data)
            client.close()
            came = bytearray()
            while more := far.recv(65536):
                came += more
    return bytes(came)


def inner(frame, kind):
    """The inner IPv4 packet of a frame of the underlay; None: it has another inside."""
    protocol, port, head, ethernet = HEADS[kind]
    packet = frame[14:]
    assert packet[9] == protocol
    body = packet[20:]
    if port:
        assert body[2:4].hex() == port
        body = body[8:]
    if kind in {"gretap", "gre"} and body[:4] != head[:4]:
        return None
    assert body[: len(head)] == head
    body = body[len(head) :]
    if ethernet and body[12:14] != b"\x08\x00":
        return None  # ARP
    return body[ethernet:]


@pytest.mark.parametrize("ends", PAIRS, indirect=True, ids="/".join)
def test_bytes_arrive_and_the_underlay_has_them_in_the_tunnels_headers(ends, request):
    both, underlay = ends
    kind = request.node.callspec.params["ends"][0].removesuffix("-bpf")
    data = os.urandom(300_000)
    assert exchange(both, data) == data
    frames = [frame for out, frame in underlay.frames() if out and frame[23] != 6]
    frames = [frame for frame in frames if frame[12:14] == b"\x08\x00"]
    packets = [packet for frame in frames if (packet := inner(frame, kind))]
    assert packets
    for packet in packets:
        assert packet[9] == 6
        assert packet[12:20] == NODE_END.ip.packed + ZTUNNEL_END.ip.packed
    (ports,) = {struct.unpack_from("!H", p, (p[0] & 15) * 4 + 2) for p in packets}
    assert ports == (PORT,)


def do(where, *commands):
    """Run commands of ip(8) in a namespace."""
    for command in commands:
        argv = where.command(["ip", *command.split()])
        subprocess.run(argv, check=True, timeout=LIMIT_S)


def with_ipv6(where, address):
    where.run(sysctl, "ipv6/conf/tun/disable_ipv6", 0)
    do(where, f"address add {address} dev tun nodad")


@pytest.mark.parametrize(
    "ends",
    [pair for pair in PAIRS if set(pair) <= set(BY_IPV6)],
    indirect=True,
    ids="/".join,
)
def test_ipv6_arrives_by_the_kinds_that_carry_it(ends):
    both, underlay = ends
    with_ipv6(both[NODE], NODE_IPV6)
    with_ipv6(both[ZTUNNEL], ZTUNNEL_IPV6)
    data = os.urandom(300_000)
    came = exchange(
        both, data, family=socket.AF_INET6, node=NODE_IPV6, ztunnel=ZTUNNEL_IPV6
    )
    assert came == data
    outer = {frame[12:14] for out, frame in underlay.frames() if out}
    assert outer <= {b"\x08\x00", b"\x08\x06"}  # IPv4, ARP


if "sit" in HERE:

    def test_isatap_carries_ipv6_to_the_ipv4_address_that_is_in_it():
        """RFC 5214, section 6.1: the interface identifier ends with it."""
        wire = plan.ZTUNNEL_WIRE
        ends = {
            NODE: (wire.node.ip, IPv6Interface(f"2001:db8::5efe:{wire.node.ip}/64")),
            ZTUNNEL: (wire.peer.ip, IPv6Interface(f"2001:db8::5efe:{wire.peer.ip}/64")),
        }
        with ExitStack() as stack:
            both = {role: stack.enter_context(Namespace()) for role in ends}
            apply(plan.wired(ZTUNNEL), both, stack, what="wire")
            for role, (local, address) in ends.items():
                do(
                    both[role],
                    f"tunnel add tun mode isatap local {local}",
                    "link set tun up",
                )
                with_ipv6(both[role], address)
            data = os.urandom(300_000)
            (_, node), (_, ztunnel) = ends.values()
            came = exchange(
                both, data, family=socket.AF_INET6, node=node, ztunnel=ztunnel
            )
        assert came == data
