"""Records that go out (tls/write.c): their sizes, and when a key is worn out."""

from __future__ import annotations

import errno

import pytest

from tests.support.tls13 import DATA, HANDSHAKE, Direction
from tests.unit.vhost_user.native.conftest import HERE, NATIVE

FULL = 1 << 14
SECRET = bytes(range(32))
WORN = 1 << 24
"""RFC 8446 section 5.5: AES-GCM takes 2^24.5 records."""
CDEF = """
struct driver *driver_new(const uint8_t *secret, uint8_t len, uint64_t seq);
ssize_t driver_write(struct driver *d, const void *buf, size_t len);
int driver_flush(struct driver *d);
size_t driver_take(struct driver *d, uint8_t *buf, size_t len);
void driver_free(struct driver *d);
"""
SOURCES = [
    *(NATIVE / "tls" / f"{name}.c" for name in ("aead", "keys", "record")),
    *(NATIVE / "tls" / f"{name}.c" for name in ("buffers", "bio", "write")),
    *(NATIVE / "base" / f"{name}.c" for name in ("bytes", "iov")),
    HERE / "session_driver.c",
]


@pytest.fixture(scope="module")
def session(build):
    return build(CDEF, *SOURCES, options=("-lssl", "-lcrypto", "-lIPSec_MB"))


def made(session, number=0):
    ffi, lib = session
    driver = lib.driver_new(SECRET, len(SECRET), number)
    return ffi.gc(driver, lib.driver_free)


def records(session, driver, direction):
    """Take what went out; return types and contents."""
    ffi, lib = session
    room = ffi.new("uint8_t[]", 1 << 20)
    data = ffi.buffer(room)[: lib.driver_take(driver, room, 1 << 20)]
    found = []
    while data:
        size = 5 + int.from_bytes(data[3:5], "big")
        kind, content = direction.open(data[:size])
        found.append((kind, content))
        if kind == HANDSHAKE:
            direction.__dict__.update(direction.next().__dict__)
        data = data[size:]
    return found


def test_what_fills_several_records_goes_out_at_once(session):
    driver, direction = made(session), Direction(SECRET)
    data = bytes(range(256)) * 300
    assert session[1].driver_write(driver, data, len(data)) == len(data)
    found = records(session, driver, direction)
    assert [len(content) for _, content in found] == [FULL] * 4 + [len(data) % FULL]
    assert b"".join(content for _, content in found) == data


def test_what_has_no_room_is_not_taken_and_nothing_is_lost(session):
    driver, direction = made(session), Direction(SECRET)
    data = bytes(range(256)) * 64 * 40  # 40 records
    at, heard, waits = 0, b"", 0
    while len(heard) < len(data):
        left = len(data) - at
        taken = session[1].driver_write(driver, data[at:], left) if left else 0
        if taken > 0:
            assert taken % FULL == 0
            at += taken
            continue
        waits += taken == -errno.EAGAIN
        for kind, content in records(session, driver, direction):
            assert kind == DATA
            heard += content
        if not left:
            session[1].driver_flush(driver)
    assert heard == data
    assert waits


def test_a_key_is_changed_before_it_is_worn_out(session):
    driver, direction = made(session, WORN - 1), Direction(SECRET)
    direction.number = WORN - 1
    for _ in range(2):
        assert session[1].driver_write(driver, b"x", 1) == 1
    assert session[1].driver_write(driver, bytes(2 * FULL), 2 * FULL) == 2 * FULL
    assert records(session, driver, direction) == [
        (DATA, b"x"),
        (HANDSHAKE, b"\x18\0\0\1\0"),  # KeyUpdate, update_not_requested
        (DATA, b"x"),
        (DATA, bytes(FULL)),
        (DATA, bytes(FULL)),
    ]
