"""The guest's end of the Geneve path: frames by hand, through the tap."""

from __future__ import annotations

import os
import selectors
import struct
import time

import pytest

from tests.support.limits import LIMIT_S

pytestmark = pytest.mark.netns

VNET_HEADER = bytes(10)
BROADCAST = b"\xff" * 6
SYN, SYN_ACK, RST = 0x02, 0x12, 0x04


class Guest:
    """One interface, as far as ARP and the first packets of TCP."""

    def __init__(self, path):
        self.fd = path.nic.fd
        self.mac = bytes.fromhex(path.nic.mac.replace(":", ""))
        self.address = path.path.sandbox.address.ip.packed
        self.gateway = bytes(map(int, path.path.sandbox.gateway.split(".")))

    def send(self, destination, ethertype, body):
        frame = destination + self.mac + ethertype.to_bytes(2, "big") + body
        os.write(self.fd, VNET_HEADER + frame)

    def receive(self, wanted, timeout_s=LIMIT_S):
        """The first frame that `wanted` takes; answers ARP meanwhile."""
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.fd, selectors.EVENT_READ)
            while selector.select(max(0.0, end - time.monotonic())):
                frame = os.read(self.fd, 1 << 17)[len(VNET_HEADER) :]
                if wanted(frame):
                    return frame
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1":
                    self.send(frame[6:12], 0x0806, self.arp(2, frame[22:32]))
        raise TimeoutError

    def arp(self, operation, target):
        """RFC 826; `target` is a hardware and a protocol address."""
        head = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation)
        return head + self.mac + self.address + target

    def resolve_gateway(self):
        self.send(BROADCAST, 0x0806, self.arp(1, bytes(6) + self.gateway))
        reply = self.receive(lambda f: f[12:14] == b"\x08\x06" and f[21] == 2)
        return reply[22:28]

    def tcp(self, port, destination, flags, sequence=1000):
        address, destination_port = destination
        segment = struct.pack(
            ">HHIIBBHHH", port, destination_port, sequence, 0, 5 << 4, flags, 1024, 0, 0
        )
        pseudo = self.address + address + struct.pack(">BBH", 0, 6, len(segment))
        check = checksum(pseudo + segment)
        segment = segment[:16] + check + segment[18:]
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0)
        head += self.address + address
        return head[:10] + checksum(head) + head[12:] + segment


def checksum(octets):
    """RFC 1071."""
    total = sum(struct.unpack(f">{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF).to_bytes(2, "big")


@pytest.fixture
def guest(path):
    return Guest(path)


def test_the_node_answers_the_guests_arp(path, guest, capture):
    node = capture(path.netns["node"], "pod")
    mac = guest.resolve_gateway()
    assert [f for out, f in node.frames() if out and f[6:12] == mac]


def test_the_guests_syn_reaches_ztunnel_and_is_answered(path, guest, listen):
    listen(path)
    mac = guest.resolve_gateway()
    echo = (bytes([198, 18, 0, 1]), 7)
    guest.send(mac, 0x0800, guest.tcp(40000, echo, SYN))
    reply = guest.receive(lambda f: f[12:14] == b"\x08\x00" and f[23] == 6)
    guest.send(mac, 0x0800, guest.tcp(40000, echo, RST, sequence=1001))
    assert reply[:6] == guest.mac
    assert reply[26:34] == echo[0] + guest.address
    assert reply[34:38] == struct.pack(">HH", 7, 40000)
    assert reply[47] == SYN_ACK
