"""The control stream's messages; bytes written out by hand.

They are from the tables of docs/tsi-protocol.md, section 3, so that neither end's
code is their source.
"""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.tsi.protocol import (
    Caller,
    Decoder,
    Failed,
    Hello,
    Introduced,
    Listen,
    Listening,
    ProtocolError,
    Refusal,
    Refused,
    Route,
    Unlisten,
    Welcome,
    source_port,
)

HELLO = bytes.fromhex("0100 0800 54534941 0100 0300")
ROUTE_V4 = bytes.fromhex(
    "0400 1800 00001000 0400 5000 c0000201 000000000000000000000000"
)
ROUTE_V6 = bytes.fromhex(
    "0400 1800 01001000 0600 bb01 20010db8000000000000000000000001"
)
LISTEN_V4 = bytes.fromhex(
    "1000 2000 50001000 80000000 5000 0400 0000 00000a000005 000000000000000000000000"
)
LISTEN_V6 = bytes.fromhex("1000 2000 bb011000 ff010000 bb01 0600 0100 0000" + "00" * 16)
UNLISTEN = bytes.fromhex("1300 0400 50001000")
INTRODUCED = bytes.fromhex("1400 0400 00000180")


def decode(data):
    return list(Decoder().feed(data))


def refusal(data):
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    return caught.value.code


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(HELLO, Hello(1, 3), id="hello"),
        pytest.param(ROUTE_V4, Route(0x100000, ("192.0.2.1", 80)), id="route-ipv4"),
        pytest.param(ROUTE_V6, Route(0x100001, ("2001:db8::1", 443)), id="route-ipv6"),
        pytest.param(
            LISTEN_V4,
            Listen(0x100050, 128, 80, ipaddress.ip_address("10.0.0.5")),
            id="listen-ipv4",
        ),
        pytest.param(
            LISTEN_V6,
            Listen(0x1001BB, 511, 443, ipaddress.ip_address("::"), v6only=True),
            id="listen-ipv6-only",
        ),
        pytest.param(UNLISTEN, Unlisten(0x100050), id="unlisten"),
        pytest.param(INTRODUCED, Introduced(0x80010000), id="introduced"),
    ],
)
def test_decodes_what_an_agent_sends(data, message):
    assert decode(data) == [message]


def test_messages_may_come_in_any_pieces():
    decoder = Decoder()
    data = HELLO + ROUTE_V4 + ROUTE_V6
    messages = [
        message
        for at in range(len(data))
        for message in decoder.feed(data[at : at + 1])
    ]
    assert messages == decode(data)
    assert len(messages) == 3


def test_who_stops_early_gets_the_rest_later():
    decoder = Decoder()
    data = HELLO + ROUTE_V4 + ROUTE_V6
    messages = [next(decoder.feed(piece)) for piece in (data, b"", b"")]
    assert messages == decode(data)
    assert list(decoder.feed(b"")) == []


def test_encodes_a_welcome():
    message = Welcome(
        first_token=0x100000,
        token_count=0x100000,
        window=8192,
        connect_timeout_ms=35000,
        ipv4=ipaddress.IPv4Address("10.0.0.5"),
        ipv6=ipaddress.IPv6Address("fd00::5"),
    )
    assert message.encode() == bytes.fromhex(
        "0200 2800 0100 0000 00001000 00001000 00200000 b8880000"
        "0a000005 fd000000000000000000000000000005"
    )


def test_a_pod_without_addresses_has_zeros():
    message = Welcome(first_token=1, token_count=1, window=1, connect_timeout_ms=1)
    assert message.encode()[-20:] == bytes(20)


def test_encodes_a_failure():
    message = Failed(guest_port=1025, token=0x100000, error=111)
    assert message.encode() == bytes.fromhex("0500 0c00 01040000 00001000 6f000000")


def test_encodes_what_came_of_a_listener():
    message = Listening(0x100050, 8080)
    assert message.encode() == bytes.fromhex("1100 0c00 50001000 901f 0000 00000000")
    message = Listening(0x100050, 0, 98)
    assert message.encode() == bytes.fromhex("1100 0c00 50001000 0000 0000 62000000")


def test_encodes_a_peer():
    message = Caller(0x80010000, ipaddress.ip_address("192.0.2.1"))
    assert message.encode() == bytes.fromhex(
        "1200 1800 00000180 0400 0000 c0000201 000000000000000000000000"
    )
    message = Caller(0x80020000, ipaddress.ip_address("2001:db8::1"))
    assert message.encode() == bytes.fromhex(
        "1200 1800 00000280 0600 0000 20010db8000000000000000000000001"
    )


def test_encodes_a_refusal():
    message = Refused(Refusal.VERSION, "no")
    assert message.encode() == bytes.fromhex("0300 0600 02000000 6e6f")


def test_a_refusals_text_is_cut_and_is_ascii():
    data = Refused(Refusal.LIMIT, "\u00e9" * 1000).encode()
    assert len(data) == 4 + 4 + 200
    assert data[8:].isascii()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param("0700 0000", Refusal.UNEXPECTED, id="unknown-type"),
        pytest.param("0200 2800", Refusal.UNEXPECTED, id="hosts-own-type"),
        pytest.param("1100 0c00", Refusal.UNEXPECTED, id="hosts-own-listening"),
        pytest.param("1500 0400", Refusal.UNEXPECTED, id="kept-for-listeners"),
        pytest.param("0100 0900", Refusal.MALFORMED, id="hello-too-long"),
        pytest.param("0100 0000", Refusal.MALFORMED, id="hello-empty"),
        pytest.param("0400 ffff", Refusal.MALFORMED, id="route-huge"),
        pytest.param("0100 0800 54534942 0100 0100", Refusal.MALFORMED, id="magic"),
        pytest.param("0100 0800 54534941 0200 0100", Refusal.MALFORMED, id="versions"),
        pytest.param(
            "0400 1800 ffff0000 0400 5000" + "00" * 16,
            Refusal.MALFORMED,
            id="token-below-all-tokens",
        ),
        pytest.param(
            "0400 1800 00001000 0500 5000" + "00" * 16,
            Refusal.MALFORMED,
            id="unknown-family",
        ),
        pytest.param(
            "0400 1800 00001000 0400 5000 c0000201" + "00" * 11 + "01",
            Refusal.MALFORMED,
            id="bytes-after-an-ipv4-address",
        ),
        pytest.param(
            "0400 1800 00001000 0600 5000 00000000000000000000ffff7f000001",
            Refusal.MALFORMED,
            id="v4-mapped",
        ),
        pytest.param(
            "1000 2000 50001000 80000000 0000 0400 0000 0000" + "00" * 16,
            Refusal.MALFORMED,
            id="listen-at-port-0",
        ),
        pytest.param(
            "1000 2000 50000000 80000000 5000 0400 0000 0000" + "00" * 16,
            Refusal.MALFORMED,
            id="listener-below-all-tokens",
        ),
        pytest.param(
            "1000 2000 50001000 80000000 5000 0500 0000 0000" + "00" * 16,
            Refusal.MALFORMED,
            id="listen-of-unknown-family",
        ),
        pytest.param("1300 0800", Refusal.MALFORMED, id="unlisten-too-long"),
    ],
)
def test_refuses_what_no_agent_sends(data, code):
    assert refusal(bytes.fromhex(data)) is code


def test_a_bad_size_is_refused_before_the_payload_comes():
    assert refusal(bytes.fromhex("0400 ffff")) is Refusal.MALFORMED


def test_what_precedes_a_bad_message_counts():
    messages = Decoder().feed(HELLO + b"\xff\xff\x00\x00")
    assert next(messages) == Hello(1, 3)
    with pytest.raises(ProtocolError):
        next(messages)


@given(st.binary(max_size=100))
def test_garbage_decodes_or_is_refused(data):
    with contextlib.suppress(ProtocolError):
        decode(data)


def test_a_source_port_is_the_low_half():
    assert source_port(0x12345678) == 0x5678
