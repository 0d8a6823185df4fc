"""The Geneve path from a pod to ztunnel's listener: what arrives, and how."""

from __future__ import annotations

import hashlib
import os
import struct
import threading

import pytest

from fastpath.datapath import ambient_geneve, plan
from tests.support.limits import LIMIT_S

pytestmark = pytest.mark.netns

ECHO = ("198.18.0.1", 7)
ETH_IPV4 = b"\x08\x00"
BULK = 16 << 20
# Outer Ethernet 14, IPv4 20, UDP 8, Geneve 8, inner Ethernet 14.
INNER_IP = 64


def tunnelled(frame):
    """The IPv4 packet inside a Geneve frame of istioout; None: it is none."""
    if frame[12:14] != ETH_IPV4 or frame[23] != 17:
        return None
    (port,) = struct.unpack_from(">H", frame, 36)
    return frame[INNER_IP:] if port == 6081 and frame[62:64] == ETH_IPV4 else None


def is_tunnel(frame):
    """Whether it is Geneve, with ARP inside or anything else."""
    return frame[12:14] == ETH_IPV4 and frame[23] == 17


def from_container(frames):
    """Those IPv4 TCP packets whose source is the container."""
    source = plan.CONTAINER_WIRE.peer.ip.packed
    return [p for p in frames if p[9] == 6 and p[12:16] == source]


def exchange(client, server, count, size=64):
    for _ in range(count):
        client.sendall(b"x" * size)
        received = 0
        while received < size:
            received += len(server.recv(size))
        server.sendall(b"y")
        assert client.recv(1) == b"y"


def test_the_listener_sees_the_original_destination_as_its_own(path, listen, connect):
    _, server = connect(path, listen(path))
    assert server.getsockname() == ECHO


def test_the_listener_sees_the_pods_address(path, listen, connect):
    client, server = connect(path, listen(path))
    assert server.getpeername() == client.getsockname()
    assert server.getpeername()[0] == str(plan.CONTAINER_WIRE.peer.ip)


@pytest.mark.spec("RFC 8926 section 3.4, Tunnel Header Fields")
def test_the_underlay_carries_geneve_with_network_1001(path, listen, connect, capture):
    underlay = capture(path.netns["node"], "ztunnel")
    client, server = connect(path, listen(path))
    exchange(client, server, 1)
    sent = [f for out, f in underlay.frames() if out and f[23] == 17]
    assert sent
    for frame in sent:
        assert frame[26:34] == bytes([10, 200, 3, 1, 10, 200, 3, 2])
        assert frame[36:38] == (6081).to_bytes(2, "big")
        assert frame[40:42] == b"\0\0", "UDP checksum of an IPv4 tunnel"
        # Version 0, no options; no flags; Ethernet inside; 1001 = 0x3e9.
        assert frame[42:50] == bytes.fromhex("00 00 6558 0003e9 00")


def test_every_packet_of_the_pod_takes_the_tunnel(path, listen, connect, capture):
    pod = capture(path.netns["node"], "container")
    underlay = capture(path.netns["node"], "ztunnel")
    before = path.tunnel_packets()
    client, server = connect(path, listen(path))
    exchange(client, server, 100)

    forward = from_container([f[14:] for out, f in pod.frames() if not out])
    both = list(underlay.frames())
    frames = [f for out, f in both if out]
    inside = from_container([p for f in frames if (p := tunnelled(f))])
    beside = from_container([f[14:] for f in frames if not tunnelled(f)])
    assert len(forward) > 100
    assert [p[20:] for p in inside] == [p[20:] for p in forward]
    assert not beside
    # The counter of a BPF tunnel has ARP's replies, which come the other way.
    counted, seen = path.tunnel_packets() - before, sum(map(is_tunnel, frames))
    came = sum(is_tunnel(f) for out, f in both if not out)
    assert seen <= counted <= seen + came + 2


def test_with_istios_connection_marks_the_first_packet_alone_takes_it(
    istio_alpha, listen, connect, capture
):
    underlay = capture(istio_alpha.netns["node"], "ztunnel")
    client, server = connect(istio_alpha, listen(istio_alpha))
    assert server.getsockname() == ECHO
    exchange(client, server, 100)

    frames = [f for out, f in underlay.frames() if out]
    inside = [p for f in frames if (p := tunnelled(f))]
    assert len(from_container(inside)) == 1
    beside = [f[14:] for f in frames if not tunnelled(f)]
    assert len(from_container(beside)) > 100


def test_replies_come_back_over_the_plain_veth(path, listen, connect, capture):
    underlay = capture(path.netns["node"], "ztunnel")
    client, server = connect(path, listen(path))
    exchange(client, server, 10)
    received = [f for out, f in underlay.frames() if not out and f[12:14] == ETH_IPV4]
    plain = [f for f in received if not is_tunnel(f)]
    assert len(plain) >= 10
    assert {f[23] for f in plain} == {6}
    assert not any(map(tunnelled, received))  # ARP alone may come by the tunnel


def test_a_full_segment_passes(path, listen, connect):
    client, server = connect(path, listen(path))
    # 1500 bytes of IPv4 with TCP's timestamps; 1550 on the underlay.
    exchange(client, server, 3, size=1448)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bulk_arrives_intact(path, listen, connect, direction):
    client, server = connect(path, listen(path))
    sender, receiver = (client, server) if direction == "up" else (server, client)
    data = os.urandom(1 << 20) * (BULK >> 20)
    thread = threading.Thread(target=sender.sendall, args=(data,))
    thread.start()
    digest, left = hashlib.sha256(), BULK
    while left:
        chunk = receiver.recv(min(left, 1 << 20))
        assert chunk, f"{left} bytes never came"
        digest.update(chunk)
        left -= len(chunk)
    thread.join()
    assert digest.digest() == hashlib.sha256(data).digest()


def test_large_packets_cross_the_tunnel_in_one_piece(path, listen, connect, capture):
    underlay = capture(path.netns["node"], "ztunnel")
    client, server = connect(path, listen(path))
    exchange(client, server, 20, size=60_000)
    inside = [p for out, f in underlay.frames() if out and (p := tunnelled(f))]
    assert max(map(len, inside)) > 16_000


def test_ztunnels_own_connections_reach_the_server_outside_the_tunnel(path, capture):
    underlay = capture(path.netns["node"], "ztunnel")
    with (
        path.netns["server"].socket() as server,
        path.netns["ztunnel"].socket() as upstream,
    ):
        server.bind((path.path.server, 8080))
        server.listen()
        upstream.settimeout(LIMIT_S)
        upstream.connect((path.path.server, 8080))
        accepted, peer = server.accept()
        accepted.close()
    assert peer[0] == ambient_geneve.ZTUNNEL_IP
    assert not [f for _, f in underlay.frames() if tunnelled(f)]


def test_the_pods_connection_to_the_server_is_caught_too(path, listen):
    listener = listen(path)
    with path.netns["container"].socket() as client:
        client.settimeout(LIMIT_S)
        client.connect((path.path.server, 8080))
        accepted, _ = listener.accept()
    with accepted:
        assert accepted.getsockname() == (path.path.server, 8080)
