"""The datagram stream's messages; bytes written out by hand.

They are from the tables of docs/tsi-protocol.md, section 9.
"""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpath.tsi.datagram_protocol import (
    Datagram,
    DatagramDecoder,
    Grant,
    Peer,
    Unreachable,
    Verdict,
)
from fastpath.tsi.protocol import Hello, ProtocolError, Refusal

HELLO = bytes.fromhex("0100 0800 54534941 0100 0100")
PEER_V4 = bytes.fromhex(
    "2100 1800 07000000 0400 7b00 c0000201 000000000000000000000000"
)
PEER_V6 = bytes.fromhex("2100 1800 08000000 0600 7b00 20010db8000000000000000000000001")
DATAGRAM = bytes.fromhex("2300 0b00 419c 0000 07000000") + b"abc"
EMPTY = bytes.fromhex("2300 0800 419c 0000 07000000")


def decode(data):
    return list(DatagramDecoder().feed(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(HELLO, Hello(1, 1), id="hello"),
        pytest.param(PEER_V4, Peer(7, ("192.0.2.1", 123)), id="peer-ipv4"),
        pytest.param(PEER_V6, Peer(8, ("2001:db8::1", 123)), id="peer-ipv6"),
        pytest.param(DATAGRAM, Datagram(40001, 7, b"abc"), id="datagram"),
        pytest.param(EMPTY, Datagram(40001, 7, b""), id="empty datagram"),
    ],
)
def test_decodes_what_an_agent_sends(data, message):
    assert decode(data) == [message]


def test_messages_may_come_in_any_pieces():
    decoder = DatagramDecoder()
    data = HELLO + PEER_V4 + DATAGRAM + EMPTY + PEER_V6
    messages = [
        message
        for at in range(len(data))
        for message in decoder.feed(data[at : at + 1])
    ]
    assert messages == decode(data)
    assert len(messages) == 5


@pytest.mark.parametrize(
    ("message", "data"),
    [
        pytest.param(Grant(4096), "2000 0800 0100 0000 00100000", id="grant"),
        pytest.param(Verdict(7, 111), "2200 0800 07000000 6f000000", id="verdict"),
        pytest.param(
            Datagram(40001, 7, b"abc"),
            "2300 0b00 419c 0000 07000000 616263",
            id="datagram",
        ),
        pytest.param(
            Unreachable(40001, 7, 111),
            "2400 0c00 419c 0000 07000000 6f000000",
            id="unreachable",
        ),
    ],
)
def test_encodes_what_an_agent_reads(message, data):
    assert message.encode() == bytes.fromhex(data)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param("0400 1800", Refusal.UNEXPECTED, id="ROUTE"),
        pytest.param("2000 0800", Refusal.UNEXPECTED, id="GRANT"),
        pytest.param("2200 0800", Refusal.UNEXPECTED, id="VERDICT"),
        pytest.param("2400 0c00", Refusal.UNEXPECTED, id="UNREACHABLE"),
        pytest.param("2100 1900", Refusal.MALFORMED, id="PEER too long"),
        pytest.param("2300 0700", Refusal.MALFORMED, id="DATAGRAM too short"),
        pytest.param("2300 ecff", Refusal.MALFORMED, id="DATAGRAM too long"),
        pytest.param(
            "2100 1800 07000000 0600 7b00 00000000000000000000ffffc0000201",
            Refusal.MALFORMED,
            id="PEER v4-mapped",
        ),
    ],
)
def test_refuses_what_no_agent_sends(data, code):
    with pytest.raises(ProtocolError) as caught:
        decode(bytes.fromhex(data))
    assert caught.value.code is code


@given(st.binary(max_size=200))
def test_garbage_decodes_or_is_refused(data):
    with contextlib.suppress(ProtocolError):
        decode(data)
