"""Geneve tunnel devices: the kernel's, or the same in tc-eBPF where it has none.

Either way the device carries Ethernet frames, resolves addresses over the
tunnel, and puts RFC 8926 packets on the underlay, UDP port 6081. What differs
is where the outer headers come from; bpf/geneve.bpf.c says how.

A frame of the tunnel's MTU grows by 50 bytes. If the underlay cannot carry
that, small packets pass and full ones vanish without a message, so the
underlay's MTU must be at least `UNDERLAY_MTU` for a tunnel of 1500.

Spec: RFC 8926; Linux, drivers/net/geneve.c.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from fastpath.datapath import bpf
from fastpath.datapath.links import CLSACT_EGRESS, CLSACT_INGRESS, Links
from fastpath.datapath.netns import Namespace
from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from ipaddress import IPv4Interface

Kind: TypeAlias = Literal["kernel", "bpf"]
Want: TypeAlias = Literal["auto", "kernel", "bpf"]

PORT: Final = 6081
OVERHEAD: Final = 50
"""Bytes: inner Ethernet 14, Geneve 8, UDP 8, outer IPv4 20."""
TUNNEL_MTU: Final = 1500
UNDERLAY_MTU: Final = TUNNEL_MTU + OVERHEAD

_SOURCE: Final = Path(bpf.__file__).with_name("geneve.bpf.c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """One end of a tunnel."""

    device: str
    address: IPv4Interface
    vni: int
    underlay: str
    """Device that has `local` and reaches `remote` in one hop."""
    local: str
    remote: str
    remote_mac: str
    """The underlay's other end; only BPF tunnels need it, and only for ARP."""


def choose(want: Want) -> Kind:
    """Decide which kind of tunnel to make.

    Raises:
        FastpathError: the kernel's is wanted and the kernel has none.
    """
    if want == "bpf":
        return "bpf"
    try:
        with Namespace() as scratch:
            scratch.run(_probe_kernel)
    except FastpathError:
        if want == "kernel":
            raise
        return "bpf"
    return "kernel"


def add(links: Links, tunnel: Tunnel, kind: Kind) -> None:
    """Make `tunnel` in the calling thread's namespace and bring it up.

    Raises:
        FastpathError: a kernel feature or the right to use it is missing.
    """
    if kind == "kernel":
        links.geneve(tunnel.device, vni=tunnel.vni, remote=tunnel.remote, port=PORT)
        links.up(tunnel.device, mtu=TUNNEL_MTU)
    else:
        links.ifb(tunnel.device)
        links.up(tunnel.device, mtu=TUNNEL_MTU, arp=True)
        _attach(links, tunnel)
    links.address(tunnel.device, tunnel.address)


def parameters(links: Links, tunnel: Tunnel) -> dict[str, int]:
    """The values of geneve.bpf.c's parameters for `tunnel`."""
    return {
        "geneve_local": wire_order(socket.inet_aton(tunnel.local)),
        "geneve_remote": wire_order(socket.inet_aton(tunnel.remote)),
        "geneve_vni": tunnel.vni,
        "geneve_underlay": links.index(tunnel.underlay),
        "geneve_tunnel": links.index(tunnel.device),
        "geneve_local_mac": mac_value(links.mac(tunnel.underlay)),
        "geneve_remote_mac": mac_value(tunnel.remote_mac),
    }


def load(section: str, values: dict[str, int]) -> int:
    """Load "tc/encap" or "tc/decap"; the caller closes the descriptor."""
    return bpf.load(bpf.compile_source(_SOURCE), section, values)


def _attach(links: Links, tunnel: Tunnel) -> None:
    values = parameters(links, tunnel)
    for section, device, parent in (
        ("tc/encap", tunnel.device, CLSACT_EGRESS),
        ("tc/decap", tunnel.underlay, CLSACT_INGRESS),
    ):
        program = load(section, values)
        try:
            links.attach(device, parent, program)
        finally:
            os.close(program)


def _probe_kernel() -> None:
    with Links() as links:
        links.geneve("probe", vni=1, remote="192.0.2.1", port=PORT)


def mac_value(address: str) -> int:
    """An Ethernet address as a parameter of a BPF program."""
    return wire_order(bytes.fromhex(address.replace(":", "")))


def wire_order(octets: bytes) -> int:
    """The integer that lies in a little-endian host's memory as `octets`."""
    return int.from_bytes(octets, "little")
