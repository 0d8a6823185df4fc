"""The BPF Geneve programs, byte by byte, run by the kernel on frames by hand."""

from __future__ import annotations

import ctypes
import os
import struct

import pytest

from fastpath.datapath import bpf, geneve
from fastpath.errors import FastpathError

pytestmark = pytest.mark.netns

BPF_PROG_TEST_RUN = 10
OK_UNSPEC, SHOT, REDIRECT = 0xFFFF_FFFF, 2, 7

PARAMETERS = {
    "geneve_local": 0x0100_00C0,  # 192.0.0.1, in a little-endian register
    "geneve_remote": 0x0200_00C0,
    "geneve_vni": 0x0003E9,
    "geneve_underlay": 1,
    "geneve_tunnel": 1,
    "geneve_local_mac": 0x0A0000000002,  # 02:00:00:00:00:0a
    "geneve_remote_mac": 0x0B0000000002,
}

INNER_ETH = bytes.fromhex("020000000002 020000000001 0800")
INNER_IP = bytes.fromhex("45 00 0020 0000 4000 40 11 0000 0a000001 0a000002")
INNER = INNER_ETH + INNER_IP + b"twelve bytes"

IPV6_ETH = INNER_ETH[:12] + bytes.fromhex("86dd")
IPV6 = IPV6_ETH + bytes.fromhex(
    "60000000 000c 11 40"
    "20010db8 00000000 00000000 00000001 20010db8 00000000 00000000 00000002"
)
INNER_IPV6 = IPV6 + b"twelve bytes"

ARP = bytes.fromhex("ffffffffffff 020000000001 0806") + b"a" * 28

# Ethernet, IPv4 with TTL 64 and don't fragment, UDP to 6081 without a checksum.
OUTER_ETH = bytes.fromhex("02000000000a 02000000000b 0800")
GENEVE = bytes.fromhex("00 00 6558 0003e9 00")


def outer(payload, geneve_header=GENEVE, source="c0000002", target="c0000001", **ip):
    """From the tunnel's other end to ours, unless told otherwise."""
    body = geneve_header + payload
    udp = struct.pack(">HHHH", 50000, ip.get("port", 6081), 8 + len(body), 0)
    fragment = ip.get("fragment", 0x4000)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(body), 0, fragment, 64, 17, 0)
    return OUTER_ETH + head + bytes.fromhex(source + target) + udp + body


@pytest.fixture(scope="module")
def run():
    """Run a program on a frame: its verdict, and the frame that it leaves."""
    loaded = {}

    def test_run(name, frame):
        if name not in loaded:
            loaded[name] = geneve.load(f"tc/{name}", PARAMETERS)
        source = ctypes.create_string_buffer(frame, len(frame))
        target = ctypes.create_string_buffer(1 << 16)
        attr = bytearray(
            struct.pack(
                "=IIIIQQQ",
                loaded[name],
                0,
                len(frame),
                len(target),
                ctypes.addressof(source),
                ctypes.addressof(target),
                1,
            )
        )
        bpf.bpf(BPF_PROG_TEST_RUN, attr)
        _, verdict, _, size = struct.unpack_from("=IIII", attr)
        return verdict, target.raw[:size]

    try:
        yield test_run
    finally:
        for fd in loaded.values():
            os.close(fd)


@pytest.fixture(autouse=True)
def bpf_right(request, rights):
    try:
        os.close(geneve.load("tc/decap", PARAMETERS))
    except FastpathError as exc:
        request.getfixturevalue("missing")(str(exc))


@pytest.mark.spec("RFC 8926 section 3.1, Geneve Packet Format over IPv4")
def test_an_ipv4_frame_is_encapsulated_whole(run):
    verdict, frame = run("encap", INNER)
    assert verdict == REDIRECT
    assert frame[12:14] == b"\x08\x00"
    assert frame[14:24] == bytes.fromhex("45 00 0052 0000 4000 40 11")
    assert frame[26:34] == bytes.fromhex("c0000001 c0000002")
    assert frame[36:42] == bytes.fromhex("17c1 003e 0000")
    assert frame[42:50] == GENEVE
    assert frame[50:] == INNER


def test_an_ipv6_frame_takes_the_underlays_route_as_an_ipv4_one_does(run):
    """Grown blindly, as ARP's are, a packet of many segments would be cut wrongly."""
    verdict, frame = run("encap", INNER_IPV6)
    assert verdict == REDIRECT
    assert frame[:12] == run("encap", INNER)[1][:12]  # not the other end's MAC
    assert frame[12:14] == b"\x08\x00"
    assert frame[42:] == GENEVE + INNER_IPV6
    back = frame[:26] + frame[30:34] + frame[26:30] + frame[34:]
    assert run("decap", back) == (REDIRECT, INNER_IPV6)


@pytest.mark.spec("RFC 791 section 3.1, Header Checksum")
def test_the_outer_header_has_a_right_checksum(run):
    _, frame = run("encap", INNER)
    total = sum(struct.unpack(">10H", frame[14:34]))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


@pytest.mark.spec("RFC 8926 section 3.3, UDP Header")
def test_the_source_port_is_of_the_dynamic_range_and_the_flows_own(run):
    ports = {run("encap", INNER)[1][34:36] for _ in range(3)}
    assert len(ports) == 1
    assert int.from_bytes(ports.pop(), "big") >= 49152


def test_an_arp_frame_goes_to_the_other_ends_mac(run):
    verdict, frame = run("encap", ARP)
    assert verdict == REDIRECT
    assert frame[:14] == bytes.fromhex("02000000000b 02000000000a 0800")
    assert frame[42:] == GENEVE + ARP


def test_decapsulation_gives_the_inner_frame(run):
    assert run("decap", outer(INNER)) == (REDIRECT, INNER)


def test_what_encap_sends_decap_of_the_other_end_takes(run):
    _, frame = run("encap", INNER)
    back = frame[:26] + frame[30:34] + frame[26:30] + frame[34:]
    assert run("decap", back) == (REDIRECT, INNER)


@pytest.mark.spec("RFC 8926 section 3.5, Tunnel Options")
def test_options_that_are_not_critical_are_skipped(run):
    options = bytes.fromhex("0102 00 01 01020304") * 2
    header = bytes.fromhex("04 00 6558 0003e9 00") + options
    assert run("decap", outer(INNER, header)) == (REDIRECT, INNER)


@pytest.mark.spec("RFC 8926 section 3.4, Tunnel Header Fields")
@pytest.mark.parametrize(
    "header",
    [
        pytest.param("40 00 6558 0003e9 00", id="unknown-version"),
        pytest.param("00 80 6558 0003e9 00", id="control"),
        pytest.param("00 40 6558 0003e9 00", id="critical-option"),
        pytest.param("00 00 0800 0003e9 00", id="not-ethernet"),
        pytest.param("00 00 6558 0003ea 00", id="another-network"),
        pytest.param("3f 00 6558 0003e9 00", id="options-beyond-the-end"),
    ],
)
def test_a_packet_that_an_endpoint_must_refuse_is_dropped(run, header):
    assert run("decap", outer(INNER, bytes.fromhex(header)))[0] == SHOT


def test_a_packet_without_a_whole_inner_frame_is_dropped(run):
    assert run("decap", outer(INNER[:13]))[0] == SHOT


def test_reserved_bits_are_ignored(run):
    header = bytes.fromhex("00 3f 6558 0003e9 ff")
    assert run("decap", outer(INNER, header)) == (REDIRECT, INNER)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(outer(INNER, source="c0000003"), id="from-another-host"),
        pytest.param(outer(INNER, target="c0000003"), id="to-another-host"),
        pytest.param(outer(INNER, port=6082), id="another-port"),
        pytest.param(outer(INNER, fragment=0x2000), id="fragment"),
        pytest.param(INNER, id="not-the-port"),
        pytest.param(ARP, id="arp"),
    ],
)
def test_what_is_not_the_tunnels_stays_as_it_is(run, frame):
    assert run("decap", frame) == (OK_UNSPEC, frame)
