"""PROXY protocol v2 headers, written by hand from the specification's section 2.2."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.proxy_protocol import HEAD, Header, HeaderError, length, parse

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
IDENTITY = "spiffe://cluster.local/ns/default/sa/client"
IPV4 = bytes.fromhex("0a000001 0a000005 9c40 1f90")
IPV6 = bytes.fromhex(
    "fd000000000000000000000000000001 fd000000000000000000000000000005"
)
MAPPED = bytes.fromhex("00000000000000000000ffff0a000001") * 2
# What a run of Istio's ztunnel wrote: `21 11`, `003a`, addresses, `d0 002b` and the id
ISTIO = SIGNATURE + bytes.fromhex("2111 003a") + IPV4
ISTIO += bytes.fromhex("d0002b") + IDENTITY.encode()


def header(rest=IPV4, command=0x21, family=0x11):
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(rest)) + rest


def tlv(kind, data):
    return struct.pack("!BH", kind, len(data)) + data


def read(data):
    assert length(data[:HEAD]) == len(data) - HEAD
    return parse(data[:HEAD], data[HEAD:])


def test_what_istios_ztunnel_writes_is_understood():
    assert len(ISTIO) == HEAD + 0x3A
    assert read(ISTIO) == Header(("10.0.0.1", 40000), ("10.0.0.5", 8080), IDENTITY)


def test_ipv6_addresses():
    data = header(IPV6 + bytes.fromhex("9c40 1f90"), family=0x21)
    assert read(data) == Header(("fd00::1", 40000), ("fd00::5", 8080))


def test_ipv4_addresses_in_ipv6_form_are_ipv4_addresses():
    data = header(MAPPED + bytes.fromhex("9c40 1f90"), family=0x21)
    assert read(data) == Header(("10.0.0.1", 40000), ("10.0.0.1", 8080))


def test_other_tlvs_are_skipped():
    more = tlv(1, b"h2") + tlv(4, b"") + tlv(0xD0, IDENTITY.encode()) + tlv(0x20, b"x")
    assert read(header(IPV4 + more)).identity == IDENTITY


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (bytes(16), "signature"),
        (b"PROXY TCP4 10.0.", "signature"),
        (header(command=0x20), "LOCAL"),
        (header(command=0x11), "version and command 0x11"),
        (header(command=0x22), "version and command 0x22"),
        (header(family=0x12), "family 0x12"),
        (header(family=0x31), "family 0x31"),
        (header(family=0x00), "family 0x00"),
        (header(IPV4[:-1]), "11 bytes"),
        (header(IPV4, family=0x21), "12 bytes"),
        (header(b""), "0 bytes"),
        (header(IPV4 + bytes(4085)), "4097 bytes"),
        (header(IPV4 + bytes(65523)), "65535 bytes"),
        (header(IPV4[:-2] + bytes(2)), "destination port 0"),
        (header(IPV4 + b"\xd0"), "cut short"),
        (header(IPV4 + b"\xd0\x00\x05spif"), "cut short"),
        (header(IPV4 + tlv(0xD0, b"spiffe://a/b")), "spiffe://TRUST_DOMAIN"),
        (header(IPV4 + tlv(0xD0, IDENTITY.encode() + b"\n")), "spiffe://TRUST_DOMAIN"),
        (header(IPV4 + tlv(0xD0, b"\xff")), "identity"),
        (header(IPV4 + tlv(0xD0, b"")), "identity"),
    ],
)
def test_a_header_of_no_use_is_an_error(data, why):
    with pytest.raises(HeaderError, match=why):
        read(data)


@given(st.binary(max_size=64), st.binary(max_size=16), st.sampled_from([0x11, 0x21]))
def test_anything_is_a_header_or_an_error(rest, head, family):
    for data in (header(rest, family=family), head.ljust(HEAD, b"\0") + rest):
        try:
            found = read(data)
        except HeaderError:
            continue
        assert found.destination[1]
