"""Short connections at 64 in flight: none fails, and nothing is left of them.

The short form of `make soak`: two rounds of 1,000. What grows once has grown after
the first.
"""

from __future__ import annotations

import asyncio

import pytest

from bench.soak_tsi import growth, soak
from tests.support.limits import GUEST_LIMIT_S


@pytest.mark.parametrize("sockets", ["agent", "module"])
def test_a_thousand_connections_at_64_in_flight_leave_nothing(accelerator, sockets):
    samples = asyncio.run(
        soak(
            rounds=2,
            count=1000,
            in_flight=64,
            accelerator=accelerator,
            tell=lambda sample: None,
            timeout_s=GUEST_LIMIT_S,
            sockets=sockets,
        )
    )
    assert growth(samples) == [], samples
    assert samples[-1].program_fds == 3
    assert samples[-1].tokens == 2
