"""Events reach the handler that they are for, each once, and nothing goes uncounted."""

from __future__ import annotations

import contextlib
import os
import time

import pytest

from tests.conformance.links import wait_for
from tests.conformance.relays import Relay
from tests.support.limits import LIMIT_S
from vhost_user.engine import Echo, EventKind
from vhost_user.errors import StateError
from vhost_user.frontend import Inflight
from vhost_user.message import InflightArea
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op

ECHO = 7


def echoes(relay, count):
    """Return connected clients that have had an answer each."""
    socks = []
    for _ in range(count):
        sock = relay.dial()
        sock.send(b"x")
        assert sock.recv(1) == b"x"
        socks.append(sock)
    return socks


def closed(events):
    return [event.conn for event in events if event.kind is EventKind.CLOSED]


def test_a_listeners_events_stay_with_its_handler(host, tmp_path):
    """Another listener doesn't get them, whatever name the engine has for it."""
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = Relay(host, tmp_path / "first", tcp=False, target=Echo())
    (client,) = echoes(first, 1)
    host.deliver()
    host.call(first.handle.close)
    second = Relay(host, tmp_path / "second", tcp=False, target=Echo())
    (other,) = echoes(second, 1)
    client.close()
    other.close()

    def all_closed():
        host.deliver()
        return len(closed(first.events) + closed(second.events)) == 2

    wait_for(all_closed, "the CLOSED events")
    assert (len(closed(first.events)), len(closed(second.events))) == (1, 1)


def test_a_handler_that_takes_events_itself_loses_none_and_repeats_none(host, tmp_path):
    """Closing a device delivers what is due; so may a handler do, in mid-delivery."""
    victim = host.call(
        lambda: host.engine.add_device(guest_cid=9, on_event=lambda event: None)
    )
    relay = Relay(host, tmp_path, tcp=False, target=Echo())
    socks = echoes(relay, 12)
    seen = []
    append = relay.events.append

    def on_event(event):
        append(event)
        if event.kind is EventKind.CLOSED:
            seen.append(event.conn)
            if len(seen) == 1:
                for sock in socks[6:]:
                    sock.close()
                until_counted(host.engine, 0)
                victim.close()

    def close_six():
        for sock in socks[:6]:
            sock.close()
        until_counted(host.engine, 6)

    host.call(host.engine.deliver)
    host.engine._handlers[relay.handle.id] = on_event
    host.call(close_six)

    def settled():
        host.deliver()
        return host.engine_stats().conns == 0 and len(seen) >= 12

    with contextlib.suppress(AssertionError):
        wait_for(settled, "the CLOSED events")
    assert sorted(seen) == sorted(set(seen))
    assert len(seen) == 12


def until_counted(engine, conns):
    """Wait, in the event loop's thread, until the engine has so many connections."""
    until = time.monotonic() + LIMIT_S
    while engine.stats().conns > conns and time.monotonic() < until:
        time.sleep(0.001)


def test_a_client_that_finds_no_room_is_counted(make_host, tmp_path):
    """A listener's connection beyond max_conns is closed, and shows in a counter."""
    host = make_host(engine_conns=1)
    relay = Relay(host, tmp_path, tcp=False, target=Echo())
    (kept,) = echoes(relay, 1)
    with kept, relay.dial() as refused:
        assert refused.recv(1) == b""
        counters = host.engine_stats()
        assert counters.refused == 1


def take_over(guest, inflight):
    guest.vmm.set_inflight(inflight)
    guest.start()


@pytest.mark.parametrize("offset", [4, 4100, 4097])
def test_an_in_flight_log_that_is_not_aligned_is_the_front_ends_fault(
    host, caplog, offset
):
    """It says what is wrong with it; nothing is said to be a bug of ours."""
    fd = os.memfd_create("in-flight", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 20)
    area = InflightArea(size=1 << 19, offset=offset, queues=2, queue_size=256)
    with VsockGuest(host.path) as guest:
        guest.stop()
        with pytest.raises((ConnectionError, StateError)):
            take_over(guest, Inflight(area, fd))
    os.close(fd)
    host.idle()
    said = [record.getMessage() for record in caplog.records]
    assert not [line for line in said if "bug" in line]
    assert [line for line in said if "inflight" in line.lower().replace("-", "")]
    with VsockGuest(host.path) as again:
        conn = again.connect(ECHO)
        conn.say(Op.RW, b"alive")
        assert conn.receive().payload == b"alive"
