"""Records of TLS 1.3 and their keys (tls/aead.c, keys.c, record.c).

Spec: RFC 8448 section 3 for the vectors, RFC 8446 for what is derived here by hand.
"""

from __future__ import annotations

import errno
import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.procfs import vm_flags
from tests.support.tls13 import ALERT, DATA, HANDSHAKE, Direction
from tests.unit.vhost_user.native.conftest import HERE, NATIVE, declarations

FULL = 1 << 14
UNEXPECTED, BAD_MAC, OVERFLOW = 10, 20, 22

CLIENT_SECRET = bytes.fromhex(
    "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5"
)
SERVER_SECRET = bytes.fromhex(
    "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643"
)
PAYLOAD = bytes(range(50))
CLIENT_DATA = bytes.fromhex(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f"
    "2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2977014bd1e3deae6"
    "3aeebb21694915e4"
)
CLIENT_CLOSES = bytes.fromhex("1703030013c9872760655666b74d7ff1153efd6db6d0b0e3")
SERVER_DATA = bytes.fromhex(
    "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36"
    "e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2e5f0a21c0047c2abf33254"
    "0dd032e167c2955d"
)


CIPHERS = {"libipsec-mb": NATIVE / "tls" / "aead.c", "openssl": HERE / "aead_plain.c"}


@pytest.fixture(scope="module", params=list(CIPHERS.values()), ids=list(CIPHERS))
def tls(build, request):
    text = declarations(NATIVE / "tls" / "record.h")
    sources = (NATIVE / "tls" / "keys.c", NATIVE / "tls" / "record.c", request.param)
    return build(text, *sources, options=("-lcrypto", "-lIPSec_MB"))


def keys(tls, secret, *, seals):
    ffi, lib = tls
    made = ffi.gc(ffi.new("struct tls_keys *"), lib.keys_clear)
    made.len = len(secret)
    ffi.buffer(made.secret)[: len(secret)] = secret
    assert lib.keys_start(made, seals)
    return made


def seal(tls, sealer, kind, *parts, skip=0, head=b""):
    """Seal a head, and segments without their first bytes; return the record."""
    ffi, lib = tls
    held = [ffi.from_buffer("char[]", part) for part in parts]
    iov = ffi.new("struct iovec[]", [(at, len(at)) for at in held])
    length = len(head) + sum(map(len, parts)) - skip
    first = ffi.from_buffer("char[]", head)
    content = (first, len(head), iov, skip, length - len(head))
    out = ffi.new("uint8_t[]", length + 22)
    made = ffi.new("struct tls_content *", content)
    assert lib.record_seal(sealer, kind, made, out) == length + 22
    return bytes(ffi.buffer(out))


def opened(tls, opener, record):
    """Open a record; return its type and content, or what it is instead."""
    ffi, lib = tls
    held = ffi.new("uint8_t[]", bytes(record))
    found = ffi.new("struct tls_record *")
    error = lib.record_open(opener, held, len(record), found)
    if error:
        return error
    assert found.size == 5 + int.from_bytes(record[3:5])
    return found.type, bytes(ffi.buffer(found.data, found.len))


SECRETS = {"aes-128": hashlib.sha256(b"x").digest(), "aes-256": bytes(range(48))}
suites = pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)


def test_key_and_iv_are_those_of_rfc_8448(tls):
    made = keys(tls, SERVER_SECRET, seals=True)
    assert bytes(tls[0].buffer(made.iv)).hex() == "cf782b88dd83549aadf1e984"
    assert Direction(SERVER_SECRET).iv.hex() == "cf782b88dd83549aadf1e984"


def test_records_that_are_sealed_are_those_of_rfc_8448(tls):
    client = keys(tls, CLIENT_SECRET, seals=True)
    assert seal(tls, client, DATA, PAYLOAD) == CLIENT_DATA
    assert seal(tls, client, ALERT, b"\1\0") == CLIENT_CLOSES


def test_records_of_rfc_8448_are_opened(tls):
    client = keys(tls, CLIENT_SECRET, seals=False)
    assert opened(tls, client, CLIENT_DATA) == (DATA, PAYLOAD)
    assert opened(tls, client, CLIENT_CLOSES) == (ALERT, b"\1\0")
    server = keys(tls, SERVER_SECRET, seals=False)
    server.seq = 1  # behind a ticket
    assert opened(tls, server, SERVER_DATA) == (DATA, PAYLOAD)


@suites
def test_an_update_goes_on_with_the_next_secret_from_number_zero(tls, secret):
    sealer = keys(tls, secret, seals=True)
    hand = Direction(secret)
    for _ in range(3):
        assert seal(tls, sealer, DATA, b"one") == hand.seal(b"one\x17")
        assert seal(tls, sealer, DATA, b"two") == hand.seal(b"two\x17")
        assert tls[1].keys_update(sealer)
        hand = hand.next()


@suites
@given(
    parts=st.lists(st.binary(max_size=300), min_size=1, max_size=8).filter(any),
    skip=st.integers(0, 40),
    head=st.binary(max_size=20),
)
def test_segments_are_sealed_as_one_piece(tls, secret, parts, skip, head):
    whole = b"".join(parts)
    skip = min(skip, len(whole) - 1)
    sealer = keys(tls, secret, seals=True)
    record = seal(tls, sealer, DATA, *parts, skip=skip, head=head)
    assert record == Direction(secret).seal(head + whole[skip:] + b"\x17")


@suites
def test_a_full_record_is_sealed_and_opened(tls, secret):
    content = bytes(range(256)) * 64
    record = seal(tls, keys(tls, secret, seals=True), DATA, content)
    assert opened(tls, keys(tls, secret, seals=False), record) == (DATA, content)


@suites
def test_padding_is_left_out(tls, secret):
    hand, opener = Direction(secret), keys(tls, secret, seals=False)
    assert opened(tls, opener, hand.seal(b"x\x17" + bytes(1000))) == (DATA, b"x")
    assert opened(tls, opener, hand.seal(b"\x17" + bytes(FULL))) == (DATA, b"")
    assert opened(tls, opener, hand.seal(b"a\0\0\x16\0")) == (HANDSHAKE, b"a\0\0")


BAD = {
    "no-type": (lambda hand: hand.seal(bytes(20)), UNEXPECTED),
    "nothing": (lambda hand: hand.seal(b""), UNEXPECTED),
    "one-byte-too-long": (lambda hand: hand.seal(bytes(FULL + 1) + b"\x17"), OVERFLOW),
    "outer-too-long": (lambda _: b"\x17\x03\x03\x41\x01" + bytes(10), OVERFLOW),
    "shorter-than-a-tag": (lambda _: b"\x17\x03\x03\0\x0f" + bytes(15), BAD_MAC),
    "ccs": (lambda _: b"\x14\x03\x03\0\1\1", UNEXPECTED),
    "alert-in-the-clear": (lambda _: b"\x15\x03\x03\0\2\1\0", UNEXPECTED),
    "handshake-in-the-clear": (lambda _: b"\x16\x03\x03\0\1\0", UNEXPECTED),
}


@suites
@pytest.mark.parametrize(("make", "alert"), BAD.values(), ids=BAD)
def test_a_bad_record_says_its_alert(tls, secret, make, alert):
    assert opened(tls, keys(tls, secret, seals=False), make(Direction(secret))) == alert


@suites
def test_every_flipped_bit_is_noticed(tls, secret):
    record = Direction(secret).seal(b"some bytes\x17")
    for at in range(8 * 5, 8 * len(record)):
        bad = bytearray(record)
        bad[at // 8] ^= 1 << at % 8
        assert opened(tls, keys(tls, secret, seals=False), bad) == BAD_MAC
    for at in (1, 2):  # its version counts for nothing but the tag
        bad = bytearray(record)
        bad[at] ^= 1
        assert opened(tls, keys(tls, secret, seals=False), bad) == BAD_MAC


@suites
def test_a_record_that_comes_twice_or_out_of_order_is_bad(tls, secret):
    hand = Direction(secret)
    first, second = hand.seal(b"1\x17"), hand.seal(b"2\x17")
    opener = keys(tls, secret, seals=False)
    assert opened(tls, opener, first) == (DATA, b"1")
    assert opened(tls, opener, first) == BAD_MAC
    assert opened(tls, keys(tls, secret, seals=False), second) == BAD_MAC


def test_part_of_a_record_costs_no_number(tls):
    opener = keys(tls, CLIENT_SECRET, seals=False)
    for size in range(len(CLIENT_DATA)):
        assert opened(tls, opener, CLIENT_DATA[:size]) == -errno.EAGAIN
    assert opened(tls, opener, CLIENT_DATA) == (DATA, PAYLOAD)


def test_numbers_reach_all_of_the_nonce(tls):
    sealer, hand = keys(tls, CLIENT_SECRET, seals=True), Direction(CLIENT_SECRET)
    sealer.seq = hand.number = 0x0102030405060708
    assert seal(tls, sealer, DATA, b"x") == hand.seal(b"x\x17")


def test_no_secret_starts_nothing(tls):
    ffi, lib = tls
    made = ffi.new("struct tls_keys *")
    assert not lib.keys_start(made, True)
    lib.keys_clear(made)


def test_keys_that_are_cleared_are_zeroes(tls):
    ffi, lib = tls
    made = keys(tls, CLIENT_SECRET, seals=True)
    lib.keys_clear(made)
    assert not any(bytes(ffi.buffer(made)))


@suites
def test_what_changes_while_it_is_sealed_is_still_a_record(tls, secret):
    """A guest writes into what it sends: each byte is read once."""
    ffi, lib = tls
    memory, over = bytearray(FULL), threading.Event()

    def scribble():
        turn = 0
        while not over.is_set():
            turn += 1
            memory[:] = bytes([turn & 255]) * FULL

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        sealer, opener = keys(tls, secret, seals=True), keys(tls, secret, seals=False)
        held = ffi.from_buffer(memory)
        out = ffi.new("uint8_t[]", FULL + 22)
        found = ffi.new("struct tls_record *")
        iov = ffi.new("struct iovec[]", [(held, 1001), (held + 1001, FULL - 1001)])
        content = ffi.new("struct tls_content *", (ffi.NULL, 0, iov, 0, FULL))
        for _ in range(500):
            size = lib.record_seal(sealer, DATA, content, out)
            assert not lib.record_open(opener, out, size, found)
    finally:
        over.set()
        thread.join()


def test_code_that_only_tested_the_library_is_not_kept_in_memory(tls):
    keys(tls, CLIENT_SECRET, seals=True)
    kib, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *fields = line.split()
        if "-" in name:
            counts = "x" in fields[0] and "libIPSec_MB" in line
        elif name == "Rss:" and counts:
            kib += int(fields[0])
    assert kib < 2048  # 3 MB of it were tested


def test_keys_are_in_no_core_dump(tls):
    ffi, _ = tls
    held = keys(tls, CLIENT_SECRET, seals=True)
    assert "dd" in vm_flags(int(ffi.cast("uintptr_t", held.aead)))
