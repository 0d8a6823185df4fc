"""What the report says without measuring it: each path's make-up, the method.

Copies and stacks are declared here, with where they are to be seen. They are
counted from the program's buffer to ztunnel, ztunnel's own reading of the bytes
included, what it then does with them not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastpath.report.model import PathFacts

if TYPE_CHECKING:
    from fastpath.commands.compare.measure import Counts

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
)

AMBIENT_GENEVE: Final = PathFacts(
    title="Standard path: veth, Geneve, TPROXY",
    stacks=(
        "TCP/IP of the guest",
        "IP forwarding on the node (mark, policy routing)",
        "UDP/IP of the Geneve tunnel, out and in",
        "TCP/IP of the ztunnel's namespace (TPROXY)",
    ),
    copies_up=(
        # net/ipv4/tcp.c: tcp_sendmsg()
        "program's buffer to a guest socket buffer",
        # hw/net/virtio-net.c, net/tap.c: writev of guest memory to the tap
        "guest memory to a host socket buffer (QEMU writes the tap)",
        # net/ipv4/tcp.c: tcp_recvmsg()
        "host socket buffer to ztunnel",
    ),
    copies_down=(
        "ztunnel to a host socket buffer",
        # net/tap.c: tap_send() reads into its own buffer first
        "host socket buffer to QEMU (reads the tap)",
        # hw/net/virtio-net.c: iov_from_buf() in virtio_net_receive_rcu()
        "QEMU to the guest's receive buffer",
        "guest's receive buffer to the program's",
    ),
)


def method(counts: Counts) -> tuple[str, ...]:
    """Return how it was measured, in sentences."""
    program = (
        "The same static program (guest/probe.c, plain TCP sockets) runs on each "
        "path, in the same microVM, against the same ztunnel process. To ztunnel: "
        "an echo, a sink and a source that ztunnel answers itself. Through ztunnel: "
        "an echo server in a process of its own."
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
    return program, rounds, ratios
