"""What a peer may say a second (h2/flood.c)."""

from __future__ import annotations

import pytest

from tests.unit.vhost_user.native.conftest import HERE, NATIVE

SECOND_US = 1_000_000
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONT = range(10)
END_STREAM = 0x1
CDEF = """
struct h2 *flood_new(void);
void flood_free(struct h2 *h);
bool flood_frame(struct h2 *h, uint8_t type, uint8_t flags, uint32_t len,
                 uint64_t now_us);
void flood_earn(struct h2 *h, uint32_t n);
"""


@pytest.fixture(scope="module")
def flood(build):
    sources = [NATIVE / "h2" / "flood.c", NATIVE / "base" / "quota.c"]
    return build(CDEF, HERE / "flood_fakes.c", *sources)


@pytest.fixture
def says(flood):
    """Return a function that says a frame, and whether it is one too many."""
    _, lib = flood
    session = lib.flood_new()
    yield lambda kind, now, flags=0, size=0: lib.flood_frame(
        session, kind, flags, size, now
    )
    lib.flood_free(session)


RATES = {
    "open": (HEADERS, 10000),
    "reset": (RST, 1000),
    "ping": (PING, 200),
    "settings": (SETTINGS, 200),
    "window-update": (WINDOW, 2000),
    "priority": (PRIORITY, 1000),
    "unknown": (0xFA, 1000),
    "empty-data": (DATA, 1000),
}


@pytest.mark.parametrize(("kind", "rate"), RATES.values(), ids=RATES)
def test_a_seconds_worth_is_taken_and_one_more_is_a_flood(says, kind, rate):
    now = 10 * SECOND_US
    assert not any(says(kind, now) for _ in range(rate))
    assert says(kind, now)
    assert not says(kind, now + SECOND_US)


def test_pings_and_settings_share_what_they_may(says):
    now = 10 * SECOND_US
    assert not any(says(PING, now) or says(SETTINGS, now) for _ in range(100))
    assert says(PING, now)


def test_payload_and_ends_are_no_flood(says):
    now = 10 * SECOND_US
    assert not any(says(DATA, now, size=1) for _ in range(100_000))
    assert not any(says(DATA, now, END_STREAM) for _ in range(100_000))


def test_window_updates_for_data_of_ours_are_no_flood(flood):
    _, lib = flood
    session = lib.flood_new()
    lib.flood_earn(session, 50_000)
    now = 10 * SECOND_US
    said = (lib.flood_frame(session, WINDOW, 0, 4, now) for _ in range(52_000))
    assert not any(said)
    assert lib.flood_frame(session, WINDOW, 0, 4, now)
    lib.flood_free(session)


def test_a_header_block_has_an_end(says):
    now = 10 * SECOND_US
    assert not says(HEADERS, now, size=65536)
    assert not says(CONT, now, size=65536)
    assert says(CONT, now, size=1)
    assert not says(HEADERS, now, size=65536)  # another one
