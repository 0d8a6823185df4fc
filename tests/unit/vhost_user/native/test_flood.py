"""What a peer may say a second (h2/flood.c)."""

from __future__ import annotations

import pytest

from tests.unit.vhost_user.native.conftest import HERE, NATIVE

SECOND_US = 1_000_000
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONT = range(10)
END_STREAM, PADDED = 0x1, 0x8
CDEF = """
struct h2 *flood_new(void);
void flood_free(struct h2 *h);
bool flood_frame(struct h2 *h, uint8_t type, uint8_t flags, uint32_t len,
                 uint64_t now_us);
void flood_earn(struct h2 *h, uint32_t n);
void flood_padding(struct h2 *h, uint8_t len);
void flood_faults(struct h2 *h, uint32_t n);
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

    def say(kind, now, flags=0, size=0, padding=0, faults=0):
        lib.flood_padding(session, padding)
        lib.flood_faults(session, faults)
        return lib.flood_frame(session, kind, flags, size, now)

    yield say
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


def test_a_header_block_is_in_so_many_frames_as_any_peer_needs(says):
    now = 10 * SECOND_US
    assert not says(HEADERS, now)
    assert not any(says(CONT, now) for _ in range(8))
    assert says(CONT, now)


def test_padding_alone_is_nothing(says):
    now = 10 * SECOND_US
    assert not any(says(DATA, now, PADDED, 4, 3) for _ in range(1000))
    assert not says(DATA, now, PADDED, 5, 3)  # a byte of payload
    assert not says(DATA, now, PADDED | END_STREAM, 4, 3)
    assert says(DATA, now, PADDED, 1, 0)


def test_streams_that_a_peer_has_us_reset_count_as_those_that_it_resets(says):
    now = 10 * SECOND_US
    assert not any(says(RST, now) for _ in range(500))
    assert not any(says(DATA, now, size=1, faults=1) for _ in range(500))
    assert says(DATA, now, size=1, faults=1)
    assert not says(DATA, now, size=1)


def test_a_frame_that_is_too_large_is_no_flood(says):
    now = 10 * SECOND_US
    assert not says(HEADERS, now, size=(1 << 20) + 1)


def test_a_goodbye_has_an_end(says):
    now = 10 * SECOND_US
    assert not says(GOAWAY, now, size=16384)
    assert says(GOAWAY, now, size=16385)
