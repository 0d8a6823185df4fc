"""Events of the engine: each reaches its own handler once, whatever handlers do."""

from __future__ import annotations

import logging

import pytest

from vhost_user import engine as module
from vhost_user._native import lib
from vhost_user.engine import Engine, EventKind


class Queued:
    """The C side, but for its events: those are what a test puts there."""

    def __init__(self):
        self.events = []

    def __getattr__(self, name):
        return getattr(lib, name)

    def add(self, source, *conns):
        self.events += [(source, conn) for conn in conns]

    def vu_engine_events(self, _engine, ret_events, most):
        taken, self.events = self.events[:most], self.events[most:]
        for raw, (source, conn) in zip(ret_events, taken, strict=False):
            raw.kind, raw.source, raw.conn = EventKind.CLOSED, source, conn
        return len(taken)


@pytest.fixture
def queued(monkeypatch):
    queued = Queued()
    monkeypatch.setattr(module, "lib", queued)
    return queued


@pytest.fixture
def engine(queued):
    engine = Engine()
    yield engine
    lib.vu_engine_free(engine.native)


def test_a_handler_that_closes_a_device_takes_nobodys_events(engine, queued):
    heard = []

    def on_event(event):
        heard.append(event.conn)
        if event.conn == 1:
            queued.add(source, 7, 8, 9)  # more events, while this one is handled
            victim.close()

    source = engine.add_device(guest_cid=3, on_event=on_event).id
    victim = engine.add_device(guest_cid=4, on_event=lambda event: None)
    queued.add(source, 1, 2, 3, 4)
    engine.deliver()
    assert heard == [1, 2, 3, 4, 7, 8, 9]


def test_a_closed_devices_events_are_heard_before_close_returns(engine, queued):
    heard = []
    device = engine.add_device(guest_cid=3, on_event=lambda e: heard.append(e.conn))
    queued.add(device.id, 1, 2)
    device.close()
    assert heard == [1, 2]


def test_a_handler_that_fails_keeps_no_event_from_the_others(engine, queued, caplog):
    heard = []

    def on_event(event):
        heard.append(event.conn)
        raise ValueError

    source = engine.add_device(guest_cid=3, on_event=on_event).id
    queued.add(source, 1, 2)
    with caplog.at_level(logging.ERROR):
        engine.deliver()
    assert heard == [1, 2]
    assert caplog.text.count("handler failed on CLOSED event") == 2


def test_more_events_than_fit_into_one_read_are_all_heard(engine, queued):
    heard = []
    source = engine.add_device(guest_cid=3, on_event=lambda e: heard.append(e.conn)).id
    queued.add(source, *range(1000))
    engine.deliver()
    assert heard == list(range(1000))
