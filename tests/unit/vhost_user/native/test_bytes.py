"""Queues of bytes and of messages (base/bytes.c, base/msgs.c), beside Python's own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vhost_user.native.conftest import NATIVE, declarations

BASE = NATIVE / "base"
EOM = 1


@pytest.fixture(scope="module")
def queues(build):
    cdef = declarations(BASE / "bytes.h") + declarations(BASE / "msgs.h")
    sources = (BASE / name for name in ("iov.c", "bytes.c", "msgs.c"))
    return build(cdef, *sources)


def segments(ffi, data, cut):
    """Return `data` in two segments, and what keeps them alive."""
    parts = [ffi.from_buffer(data[:cut]), ffi.from_buffer(data[cut:])]
    iov = ffi.new("struct iovec[2]")
    for at, part in enumerate(parts):
        iov[at].iov_base, iov[at].iov_len = part, len(part)
    return iov, parts


def peek(ffi, lib, queue, off, length):
    iov = ffi.new("struct iovec[2]")
    n = lib.bytes_peek(queue, off, length, iov)
    return b"".join(
        bytes(ffi.buffer(iov[i].iov_base, iov[i].iov_len)) for i in range(n)
    )


PUTS = st.tuples(st.binary(max_size=9000), st.integers(0, 9000), st.integers(0, 100))


@given(steps=st.lists(st.one_of(PUTS, st.integers(0, 20_000)), max_size=40))
@settings(max_examples=200)
def test_bytes_come_out_as_they_went_in(queues, steps):
    ffi, lib = queues
    queue = ffi.new("struct bytes *")
    expected = b""
    for step in steps:
        if isinstance(step, tuple):
            data, cut, skip = step
            iov, _keep = segments(ffi, data, min(cut, len(data)))
            assert lib.bytes_put(queue, iov, 2, min(skip, len(data)))
            expected += data[min(skip, len(data)) :]
        elif expected:
            count = min(step, len(expected))
            assert peek(ffi, lib, queue, 0, count) == expected[:count]
            lib.bytes_drop(queue, count)
            expected = expected[count:]
        assert lib.bytes_len(queue) == len(expected)
        cap = queue.buffer.cap if queue.buffer else 0
        assert cap <= max(4096, 4 * len(expected)) or cap <= 1 << 18
        assert peek(ffi, lib, queue, 0, len(expected)) == expected
    lib.bytes_free(queue)
    assert queue.buffer == ffi.NULL
    assert lib.bytes_len(queue) == 0


def test_an_empty_queue_has_no_memory(queues):
    ffi, lib = queues
    queue = ffi.new("struct bytes *")
    iov, _keep = segments(ffi, b"abc", 1)
    assert lib.bytes_put(queue, iov, 2, 3)
    assert queue.buffer == ffi.NULL
    assert lib.bytes_put(queue, iov, 2, 0)
    lib.bytes_drop(queue, 3)
    assert queue.buffer == ffi.NULL


def test_what_is_too_much_is_refused_and_nothing_changes(queues):
    ffi, lib = queues
    queue = ffi.new("struct bytes *")
    iov, _keep = segments(ffi, b"abc", 1)
    assert lib.bytes_put(queue, iov, 2, 0)
    huge = ffi.new("struct iovec[1]", [(ffi.NULL, 1 << 31)])
    assert not lib.bytes_put(queue, huge, 1, 0)
    assert peek(ffi, lib, queue, 0, 3) == b"abc"
    lib.bytes_free(queue)


def head(queues, queue):
    ffi, lib = queues
    message = ffi.new("struct msg *")
    if not lib.msgs_head(queue, message):
        return None
    data = b"".join(
        bytes(ffi.buffer(message.iov[i].iov_base, message.iov[i].iov_len))
        for i in range(message.n_iov)
    )
    assert len(data) == message.len
    return data, message.flags


PARTS = st.tuples(st.binary(max_size=6000), st.sampled_from([0, 0, EOM, 3]))


@given(steps=st.lists(st.one_of(PARTS, st.integers(0, 8000)), max_size=40))
@settings(max_examples=200)
def test_messages_come_out_whole_with_their_flags(queues, steps):
    """Parts join the message before them; what was delivered of one is forgotten."""
    ffi, lib = queues
    queue = ffi.new("struct msgs *")
    expected: list[tuple[bytes, int]] = []  # with flags; 0: more is to come
    for step in steps:
        if isinstance(step, tuple):
            data, flags = step
            iov, _keep = segments(ffi, data, len(data) // 2)
            assert lib.msgs_put(queue, iov, 2, 0, flags)
            begun = expected.pop()[0] if expected and not expected[-1][1] else b""
            expected.append((begun + data, flags))
        elif expected:
            data, flags = expected[0]
            count = min(step, len(data))
            whole = count == len(data) and flags != 0
            lib.msgs_advance(queue, count, whole)
            expected[:1] = [] if whole else [(data[count:], flags)]
        assert head(queues, queue) == (expected[0] if expected else None)
    lib.bytes_free(ffi.addressof(queue, "bytes"))
