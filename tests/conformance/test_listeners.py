"""Listeners come and go; their connections, and who hears of them, stay."""

from __future__ import annotations

import resource
import socket
import time

import pytest

from tests.conformance.threads import TIMEOUT_S
from vhost_user.engine import Echo, Event, EventKind
from vhost_user.errors import StateError


def until(true):
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Listener:
    """A listener of the engine that echoes; it notes its events."""

    def __init__(self, host):
        self._host = host
        self.events: list[Event] = []
        sock = socket.create_server(("127.0.0.1", 0))
        self.address = sock.getsockname()
        self.handle = host.call(
            lambda: host.engine.add_listener(
                sock, Echo(), on_event=lambda event: self.events.append(event)
            )
        )

    def dial(self):
        sock = socket.create_connection(self.address, timeout=TIMEOUT_S)
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        return sock

    def close(self):
        self._host.call(self.handle.close)

    def kinds(self):
        self._host.deliver()
        return [event.kind for event in self.events]


@pytest.fixture
def listen(host):
    return lambda: Listener(host)


def handlers(host):
    host.deliver()
    return set(host.engine._handlers)


def test_a_connection_outlives_its_listener_and_tells_nobody_else(host, listen):
    first = listen()
    client = first.dial()
    first.close()
    second = listen()
    assert first.handle.id != second.handle.id
    client.sendall(b"y")
    assert client.recv(1) == b"y"
    client.close()
    until(lambda: first.kinds() == [EventKind.OPENED, EventKind.CLOSED])
    assert second.kinds() == []
    second.close()


def test_a_listeners_handler_is_forgotten_after_its_last_connection(host, listen):
    before = handlers(host)
    one = listen()
    clients = [one.dial() for _ in range(3)]
    one.close()
    assert len(handlers(host)) == len(before) + 1
    for client in clients:
        assert len(handlers(host)) == len(before) + 1
        client.close()
    until(lambda: handlers(host) == before)
    assert one.kinds().count(EventKind.CLOSED) == 3


def test_a_listener_without_connections_is_forgotten_at_once(host, listen):
    before = handlers(host)
    for _ in range(100):  # more than there may be at a time
        one = listen()
        one.dial().close()
        until(lambda: EventKind.CLOSED in one.kinds())  # noqa: B023
        one.close()
        assert handlers(host) == before


def test_a_listener_that_is_closed_twice_hurts_no_other(host, listen):
    one = listen()
    one.close()
    two = listen()
    with pytest.raises(StateError):
        one.close()
    two.dial().close()
    two.close()


def test_an_engine_has_more_listeners_than_devices(host, listen):
    """Names of listeners and devices don't meet, and each finds its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        many = [listen() for _ in range(1030)]
        assert len({one.handle.id for one in many}) == len(many)
        alike: dict[int, Listener] = {}
        first, second = next(
            (alike[one.handle.id % 1024], one)
            for one in many
            if alike.setdefault(one.handle.id % 1024, one) is not one
        )
        first.close()
        second.dial().close()
        until(lambda: EventKind.CLOSED in second.kinds())
        for one in many:
            if one is not first:
                one.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
