"""What the report says without measuring it: each path's make-up, the method.

A path is its hops, from the program to who answers: ztunnel, or the proxy that it hands
connections to. Copies are declared with the hop whose code makes them, where they are
to be seen. Who answers reading the bytes is included, what it then does with them not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastpath.datapath import tunnels
from fastpath.report.model import Hop, PathFacts

if TYPE_CHECKING:
    from fastpath.commands.compare.measure import Counts

GUEST: Final = "guest"
HOST: Final = "host"
POD_NETNS: Final = "pod's namespace"
NODE_NETNS: Final = "node's namespace"
ZTUNNEL_NETNS: Final = "ztunnel's namespace"

OTHER: Final = "the other proxy"
"""Who answers where connections are handed on."""

# net/vmw_vsock/virtio_transport_common.c: memcpy_to_msg(); net/ipv4/tcp.c
PROGRAM: Final = Hop(
    "program", GUEST, thread=True, down=("guest's receive buffer to the program's",)
)
# net/vmw_vsock/virtio_transport_common.c: memcpy_from_msg()
_TO_GUEST: Final = "program's buffer to a guest socket buffer"
# vhost_user/native/side/socket.c: one recvmsg() into RX descriptors
_FROM_SOCKET: Final = "host socket buffer to the guest's receive buffer"
AF_VSOCK: Final = Hop("AF_VSOCK, virtio-vsock", GUEST, up=(_TO_GUEST,))
BY_TSI: Final = replace(AF_VSOCK, name="TSI, AF_VSOCK, virtio-vsock")

OURS: Final = "ztunnel, with the vsock device"


def _by_socket_of_host(name: str, who: str) -> Hop:
    """Make the hop of a process that reads and writes a socket of the host's."""
    return Hop(
        name,
        HOST,
        thread=True,
        up=(f"host socket buffer to {who}",),  # net/ipv4/tcp.c: tcp_recvmsg()
        down=(f"{who} to a host socket buffer",),
    )


TSI: Final = PathFacts(
    title="Fast path: TSI over shared-memory vsock",
    hops=(
        PROGRAM,
        BY_TSI,
        Hop(
            OURS,
            HOST,
            thread=True,
            # vhost_user/native: readv, or a fill, straight into RX descriptors; upwards
            # ztunnel's own services read guest descriptors in place, which is no copy.
            down=("ztunnel's source to the guest's receive buffer",),
        ),
    ),
    connections=("ztunnel to server",),
)

_GUEST_TCP: Final = Hop(
    "TCP/IP, virtio-net",
    GUEST,
    stack="TCP/IP of the guest",
    up=(_TO_GUEST,),  # net/ipv4/tcp.c: tcp_sendmsg()
)
_QEMU: Final = Hop(
    "QEMU: virtio-net, tap",
    HOST,
    thread=True,
    # hw/net/virtio-net.c, net/tap.c: writev of guest memory to the tap
    up=("guest memory to a host socket buffer (QEMU writes the tap)",),
    down=(
        # net/tap.c: tap_send() reads into its own buffer first
        "host socket buffer to QEMU (reads the tap)",
        # hw/net/virtio-net.c: iov_from_buf() in virtio_net_receive_rcu()
        "QEMU to the guest's receive buffer",
    ),
)
_ZTUNNEL: Final = _by_socket_of_host("ztunnel", "ztunnel")
_SERVER: Final = _by_socket_of_host("server", "who answers")
_FORWARDS: Final = "IP forwarding on the node"
_SERVER_TCP: Final = Hop(
    "TCP/IP", "server's namespace", stack="TCP/IP of the server's namespace"
)


def _by_tap(title: str, *stacks: Hop) -> PathFacts:
    """Make the facts of a standard path: by virtio-net, a tap and TCP to ztunnel."""
    return PathFacts(
        title=f"Standard path: {title}",
        hops=(PROGRAM, _GUEST_TCP, _QEMU, *stacks, _ZTUNNEL),
        connections=("program to ztunnel", "ztunnel to server"),
    )


def _without_mesh(title: str, *hops: Hop) -> PathFacts:
    """Make the facts of a path that has no mesh."""
    return PathFacts(
        title=f"Standard path: none: {title}, no mesh",
        hops=(
            PROGRAM,
            _GUEST_TCP,
            *hops,
            Hop("forwarding", NODE_NETNS, stack=_FORWARDS),
            _SERVER_TCP,
            _SERVER,
        ),
        connections=("program to server",),
        answers="a server without a mesh",
    )


def _tunnelled(kind: str, by: str) -> tuple[Hop, ...]:
    return (
        Hop(
            "mark, policy routing",
            NODE_NETNS,
            stack=f"{_FORWARDS} (mark, policy routing)",
        ),
        Hop(f"{kind} tunnel", NODE_NETNS, stack=f"{by} tunnel, out and in"),
        Hop(
            "TCP/IP, TPROXY",
            ZTUNNEL_NETNS,
            stack="TCP/IP of the ztunnel's namespace (TPROXY)",
        ),
    )


_OF_SIDECAR: Final = "sidecar's buffer to a guest socket buffer"
_WITH_SIDECAR: Final = PathFacts(
    title="Standard path: Istio's sidecar, a proxy in the guest; tap and veth",
    hops=(
        PROGRAM,
        replace(
            _GUEST_TCP,
            name="TCP/IP, lo, REDIRECT, NAT",
            stack="TCP/IP of the guest, over lo, with NAT",
        ),
        Hop(
            "sidecar",
            GUEST,
            thread=True,
            up=("guest socket buffer to the sidecar's",),
            down=("guest's receive buffer to the sidecar's", _OF_SIDECAR),
        ),
        replace(_GUEST_TCP, up=(_OF_SIDECAR,)),
        _QEMU,
        Hop("forwarding", NODE_NETNS, stack=_FORWARDS),
        _SERVER_TCP,
        _SERVER,
    ),
    connections=("program to sidecar, in the guest", "sidecar to server"),
    answers="a server behind the sidecar",
)

_GENEVE: Final = _tunnelled("Geneve", "UDP/IP of the Geneve")
STANDARD: Final = {
    "inpod-l3forwarding": _by_tap(
        "Istio's in-pod rules, Kata's l3forwarding",
        Hop(
            "TCP/IP, REDIRECT, NAT",
            POD_NETNS,
            stack="TCP/IP of the pod's namespace (REDIRECT, NAT)",
        ),
    ),
    "ambient-geneve": _by_tap("veth, Geneve, TPROXY", *_GENEVE),
    "ambient-geneve-alpha": _by_tap(
        "veth, TPROXY, Geneve for a connection's first packet", *_GENEVE
    ),
    **{
        f"ambient-{kind.name}": _by_tap(
            f"veth, {kind.title} in Geneve's place, TPROXY",
            *_tunnelled(
                kind.title, f"{'UDP/' if kind.port else ''}IP of the {kind.title}"
            ),
        )
        for kind in tunnels.KINDS
    },
    "ambient-ebpf": _by_tap(
        "veth to veth by BPF, bpf_sk_assign",
        Hop(
            "TCP/IP, bpf_sk_assign",
            ZTUNNEL_NETNS,
            stack="TCP/IP of the ztunnel's namespace (bpf_sk_assign)",
        ),
    ),
    "sidecar": _WITH_SIDECAR,
    "plain": _without_mesh("tap and veth", _QEMU),
    "macvtap": _without_mesh(
        "macvtap and veth", replace(_QEMU, name="QEMU: virtio-net, macvtap")
    ),
    "passt": replace(
        _without_mesh(
            "passt in a tap's place",
            Hop(
                "passt",
                HOST,
                thread=True,
                stack="TCP/IP of passt, in user space",
                # passt, tcp_vu.c: sendmsg() of guest descriptors
                up=("guest memory to a host socket buffer (passt)",),
                # passt, tcp_vu.c: recvmsg() into guest descriptors, peeking
                down=(f"{_FROM_SOCKET} (passt)",),
            ),
            Hop("TCP/IP", POD_NETNS, stack="TCP/IP of the pod's namespace"),
        ),
        connections=("program to passt", "passt to server"),
    ),
}
"""The standard paths', by name."""


_SENDS: Final = Hop(
    OURS,
    HOST,
    thread=True,
    # vhost_user/native/side/socket.c: one sendmsg() of guest descriptors
    up=("guest memory to a host socket buffer",),
    down=(_FROM_SOCKET,),
)
_ANSWERS: Final = _by_socket_of_host("other proxy", OTHER)


def _by_socket(
    title: str, *between: Hop, connections: tuple[str, ...], answers: str = OTHER
) -> PathFacts:
    """Make the facts of a hand-off by a socket, whatever its kind."""
    return PathFacts(
        title=f"Fast path, handed on: {title}",
        hops=(PROGRAM, BY_TSI, _SENDS, *between, _ANSWERS),
        connections=connections,
        answers=answers,
    )


_LO: Final = Hop(
    "TCP/IP, lo", POD_NETNS, stack="TCP/IP of the pod's namespace, over lo"
)

POD: Final = _by_socket(
    "sockets of the pod's namespace",
    _LO,
    connections=("ztunnel, in the pod's namespace, to server",),
    answers="a server in the pod",
)
INPOD: Final = _by_socket(
    "Istio's in-pod rules",
    replace(_LO, name="TCP/IP, lo, REDIRECT, NAT", stack=f"{_LO.stack}, with NAT"),
    connections=(
        "ztunnel to the pod's proxy, over lo with NAT",
        "that proxy to server",
    ),
)
SOCKS5: Final = _by_socket(
    "SOCKS5 in the pod's namespace",
    _LO,
    connections=("ztunnel to the pod's proxy, over lo", "that proxy to server"),
)
UNIX: Final = _by_socket("a unix socket", connections=("the other proxy to server",))
RING: Final = PathFacts(
    title="Fast path, handed on: rings of shared memory",
    hops=(
        PROGRAM,
        BY_TSI,
        # vhost_user/native/side/ring.c
        replace(
            _SENDS,
            up=("guest memory to the ring",),
            down=("the ring to the guest's receive buffer",),
        ),
        # lib/ring/fastpath_ring.c: fpring_read(), fpring_write()
        replace(
            _ANSWERS,
            up=("the ring to the other proxy",),
            down=("the other proxy to the ring",),
        ),
    ),
    connections=("the other proxy to server",),
    answers=OTHER,
)

_PROCESS: Final = _by_socket_of_host("other process", "the other process")
VSOCK: Final = PathFacts(
    title="AF_VSOCK as it is, to a unix socket: our back-end",
    hops=(PROGRAM, AF_VSOCK, replace(_SENDS, name="vhost-user-vsock"), _PROCESS),
    connections=("the other process to server",),
    answers="another process",
)
VSOCK_RUST_VMM: Final = replace(
    VSOCK,
    title="AF_VSOCK as it is, to a unix socket: rust-vmm's vhost-device-vsock",
    hops=(
        PROGRAM,
        AF_VSOCK,
        Hop(
            "vhost-device-vsock",
            HOST,
            thread=True,
            # rust-vmm, vsock crate: a packet's buffer is read from guest memory first
            up=(
                "guest memory to a buffer of the back-end's",
                "that to a host socket buffer",
            ),
            # rust-vmm, vsock crate: read straight into the RX descriptor's slice
            down=(_FROM_SOCKET,),
        ),
        _PROCESS,
    ),
)


EMBEDDED: Final = PathFacts(
    title="Fast path, embedded: HBONE to another node's ztunnel",
    hops=(
        PROGRAM,
        BY_TSI,
        replace(
            _SENDS,
            up=(
                # vhost_user/native/side/out.c: tunnel_seal(); of frames below 4 KiB
                # one more
                "guest memory to a TLS record, encrypted",
                "TLS record to a host socket buffer",
            ),
            down=(
                "host socket buffer to ztunnel",
                "decryption",
                # vhost_user/native/side/in.c
                "a frame's payload to the guest's receive buffer",
            ),
        ),
        Hop(
            "TCP/IP, mutual TLS",
            "between nodes",
            stack="TCP/IP from ztunnel to the other node's",
        ),
        Hop(
            "the other node's ztunnel",
            HOST,
            thread=True,
            up=("host socket buffer to the other node's ztunnel", "decryption there"),
            down=(
                "encryption at the other node's ztunnel",
                "TLS record to a host socket buffer",
            ),
        ),
    ),
    connections=(
        "ztunnel to the other node's, mutual TLS and HTTP/2",
        "that ztunnel to server",
    ),
    answers="the other node's ztunnel",
)


def method(
    counts: Counts, *, handed_on: bool, sidecar: bool, disturbed: bool
) -> tuple[str, ...]:
    """Return how it was measured, in sentences.

    Args:
        counts: of a round.
        handed_on: there are hand-offs among the paths.
        sidecar: that path is among them.
        disturbed: something is done to paths under load.
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
    within = (
        "The sidecar is a process in the guest (fastpath/commands/compare/proxy, one "
        "thread, epoll) that copies: it reads no request, encrypts nothing, and so "
        "costs less than Envoy. connect() is done when the sidecar has "
        "the connection, whatever becomes of the one behind it."
    )
    under_load = (
        "Under load: connections at a fixed rate, each echoed 64 B, while ztunnel gets "
        "a mesh of 500 more workloads and 50 more policies, or who takes the path's "
        "connections is ended, away for half a second, and started again. With "
        "restarts captured connections have a ztunnel process of their own. The fast "
        "path's can't be restarted: the microVM's device is in it."
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
    more = [(others, handed_on), (within, sidecar), (under_load, disturbed)]
    return (program, *(said for said, there in more if there), rounds, ratios)
