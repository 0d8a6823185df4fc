"""Half-close as a table (conn/pipe.c, conn/flow.c), between two sides of our own.

Spec: VIRTIO 1.2 section 5.10.6.5 "Stream Sockets": "VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE bit
0 set indicates that the peer will not receive any more data", "F_SEND bit 1 set
indicates that the peer will not send any more data". "These hints are permanent once
sent". "Clean disconnect is achieved by one or more VIRTIO_VSOCK_OP_SHUTDOWN packets
that indicate no more data will be sent and received, followed by a VIRTIO_VSOCK_OP_RST
response from the peer."
"""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vhost_user.native.conftest import HERE, NATIVE, declarations

UP, DOWN = 0, 1
NEAR, FAR = 0, 1
FLOWS, ENDING, ENDED, BROKEN = range(4)
OPEN, LINGER, DEAD = 5, 7, 8
END, STOP = 1, 2
ROOM = 1 << 30


@pytest.fixture(scope="module")
def fakes(build):
    sources = [*NATIVE.glob("base/*.c"), *NATIVE.glob("conn/*.c")]
    cdef = declarations(HERE / "pipe_fakes.h")
    return build(cdef, f"-I{HERE}", HERE / "pipe_fakes.c", *sources)


class Conn:
    """A connection, open, nothing kept; its sides take what `room` says."""

    def __init__(self, fakes, *, messages=False, window=1 << 20):
        self._ffi, self._lib = fakes
        self._fake = self._lib.fake_new(messages, window)
        self.near = self._lib.fake_side(self._fake, NEAR)
        self.far = self._lib.fake_side(self._fake, FAR)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._lib.fake_free(self._fake)

    def put(self, pipe, data, flags=0):
        self._lib.fake_put(self._fake, pipe, data, len(data), flags)

    def end(self, pipe):
        self._lib.fake_end(self._fake, pipe)

    def stop(self, pipe, error=0):
        self._lib.fake_break(self._fake, pipe, error)

    def run(self):
        self._lib.fake_run(self._fake)

    def pipe(self, pipe):
        return self._lib.fake_pipe(self._fake, pipe)

    def kept(self, pipe):
        return self._lib.fake_kept(self._fake, pipe)

    @property
    def state(self):
        return self._lib.fake_state(self._fake)

    def source(self, pipe):
        return self.near if pipe == UP else self.far

    def sink(self, pipe):
        return self.far if pipe == UP else self.near


def in_state(conn, pipe, state):
    """Bring a pipe into a state."""
    if state == ENDING:
        conn.put(pipe, b"kept")
    if state in (ENDING, ENDED):
        conn.end(pipe)
    if state == BROKEN:
        conn.stop(pipe)
    assert conn.pipe(pipe) == state


ONE_PIPE = [
    # state, event, the next one, what the source hears, what the sink hears
    (FLOWS, "end", ENDED, 0, END),
    (FLOWS, "stop", BROKEN, STOP, 0),
    (FLOWS, "drained", FLOWS, 0, 0),
    (ENDING, "end", ENDING, 0, 0),
    (ENDING, "stop", BROKEN, STOP, 0),
    (ENDING, "drained", ENDED, 0, END),
    (ENDED, "end", ENDED, 0, 0),
    (ENDED, "stop", ENDED, 0, 0),
    (ENDED, "drained", ENDED, 0, 0),
    (BROKEN, "end", BROKEN, 0, 0),
    (BROKEN, "stop", BROKEN, 0, 0),
    (BROKEN, "drained", BROKEN, 0, 0),
]


@pytest.mark.parametrize("pipe", [UP, DOWN], ids=["up", "down"])
@pytest.mark.parametrize(("state", "event", "following", "source", "sink"), ONE_PIPE)
def test_a_pipe_goes_from_state_to_state(
    fakes, pipe, state, event, following, source, sink
):
    with Conn(fakes) as conn:
        in_state(conn, pipe, state)
        conn.near.told = conn.far.told = 0
        if event == "end":
            conn.end(pipe)
        elif event == "stop":
            conn.stop(pipe)
        else:
            conn.sink(pipe).room = ROOM
            conn.run()
        assert conn.pipe(pipe) == following
        assert conn.source(pipe).told == source
        assert conn.sink(pipe).told == sink


GOES_ON, LETS_GO, IS_OVER = OPEN, LINGER, DEAD
BOTH_PIPES = {
    (FLOWS, FLOWS): GOES_ON,
    (FLOWS, ENDING): GOES_ON,
    (FLOWS, ENDED): GOES_ON,  # the far side sends no more
    (FLOWS, BROKEN): GOES_ON,  # "will not receive any more data": it may send
    (ENDING, FLOWS): GOES_ON,
    (ENDING, ENDING): GOES_ON,
    (ENDING, ENDED): GOES_ON,
    (ENDING, BROKEN): GOES_ON,  # close() with bytes on their way
    (ENDED, FLOWS): GOES_ON,  # "will not send any more data": it may receive
    (ENDED, ENDING): GOES_ON,
    (ENDED, ENDED): LETS_GO,  # we say both; "followed by a RST response"
    (ENDED, BROKEN): IS_OVER,  # it said both: our RST is the response
    (BROKEN, FLOWS): GOES_ON,  # the far side takes no more, the near side knows
    (BROKEN, ENDING): GOES_ON,
    (BROKEN, ENDED): LETS_GO,  # the far side has closed, and both was said
    (BROKEN, BROKEN): IS_OVER,  # nobody takes anything
}


@pytest.mark.parametrize("first", [UP, DOWN], ids=["up-first", "down-first"])
@pytest.mark.parametrize("states", list(itertools.product(range(4), repeat=2)))
def test_two_pipes_say_whether_a_connection_goes_on(fakes, states, first):
    with Conn(fakes) as conn:
        for pipe in (first, 1 - first):
            in_state(conn, pipe, states[pipe])
        conn.run()
        assert conn.state == BOTH_PIPES[states]
        assert conn.far.closed == (conn.state != OPEN)
        assert conn.near.finished == (conn.state == LINGER)
        assert conn.near.reset == (conn.state == DEAD)
        if conn.state != OPEN:
            assert (conn.near.over, conn.far.close_error) == (-1, 0)


def test_what_the_sink_has_no_room_for_is_kept_and_not_acknowledged(fakes):
    with Conn(fakes) as conn:
        conn.far.room = 3
        conn.put(UP, b"abcdef")
        assert (conn.far.took, conn.near.acked, conn.kept(UP)) == (3, 3, 3)
        conn.far.room = 2
        conn.run()
        assert (conn.far.took, conn.near.acked, conn.kept(UP)) == (5, 5, 1)


def test_what_is_kept_for_a_sink_that_goes_is_never_acknowledged(fakes):
    """And its source is told: no byte is lost in silence."""
    with Conn(fakes) as conn:
        conn.put(UP, b"abcdef")
        conn.far.error = errno.EPIPE
        conn.run()
        assert conn.pipe(UP) == BROKEN
        conn.put(UP, b"more")
        assert (conn.near.told, conn.near.acked, conn.kept(UP)) == (STOP, 0, 0)
        assert conn.state == OPEN


@pytest.mark.parametrize(
    ("error", "shown"),
    [(errno.EPIPE, LINGER), (errno.ECONNRESET, DEAD), (errno.ETIMEDOUT, DEAD)],
)
def test_an_error_of_a_write_shows_when_the_other_direction_has_ended(
    fakes, error, shown
):
    """The far side may have sent something before: that is still delivered."""
    with Conn(fakes) as conn:
        conn.far.error = error
        conn.put(UP, b"x")
        conn.near.room = ROOM
        conn.put(DOWN, b"last words")
        assert (conn.state, conn.near.took) == (OPEN, 10)
        conn.end(DOWN)
        conn.run()
        assert conn.state == shown
        assert conn.near.over == (-1 if shown == LINGER else error)


def test_a_message_that_never_fits_ends_the_connection(fakes):
    with Conn(fakes, messages=True) as conn:
        conn.far.error = errno.EMSGSIZE
        conn.put(UP, b"large", 1)
        assert (conn.state, conn.near.misfit) == (DEAD, True)
        assert conn.near.over == errno.EMSGSIZE


def test_a_message_without_its_end_ends_the_connection(fakes):
    with Conn(fakes, messages=True) as conn:
        conn.far.room = ROOM
        conn.put(UP, b"half", 0)
        assert (conn.kept(UP), conn.far.took) == (8, 0)  # and its mark
        conn.end(UP)
        conn.run()
        assert (conn.state, conn.near.misfit, conn.far.took) == (DEAD, True, 0)


def test_a_flood_of_empty_messages_is_bounded(fakes):
    """They cost no credit, but a mark each."""
    with Conn(fakes, messages=True, window=1000) as conn:
        for _ in range(1250):
            conn.far.error = errno.EAGAIN
            conn.put(UP, b"", 1)
        assert conn.state == OPEN
        conn.put(UP, b"", 1)
        assert (conn.state, conn.near.misfit) == (DEAD, True)


EVENTS = st.sampled_from(["put", "end", "stop", "run", "room", "error"])


@given(
    steps=st.lists(st.tuples(EVENTS, st.integers(0, 1), st.integers(0, 9)), max_size=40)
)
@settings(max_examples=400)
def test_bytes_are_acknowledged_only_when_they_are_taken(fakes, steps):
    """Or their source has been told; for any order of events."""
    with Conn(fakes) as conn:
        sent, ended = 0, set()
        for event, pipe, size in steps:
            if conn.state != OPEN:
                break
            if event == "put" and pipe not in ended:
                conn.put(pipe, b"x" * size)
                sent += size if pipe == UP else 0
            elif event == "end":
                conn.end(pipe)
                ended.add(pipe)
            elif event == "stop":
                conn.stop(pipe)
            elif event == "run":
                conn.run()
            elif event == "room":
                conn.sink(pipe).room = size
            else:
                conn.sink(pipe).error = errno.EPIPE
            assert conn.near.acked == conn.far.took
            lost = sent - conn.far.took - conn.kept(UP)
            assert lost == 0 or conn.near.told & STOP or conn.state != OPEN
            assert (conn.pipe(UP) == BROKEN) == bool(conn.near.told & STOP)
            if conn.far.told & END:
                assert conn.kept(UP) == 0
