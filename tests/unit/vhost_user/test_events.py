"""Events are decoded as C lays them out."""

from __future__ import annotations

import struct
from typing import Any, cast

from vhost_user import events
from vhost_user._native import ffi
from vhost_user.engine import Event, EventKind

NUMBERS: dict[str, Any] = {
    "conn": 1 << 63 | 1,
    "up_bytes": 1 << 63 | 2,
    "down_bytes": 1 << 63 | 3,
    "duration_us": 1 << 63 | 4,
    "error": -5,
    "peer_port": 1 << 31 | 6,
    "port": 1 << 31 | 7,
    "cid": 1 << 31 | 8,
    "tag": 1 << 31 | 9,
}


def raw():
    made = ffi.new("struct vu_event[]", 2)
    for name, value in NUMBERS.items():
        setattr(made[1], name, value)
    made[1].kind = EventKind.CLOSED
    return made


def test_the_fields_are_as_long_as_the_struct():
    size = cast("Any", ffi).sizeof("struct vu_event")
    assert events._FIELDS.size == size


def test_each_number_has_its_place():
    made = raw()
    expected = Event(kind=EventKind.CLOSED)._replace(**NUMBERS)
    assert events.decode(made[1]) == expected


def test_addresses_are_of_both_families():
    made = raw()
    event = made[1]
    v4 = struct.pack("=H", 2) + struct.pack("!H", 80) + bytes([192, 0, 2, 1])
    v6 = struct.pack("=H", 10) + struct.pack("!HI", 443, 0) + bytes(15) + b"\1"
    ffi.memmove(event.src, v4, len(v4))
    ffi.memmove(event.dst, v6, len(v6))
    event.src_len, event.dst_len = 16, 28
    decoded = events.decode(event)
    assert decoded.src == ("192.0.2.1", 80)
    assert decoded.dst == ("::1", 443)


def test_what_is_no_ip_address_is_none():
    made = raw()
    made[1].src_len = 2
    ffi.memmove(made[1].dst, struct.pack("=H", 1), 2)
    made[1].dst_len = 16
    decoded = events.decode(made[1])
    assert (decoded.src, decoded.dst) == (None, None)
