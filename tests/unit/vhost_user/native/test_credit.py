"""Credit (base/credit.c): both directions, siblings, wrapping counters, packets.

Spec: VIRTIO 1.2 section 5.10.6.3 "Buffer Space Management".
"""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vhost_user.native.conftest import NATIVE, declarations

WRAP = 1 << 32
MOST = 1 << 30
TRUESIZE = 576
"""What Linux adds for each unread packet, bytes."""
SAME, NEWS, LIE = range(3)

STARTS = st.one_of(st.just(0), st.integers(WRAP - 100_000, WRAP - 1))
"""Where counters begin: those of a connection wrap every 4 GiB."""
SIZES = st.integers(1, 70_000)
WINDOWS = st.one_of(st.integers(0, 5000), st.integers(0, MOST))


@pytest.fixture(scope="module")
def credit(build):
    header = declarations(NATIVE / "base" / "credit.h")
    return build(header, NATIVE / "base" / "credit.c")


def fresh(credit, start=0, buf_alloc=65536, peer_buf_alloc=65536):
    ffi, _ = credit
    c = ffi.new("struct credit *")
    for name in ("rx_cnt", "fwd_cnt", "fwd_sent", "edge", "tx_cnt", "peer_fwd_cnt"):
        setattr(c, name, start)
    c.buf_alloc, c.peer_buf_alloc = buf_alloc, peer_buf_alloc
    return c


# ---- to the guest ----


@given(start=STARTS, window=WINDOWS, steps=st.lists(st.tuples(st.booleans(), SIZES)))
@settings(max_examples=300)
def test_no_more_is_in_flight_than_the_guest_has_room_for(credit, start, window, steps):
    """Bytes, and packets with what Linux adds for each; whoever reads in any pieces."""
    _, lib = credit
    c = fresh(credit, start, peer_buf_alloc=window)
    unread: deque[int] = deque()
    read = 0
    for sends, size in steps:
        if sends:
            size = min(size, lib.credit_bytes(c))
            if not size or not lib.credit_packets(c):
                continue
            lib.credit_sent(c, size)
            unread.append(size)
        else:
            for _ in range(min(size % 50, len(unread))):
                read += unread.popleft()
            note = lib.credit_note(c, (start + read) % WRAP, window)
            assert note in (SAME, NEWS)
        in_flight = sum(unread)
        assert in_flight <= window
        assert lib.credit_bytes(c) == window - in_flight
        assert len(unread) <= max(1, window // TRUESIZE)
    read += sum(unread)
    lib.credit_note(c, (start + read) % WRAP, window)
    assert lib.credit_bytes(c) == window
    assert lib.credit_packets(c) == min(32768, max(1, window // 768))


@given(start=STARTS, sent=st.lists(SIZES, max_size=20), off=st.integers(1, WRAP // 2))
def test_taking_more_than_was_sent_is_a_lie_and_changes_nothing(
    credit, start, sent, off
):
    ffi, lib = credit
    c = fresh(credit, start, peer_buf_alloc=MOST)
    for size in sent:
        lib.credit_sent(c, size)
    before = bytes(ffi.buffer(c))
    assert lib.credit_note(c, (start + sum(sent) + off) % WRAP, 5) == LIE
    assert bytes(ffi.buffer(c)) == before


@given(start=STARTS, back=st.integers(1, MOST))
def test_an_older_number_says_nothing(credit, start, back):
    """A guest with several CPUs may send it behind a newer one."""
    _, lib = credit
    c = fresh(credit, start, peer_buf_alloc=MOST)
    lib.credit_sent(c, 1000)
    assert lib.credit_note(c, (start + 1000) % WRAP, 4096) == NEWS
    assert lib.credit_note(c, (start + 1000 - back) % WRAP, 9) == SAME
    assert (c.peer_buf_alloc, lib.credit_bytes(c)) == (4096, 4096)


def test_a_window_that_shrinks_below_what_is_in_flight_leaves_nothing(credit):
    _, lib = credit
    c = fresh(credit)
    lib.credit_sent(c, 1000)
    assert lib.credit_note(c, 0, 10) == NEWS
    assert lib.credit_bytes(c) == 0
    assert lib.credit_note(c, 990, 10) == NEWS
    assert lib.credit_bytes(c) == 0
    assert lib.credit_note(c, 1000, 10) == NEWS
    assert lib.credit_bytes(c) == 10


def test_a_window_is_at_most_one_gib(credit):
    _, lib = credit
    c = fresh(credit)
    lib.credit_note(c, 0, WRAP - 1)
    assert lib.credit_bytes(c) == MOST


def test_a_guest_is_asked_when_half_of_the_packets_are_in_flight(credit):
    """And not again with each one: one with most of its bytes free tells nothing."""
    _, lib = credit
    c = fresh(credit, peer_buf_alloc=768 * 100)
    asked = []
    for at in range(1, 101):
        lib.credit_sent(c, 1)
        if lib.credit_few_packets(c):
            asked.append(at)
    assert asked == [50]
    assert lib.credit_packets(c) == 0


# ---- from the guest ----


@given(
    start=STARTS,
    window=st.integers(1, MOST),
    steps=st.lists(st.tuples(st.sampled_from(["send", "take", "tell"]), SIZES)),
)
@settings(max_examples=300)
def test_a_guest_sends_what_it_was_told_and_not_a_byte_more(
    credit, start, window, steps
):
    ffi, lib = credit
    c = fresh(credit, start, buf_alloc=window)
    told = lib.credit_tell(c, ffi.NULL)
    assert told == window
    sent = taken = 0
    seen, may = 0, window  # the guest's: fwd_cnt and buf_alloc as it heard them
    for what, size in steps:
        if what == "send":
            room = may - (sent - seen)
            if size > room:
                continue
            assert lib.credit_take(c, ffi.NULL, size)
            sent += size
        elif what == "take":
            size = min(size, sent - taken)
            c.fwd_cnt = (c.fwd_cnt + size) % WRAP
            taken += size
        else:
            may = lib.credit_tell(c, ffi.NULL)
            seen = (c.fwd_cnt - start) % WRAP
            assert seen == taken
        held = sent - taken
        assert held <= window
        assert not lib.credit_take(c, ffi.NULL, window - held + 1)
        assert (c.rx_cnt - start) % WRAP == sent


@given(start=STARTS, window=st.integers(2, MOST))
def test_room_is_told_at_half_a_window(credit, start, window):
    ffi, lib = credit
    c = fresh(credit, start, buf_alloc=window, peer_buf_alloc=MOST)
    lib.credit_tell(c, ffi.NULL)
    assert not lib.credit_due(c, ffi.NULL)
    half = max(1, window // 2)
    assert lib.credit_take(c, ffi.NULL, half)
    c.fwd_cnt = (start + half - 1) % WRAP
    assert not lib.credit_due(c, ffi.NULL)
    c.fwd_cnt = (start + half) % WRAP
    assert lib.credit_due(c, ffi.NULL)
    lib.credit_tell(c, ffi.NULL)
    assert not lib.credit_due(c, ffi.NULL)


def test_room_is_told_at_half_of_the_guests_own_buffer(credit):
    """Linux, since CVE-2026-23086, has no more in flight than that."""
    ffi, lib = credit
    c = fresh(credit, buf_alloc=1 << 20, peer_buf_alloc=4096)
    lib.credit_tell(c, ffi.NULL)
    assert lib.credit_take(c, ffi.NULL, 2048)
    c.fwd_cnt = 2048
    assert lib.credit_due(c, ffi.NULL)


# ---- siblings ----


@given(
    start=STARTS,
    own=st.integers(1, 100_000),
    window=st.integers(0, MOST),
    steps=st.lists(
        st.tuples(st.sampled_from(["send", "pass", "read", "shrink", "tell"]), SIZES)
    ),
)
@settings(max_examples=400)
def test_between_guests_no_more_is_kept_than_the_senders_window(
    credit, start, own, window, steps
):
    """Whatever the receiver says of its buffer; and the edge never moves back."""
    _, lib = credit
    c = fresh(credit, start, buf_alloc=own)
    far = fresh(credit, start, peer_buf_alloc=window)
    lib.credit_tell(c, far)
    sent = passed = read = 0
    edge = (c.edge - start) % WRAP
    for what, size in steps:
        if what == "send":
            size = min(size, edge - sent)
            assert lib.credit_take(c, far, size)
            sent += size
            assert not lib.credit_take(c, far, edge - sent + 1)
        elif what == "pass":
            size = min(size, sent - passed, lib.credit_bytes(far))
            if size:
                lib.credit_sent(far, size)
                passed += size
        elif what == "read":
            read += min(size, passed - read)
            lib.credit_note(far, (start + read) % WRAP, window)
        elif what == "shrink":
            window = size % 5000
            lib.credit_note(far, (start + read) % WRAP, window)
        else:
            told = lib.credit_tell(c, far)
            assert told <= MOST
            assert (c.fwd_cnt - start) % WRAP == read
            new = (c.edge - start) % WRAP
            assert new >= edge
            edge = new
        assert sent - passed <= own
