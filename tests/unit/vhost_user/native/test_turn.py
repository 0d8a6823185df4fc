"""When a guest is shown what a device's turns did (vsock/turn.c)."""

from __future__ import annotations

import pytest

from tests.unit.vhost_user.native.conftest import HERE, NATIVE

CUTS = 8
"""Turns that are shown together."""


@pytest.fixture(scope="module")
def shown(build):
    """Return a function: chains that spend a turn each, to how often it was shown."""
    cdef = "unsigned turn_shown(unsigned n, unsigned *ret_turns);"
    ffi, lib = build(cdef, HERE / "turn_fakes.c", NATIVE / "vsock" / "turn.c")

    def of(chains):
        turns = ffi.new("unsigned *")
        found = lib.turn_shown(chains, turns)
        assert turns[0] == chains
        return found

    return of


def test_a_turn_that_was_spent_with_the_last_of_the_work_is_shown(shown):
    assert shown(1) == 1


@pytest.mark.parametrize(
    ("chains", "times"), [(2, 1), (CUTS, 1), (CUTS + 1, 2), (3 * CUTS, 3)]
)
def test_turns_that_go_on_with_work_are_shown_together(shown, chains, times):
    assert shown(chains) == times
