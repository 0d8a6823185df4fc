"""What the report says without measuring it: each path's make-up, the method.

Copies and stacks are declared here, with where they are to be seen. They are
counted from the program's buffer to who answers: ztunnel, or the proxy that it hands
connections to. Its own reading of the bytes is included, what it then does with them
not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastpath.datapath import tunnels
from fastpath.report.model import PathFacts

if TYPE_CHECKING:
    from fastpath.commands.compare.measure import Counts

OTHER: Final = "the other proxy"
"""Who answers where connections are handed on."""

TSI: Final = PathFacts(
    title="Fast path: TSI over shared-memory vsock",
    stacks=(),
    copies_up=(
        # net/vmw_vsock/virtio_transport_common.c: memcpy_from_msg()
        "program's buffer to a guest socket buffer",
        # vhost_user/native: relays write guest descriptors with one writev;
        # ztunnel's own services read them in place, which is no copy.
    ),
    copies_down=(
        # vhost_user/native: readv, or a fill, straight into RX descriptors
        "ztunnel's source to the guest's receive buffer",
        # net/vmw_vsock/virtio_transport_common.c: memcpy_to_msg()
        "guest's receive buffer to the program's",
    ),
    connections=("ztunnel to server",),
)

_TAP_UP: Final = (
    # net/ipv4/tcp.c: tcp_sendmsg()
    "program's buffer to a guest socket buffer",
    # hw/net/virtio-net.c, net/tap.c: writev of guest memory to the tap
    "guest memory to a host socket buffer (QEMU writes the tap)",
    # net/ipv4/tcp.c: tcp_recvmsg()
    "host socket buffer to ztunnel",
)
_TAP_DOWN: Final = (
    "ztunnel to a host socket buffer",
    # net/tap.c: tap_send() reads into its own buffer first
    "host socket buffer to QEMU (reads the tap)",
    # hw/net/virtio-net.c: iov_from_buf() in virtio_net_receive_rcu()
    "QEMU to the guest's receive buffer",
    "guest's receive buffer to the program's",
)


def _by_tap(title: str, *stacks: str) -> PathFacts:
    """Make the facts of a standard path: by virtio-net, a tap and TCP to ztunnel."""
    return PathFacts(
        title=f"Standard path: {title}",
        stacks=("TCP/IP of the guest", *stacks),
        copies_up=_TAP_UP,
        copies_down=_TAP_DOWN,
        connections=("program to ztunnel", "ztunnel to server"),
    )


def _without_mesh(tap: str) -> PathFacts:
    """Make the facts of a path that has no mesh."""
    by_tap = _by_tap(
        f"none: {tap} and veth, no mesh",
        "IP forwarding on the node",
        "TCP/IP of the server's namespace",
    )
    return replace(
        by_tap,
        copies_up=(*_TAP_UP[:2], "host socket buffer to who answers"),
        copies_down=("who answers to a host socket buffer", *_TAP_DOWN[1:]),
        connections=("program to server",),
        answers="a server without a mesh",
    )


def _tunnelled(tunnel: str) -> tuple[str, ...]:
    return (
        "IP forwarding on the node (mark, policy routing)",
        f"{tunnel} tunnel, out and in",
        "TCP/IP of the ztunnel's namespace (TPROXY)",
    )


_GENEVE: Final = _tunnelled("UDP/IP of the Geneve")
STANDARD: Final = {
    "inpod-l3forwarding": _by_tap(
        "Istio's in-pod rules, Kata's l3forwarding",
        "TCP/IP of the pod's namespace (REDIRECT, NAT)",
    ),
    "ambient-geneve": _by_tap("veth, Geneve, TPROXY", *_GENEVE),
    "ambient-geneve-alpha": _by_tap(
        "veth, TPROXY, Geneve for a connection's first packet", *_GENEVE
    ),
    **{
        f"ambient-{kind.name}": _by_tap(
            f"veth, {kind.title} in Geneve's place, TPROXY",
            *_tunnelled(f"{'UDP/' if kind.port else ''}IP of the {kind.title}"),
        )
        for kind in tunnels.KINDS
    },
    "ambient-ebpf": _by_tap(
        "veth to veth by BPF, bpf_sk_assign",
        "TCP/IP of the ztunnel's namespace (bpf_sk_assign)",
    ),
    "plain": _without_mesh("tap"),
    "macvtap": _without_mesh("macvtap"),
    "passt": replace(
        _without_mesh("passt"),
        title="Standard path: none: passt in a tap's place, no mesh",
        stacks=(
            "TCP/IP of the guest",
            "TCP/IP of passt, in user space",
            "TCP/IP of the pod's namespace",
            "IP forwarding on the node",
            "TCP/IP of the server's namespace",
        ),
        copies_up=(
            _TAP_UP[0],
            # passt, tcp_vu.c: sendmsg() of guest descriptors
            "guest memory to a host socket buffer (passt)",
            "host socket buffer to who answers",
        ),
        copies_down=(
            "who answers to a host socket buffer",
            # passt, tcp_vu.c: recvmsg() into guest descriptors, peeking
            "host socket buffer to the guest's receive buffer (passt)",
            _TAP_DOWN[-1],
        ),
        connections=("program to passt", "passt to server"),
    ),
}
"""The standard paths', by name."""


def _by_socket(
    title: str,
    *,
    stacks: tuple[str, ...] = (),
    connections: tuple[str, ...],
    answers: str = OTHER,
) -> PathFacts:
    """Make the facts of a hand-off by a socket, whatever its kind."""
    return PathFacts(
        title=f"Fast path, handed on: {title}",
        copies_up=(
            *TSI.copies_up,
            # vhost_user/native/side/socket.c: one sendmsg() of guest descriptors
            "guest memory to a host socket buffer",
            "host socket buffer to the other proxy",
        ),
        copies_down=(
            "the other proxy to a host socket buffer",
            # vhost_user/native/side/socket.c: one recvmsg() into RX descriptors
            "host socket buffer to the guest's receive buffer",
            *TSI.copies_down[1:],
        ),
        stacks=stacks,
        connections=connections,
        answers=answers,
    )


_LO: Final = "TCP/IP of the pod's namespace, over lo"

POD: Final = _by_socket(
    "sockets of the pod's namespace",
    stacks=(_LO,),
    connections=("ztunnel, in the pod's namespace, to server",),
    answers="a server in the pod",
)
INPOD: Final = _by_socket(
    "Istio's in-pod rules",
    stacks=(f"{_LO}, with NAT",),
    connections=(
        "ztunnel to the pod's proxy, over lo with NAT",
        "that proxy to server",
    ),
)
SOCKS5: Final = _by_socket(
    "SOCKS5 in the pod's namespace",
    stacks=(_LO,),
    connections=("ztunnel to the pod's proxy, over lo", "that proxy to server"),
)
UNIX: Final = _by_socket("a unix socket", connections=("the other proxy to server",))
RING: Final = PathFacts(
    title="Fast path, handed on: rings of shared memory",
    stacks=(),
    copies_up=(
        *TSI.copies_up,
        # vhost_user/native/side/ring.c
        "guest memory to the ring",
        # lib/ring/fastpath_ring.c: fpring_read()
        "the ring to the other proxy",
    ),
    copies_down=(
        "the other proxy to the ring",
        "the ring to the guest's receive buffer",
        *TSI.copies_down[1:],
    ),
    connections=("the other proxy to server",),
    answers=OTHER,
)


VSOCK: Final = replace(
    UNIX,
    title="AF_VSOCK as it is, to a unix socket: our back-end",
    connections=("the other process to server",),
    answers="another process",
)
VSOCK_RUST_VMM: Final = replace(
    VSOCK,
    title="AF_VSOCK as it is, to a unix socket: rust-vmm's vhost-device-vsock",
    copies_up=(
        TSI.copies_up[0],
        # rust-vmm, vsock crate: a packet's buffer is read from guest memory first
        "guest memory to a buffer of the back-end's",
        "that to a host socket buffer",
        "host socket buffer to the other process",
    ),
    copies_down=(
        "the other process to a host socket buffer",
        # rust-vmm, vsock crate: read straight into the RX descriptor's slice
        "host socket buffer to the guest's receive buffer",
        *TSI.copies_down[1:],
    ),
)


EMBEDDED: Final = PathFacts(
    title="Fast path, embedded: HBONE to another node's ztunnel",
    stacks=("TCP/IP from ztunnel to the other node's",),
    copies_up=(
        *TSI.copies_up,
        # vhost_user/native/side/out.c: tunnel_seal(); of frames below 4 KiB one more
        "guest memory to a TLS record, encrypted",
        "TLS record to a host socket buffer",
        "host socket buffer to the other node's ztunnel",
        "decryption there",
    ),
    copies_down=(
        "encryption at the other node's ztunnel",
        "TLS record to a host socket buffer",
        "host socket buffer to ztunnel",
        "decryption",
        # vhost_user/native/side/in.c
        "a frame's payload to the guest's receive buffer",
        *TSI.copies_down[1:],
    ),
    connections=(
        "ztunnel to the other node's, mutual TLS and HTTP/2",
        "that ztunnel to server",
    ),
    answers="the other node's ztunnel",
)


def method(counts: Counts, *, handed_on: bool) -> tuple[str, ...]:
    """Return how it was measured, in sentences.

    Args:
        counts: of a round.
        handed_on: there are hand-offs among the paths.
    """
    program = (
        "The same static program (guest/probe, plain TCP sockets) runs on each "
        "path, in the same microVM, against the same ztunnel process. To ztunnel: "
        "an echo, a sink and a source that ztunnel answers itself. Through ztunnel: "
        "an echo server in a process of its own."
    )
    others = (
        "A hand-off is a sandbox's, so each has a microVM of its own, of the same "
        "image and size, with the same ztunnel process behind it. All are up "
        'during the whole run and idle but the one whose turn it is. What is "to '
        'ztunnel" elsewhere is to the proxy that takes its connections: a process '
        "(fastpath/commands/compare/proxy, one thread, epoll) that answers the same "
        "three itself, and passes others on to the same server. It never spins. Of "
        "tsi+embedded it is another engine of ours with a gate for HBONE tunnels, "
        "which asks Python about each CONNECT."
    )
    rounds = (
        f"A round is, on each path: {counts}. The paths take turns within each part "
        "of a round and change their order from round to round; one shorter round "
        "of warm-up is dropped."
    )
    ratios = (
        "A ratio is the median over the rounds of one path's figure (the median of "
        "the round's times, or its rate) divided by the other's of the same round; "
        "the interval is two of the rounds' own ratios, exact at 95 % or more."
    )
    return (program, *([others] if handed_on else []), rounds, ratios)
