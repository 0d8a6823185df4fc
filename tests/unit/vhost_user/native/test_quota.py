"""How much somebody may have (base/quota.c)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.vhost_user.native.conftest import NATIVE, declarations

SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def quota(build):
    header = declarations(NATIVE / "base" / "quota.h")
    return build(header, NATIVE / "base" / "quota.c")


@given(
    rate=st.integers(1, 1_000_000),
    gaps=st.lists(st.integers(0, 3 * SECOND_US), max_size=100),
)
def test_no_second_has_more_than_two_seconds_worth(quota, rate, gaps):
    """One that the bucket held, and one that came meanwhile."""
    ffi, lib = quota
    bucket = ffi.new("struct bucket *")
    now, taken = SECOND_US, []
    for gap in gaps:
        now += gap
        if lib.bucket_take(bucket, rate, now):
            taken.append(now)
    for at in taken:
        assert sum(at <= other < at + SECOND_US for other in taken) <= 2 * rate


def test_a_bucket_begins_full_and_fills_in_a_second(quota):
    ffi, lib = quota
    bucket = ffi.new("struct bucket *")
    now = 10 * SECOND_US
    assert [lib.bucket_take(bucket, 3, now) for _ in range(5)] == 3 * [True] + 2 * [
        False
    ]
    assert lib.bucket_take(bucket, 3, now + SECOND_US // 3 + 1)
    assert not lib.bucket_take(bucket, 3, now + SECOND_US // 3 + 1)
    later = now + 9 * SECOND_US
    assert [lib.bucket_take(bucket, 3, later) for _ in range(4)] == 3 * [True] + [False]


def test_without_a_rate_there_is_no_limit(quota):
    ffi, lib = quota
    bucket = ffi.new("struct bucket *")
    assert all(lib.bucket_take(bucket, 0, 0) for _ in range(1000))


@given(
    most=st.integers(0, 1 << 40),
    wants=st.lists(st.integers(0, 1 << 30), max_size=100),
)
def test_shares_never_add_up_to_more_than_there_is(quota, most, wants):
    _, lib = quota
    taken = 0
    for want in wants:
        got = lib.quota_share(most, taken, want)
        assert got <= want
        assert got <= (most - taken) // 8
        taken += got
    assert taken <= most


def test_above_a_limit_that_was_lowered_nothing_is_given(quota):
    _, lib = quota
    assert lib.quota_share(100, 200, 5) == 0
