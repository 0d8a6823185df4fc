"""Message codec: bytes written out by hand from the vhost-user specification."""

from __future__ import annotations

import os
import sys

import pytest

from vhost_user.errors import FrontendError
from vhost_user.message import (
    MAX_PAYLOAD,
    MAX_REGIONS,
    ConfigSpace,
    Header,
    InflightArea,
    LogArea,
    MemoryRegion,
    Message,
    Request,
    VringAddress,
    VringFd,
    VringState,
    decode_mem_region,
    decode_mem_table,
    decode_nothing,
    decode_reply,
    decode_u64,
    encode,
    encode_mem_region,
    encode_mem_table,
    encode_u64,
)

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the bytes below are little-endian"
)


def hexa(text):
    return bytes.fromhex(text)


@pytest.mark.spec("vhost-user:header/version")
def test_decodes_the_header_of_get_features():
    header = Header.decode(hexa("01000000 01000000 00000000"))
    assert header == Header(request=Request.GET_FEATURES, size=0, need_reply=False)


@pytest.mark.spec("vhost-user:header/need-reply")
def test_bit_3_of_the_flags_asks_for_a_reply():
    header = Header.decode(hexa("02000000 09000000 08000000"))
    assert header == Header(request=Request.SET_FEATURES, size=8, need_reply=True)


@pytest.mark.spec(
    "vhost-user:header/version",
    "vhost-user:header/reply",
)
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param("01000000 00000000 00000000", "version 0", id="version-0"),
        pytest.param("01000000 02000000 00000000", "version 2", id="version-2"),
        pytest.param("01000000 05000000 00000000", "marked as a reply", id="reply"),
        pytest.param("05000000 01000000 09040000", "1033 bytes", id="one-too-long"),
        pytest.param("05000000 01000000 ffffffff", "4294967295 bytes", id="huge"),
    ],
)
def test_rejects_a_bad_header(raw, reason):
    with pytest.raises(FrontendError, match=reason):
        Header.decode(hexa(raw))


def test_the_error_names_the_request():
    with pytest.raises(FrontendError, match="SET_MEM_TABLE"):
        Header.decode(hexa("05000000 01000000 ffffffff"))
    with pytest.raises(FrontendError, match="request 99"):
        Header.decode(hexa("63000000 01000000 ffffffff"))


@pytest.mark.spec(
    "vhost-user:header/version",
    "vhost-user:header/reply",
)
def test_a_reply_has_version_1_and_the_reply_flag():
    reply = encode(Request.GET_QUEUE_NUM, encode_u64(3), reply=True)
    assert reply == hexa("11000000 05000000 08000000 0300000000000000")
    assert decode_reply(reply[:12]) == (17, 5, 8)


@pytest.mark.spec("vhost-user:payload/u64")
def test_u64():
    assert decode_u64(hexa("0000004001000000")) == 1 << 32 | 1 << 30
    assert encode_u64(1 << 63) == hexa("0000000000000080")


@pytest.mark.spec("vhost-user:payload/vring-state")
def test_vring_state():
    raw = hexa("01000000 00010000")
    assert VringState.decode(raw) == VringState(index=1, num=256)
    assert VringState(1, 256).encode() == raw


@pytest.mark.spec("vhost-user:payload/vring-address")
def test_vring_address_has_used_before_available():
    raw = hexa(
        "01000000 00000000"
        "0010000000000000 0020000000000000 0030000000000000 0040000000000000"
    )
    address = VringAddress(index=1, desc=0x1000, used=0x2000, avail=0x3000, log=0x4000)
    assert VringAddress.decode(raw) == address
    assert address.encode() == raw


@pytest.mark.spec(
    "vhost-user:SET_VRING_KICK",
    "vhost-user:SET_VRING_CALL",
    "vhost-user:SET_VRING_ERR",
)
@pytest.mark.parametrize(
    ("raw", "value"),
    [
        pytest.param("0100000000000000", VringFd(1, has_fd=True), id="fd"),
        pytest.param("0101000000000000", VringFd(1, has_fd=False), id="NOFD"),
        pytest.param("ff00000000000000", VringFd(255, has_fd=True), id="ring-255"),
    ],
)
def test_vring_fd(raw, value):
    assert VringFd.decode(hexa(raw)) == value
    assert value.encode() == hexa(raw)


@pytest.mark.spec("vhost-user:payload/memory-regions")
def test_mem_table_of_two_regions():
    raw = hexa(
        "02000000 00000000"
        "0000000000000000 0000004000000000 000000c0ff7f0000 0000000000000000"
        "0000000001000000 0000001000000000 00000000ff7f0000 0000004000000000"
    )
    table = [
        MemoryRegion(gpa=0, size=0x4000_0000, uva=0x7FFF_C000_0000),
        MemoryRegion(
            gpa=1 << 32, size=0x1000_0000, uva=0x7FFF_0000_0000, offset=0x4000_0000
        ),
    ]
    assert decode_mem_table(raw) == table
    assert encode_mem_table(table) == raw


def test_mem_table_may_have_unused_entries_at_its_end():
    assert decode_mem_table(bytes(8 + 8 * 32)) == []


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(hexa("00000000"), id="no-padding"),
        pytest.param(hexa("01000000 00000000") + bytes(31), id="short-region"),
        pytest.param(hexa("21000000 00000000") + bytes(33 * 32), id="33-regions"),
        pytest.param(hexa("ffffffff 00000000") + bytes(32), id="4-G-regions"),
    ],
)
def test_rejects_a_bad_mem_table(raw):
    with pytest.raises(FrontendError):
        decode_mem_table(raw)


@pytest.mark.spec("vhost-user:payload/memory-region")
def test_single_memory_region_has_padding_first():
    raw = hexa(
        "0000000000000000"
        "0000000001000000 0000001000000000 00000000ff7f0000 0000004000000000"
    )
    region = MemoryRegion(
        gpa=1 << 32, size=0x1000_0000, uva=0x7FFF_0000_0000, offset=0x4000_0000
    )
    assert decode_mem_region(raw) == region
    assert encode_mem_region(region) == raw


@pytest.mark.spec("vhost-user:payload/log")
def test_log_area():
    raw = hexa("0000010000000000 0010000000000000")
    assert LogArea.decode(raw) == LogArea(size=0x10000, offset=0x1000)
    assert LogArea(0x10000, 0x1000).encode() == raw


@pytest.mark.spec("vhost-user:payload/inflight")
@pytest.mark.parametrize("padding", ["", "00000000"], ids=["packed", "as-qemu-sends"])
def test_inflight_area(padding):
    raw = hexa("0020000000000000 0010000000000000 0200 0001" + padding)
    area = InflightArea.decode(raw)
    assert (area.size, area.offset, area.queues, area.queue_size) == (
        0x2000,
        0x1000,
        2,
        256,
    )
    assert area.encode() == raw


def test_the_longest_payload_is_a_table_of_32_regions():
    region = MemoryRegion(gpa=0, size=1, uva=0)
    assert len(encode_mem_table([region] * MAX_REGIONS)) == MAX_PAYLOAD


@pytest.mark.spec("vhost-user:payload/config")
def test_config_space():
    raw = hexa("00000000 08000000 01000000 0300000000000000")
    space = ConfigSpace(offset=0, data=hexa("0300000000000000"), flags=1)
    assert ConfigSpace.decode(raw) == space
    assert space.encode() == raw


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="empty"),
        pytest.param(hexa("00000000 08000000 00000000"), id="no-data"),
        pytest.param(hexa("00000000 07000000 00000000") + bytes(8), id="size-lies"),
        pytest.param(hexa("00000000 01010000 00000000") + bytes(257), id="257-bytes"),
    ],
)
def test_rejects_a_bad_config_space(raw):
    with pytest.raises(FrontendError):
        ConfigSpace.decode(raw)


@pytest.mark.parametrize("size", [0, 7, 9])
@pytest.mark.parametrize(
    "decode",
    [
        decode_u64,
        VringState.decode,
        VringFd.decode,
        VringAddress.decode,
        decode_mem_region,
        LogArea.decode,
        InflightArea.decode,
    ],
)
def test_rejects_a_payload_of_the_wrong_size(decode, size):
    with pytest.raises(FrontendError, match=f"payload of {size} bytes, need"):
        decode(bytes(size))


def test_rejects_a_payload_where_there_is_none():
    with pytest.raises(FrontendError):
        decode_nothing(b"\0")


def test_closing_a_message_closes_what_was_not_taken():
    kept, left = os.pipe()
    message = Message(Request.SET_VRING_KICK, fds=[left, kept])
    assert message.fds.pop() == kept
    message.close()
    os.fstat(kept)
    os.close(kept)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(left)


@pytest.mark.parametrize("field", ["gpa", "uva", "offset"])
def test_rejects_a_region_that_ends_behind_the_last_address(field):
    last = {"gpa": 0, "uva": 0, "offset": 0} | {field: 2**64 - 4096}
    assert decode_mem_table(encode_mem_table([MemoryRegion(size=4096, **last)]))
    with pytest.raises(FrontendError, match="last address"):
        decode_mem_table(encode_mem_table([MemoryRegion(size=4097, **last)]))
