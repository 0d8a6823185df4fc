"""Devices of one engine: how many, whom groups let them reach, what idle ones cost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_user._native import lib
from vhost_user.engine import MAX_DEVICES, Echo, Engine
from vhost_user.errors import StateError


@pytest.fixture
def engine():
    """One whose thread does not run: what is asked of it needs no turn."""
    engine = Engine()
    yield engine
    lib.vu_engine_free(engine.native)


def add(engine, cid, groups=""):
    return engine.add_device(
        guest_cid=cid,
        groups=frozenset(groups),
        max_conns=1,
        on_event=lambda event: None,
    )


def test_an_engine_takes_so_many_devices_and_no_more(engine):
    devices = [add(engine, cid, "a") for cid in range(3, 3 + MAX_DEVICES)]
    with pytest.raises(StateError):
        add(engine, 2000)
    devices[-1].close()
    add(engine, 2000, "a")


def test_a_guest_does_not_reach_two_devices_by_one_cid(engine):
    add(engine, 5, "a")
    other = add(engine, 5, "b")
    for groups in ("ab", "ba"):
        with pytest.raises(StateError):
            add(engine, 6, groups)
    other.close()
    add(engine, 6, "ab")


def test_a_device_that_may_not_join_is_not_left_behind(engine):
    add(engine, 5, "a")
    for _ in range(MAX_DEVICES):
        with pytest.raises(StateError):
            add(engine, 5, "a")
    add(engine, 6, "a")


def ambiguous(devices):
    """Whether a guest reaches two devices by one CID, or one by its own."""
    for cid, groups in devices:
        reached = [c for c, names in devices if groups & names]
        own = [c for c in reached if c == cid]
        if groups and (len(own) > 1 or len(set(reached)) < len(reached)):
            return True
    return False


@given(
    st.lists(
        st.tuples(st.integers(3, 6), st.frozensets(st.sampled_from("abc"))),
        max_size=12,
    )
)
def test_whoever_may_join_is_as_the_model_has_it(wanted):
    engine = Engine()
    there: list[tuple[int, frozenset[str]]] = []
    for cid, groups in wanted:
        if ambiguous([*there, (cid, groups)]):
            with pytest.raises(StateError):
                add(engine, cid, groups)
        else:
            add(engine, cid, groups)
            there.append((cid, groups))
    lib.vu_engine_free(engine.native)


def test_each_of_many_routes_is_found_again(engine):
    device = add(engine, 3)
    for port in range(1, 5000):
        device.route(port, Echo())
    device.unroute_from(2500)

    def unroute(port):
        return lib.vu_dev_unroute(engine.native, device.id, port)

    assert [unroute(port) for port in range(1, 2500)] == [0] * 2499
    assert {unroute(port) for port in range(1, 5000)} == {-lib.VU_ERR_GONE}
    device.route(7, Echo())
    assert unroute(7) == 0


def test_counters_and_routes_of_idle_devices_cost_no_turn():
    async def main():
        async with Engine(poll_us=0) as engine:
            devices = [add(engine, cid, "a") for cid in range(3, 103)]
            for device in devices:
                device.route(7, Echo())
                device.unroute(7)
                device.stats()
                engine.stats()
            return engine.stats().wakeups

    assert asyncio.run(main()) == 0
