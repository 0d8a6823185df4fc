"""What is denied, now or by a new policy: connections, datagrams, and their lines."""

from __future__ import annotations

import asyncio
import errno
import time

from fastpath import throttle
from fastpath.tsi.policy import Denial, EgressPolicy, Rule, SandboxPolicy
from fastpath.tsi.policyfile import DenialErrno, Egress
from fastpath.tsi.router import Here
from fastpath.ztunnel import outbound
from tests.support.clock import Stopped
from tests.unit.fastpath.outbound_ways import (
    DENIED,
    PRINCIPAL,
    VIP,
    Tproxy,
    Tsi,
    way,
    world,
)
from vhost_user.engine import EventKind, Reset

__all__ = ["way", "world"]


def test_a_denied_connection(way, world):
    assert way.ask(DENIED) == Reset(errno.ECONNREFUSED)
    way.tell(EventKind.FAILED, DENIED, error=errno.ECONNREFUSED)
    (record,) = world.log.records
    assert (record.level, record.message) == ("warn", "connection failed")
    assert record.src.identity == PRINCIPAL
    assert record.dst.addr == "10.9.9.9:22"
    assert "10.9.9.9:22" in record.error
    assert (record.bytes_sent, record.duration_ms) == (None, None)
    ((labels, value),) = world.samples("fastpath_denied_total")
    assert (labels["sandbox"], value) == ("box", 1)
    assert world.value("istio_tcp_connections_opened_total") == 0


def denies(*rules):
    egress = Egress(deny=tuple(map(Rule.parse, rules)), errno=DenialErrno.EACCES)
    return SandboxPolicy(egress=egress.policy())


def test_a_new_policy_ends_what_it_denies(way, world):
    async def main():
        way.ask(VIP)
        way.tell(EventKind.OPENED, VIP)
        world.router.set_policy(denies("192.0.2.1"))
        assert not world.engine.ended
        world.router.set_policy(denies("10.0.0.11"))  # the endpoint, not the VIP
        world.router.set_policy(denies("10.96.0.1"))  # already ended

    asyncio.run(main())
    assert world.engine.ended == [(1, errno.EACCES)]
    way.tell(EventKind.CLOSED, VIP, error=errno.EACCES, up=1, down=2)
    (record,) = world.log.records
    assert (record.level, record.message) == ("warn", "connection complete")
    assert (record.bytes_sent, record.bytes_recv) == (1, 2)
    assert record.error.startswith("ended by a new policy: 10.0.0.11:8080: denied by")
    assert record.src.identity == PRINCIPAL
    ((labels, value),) = world.samples("fastpath_policy_ended_total")
    assert (labels, value) == ({"sandbox": "box", "reason": "deny_rule"}, 1)
    assert world.value("fastpath_denied_total") == 0


def test_what_a_cached_answer_opened_meanwhile_is_judged_when_it_opens(world):
    there = ("192.0.2.1", 443)
    world.router.route(there, 1)
    world.router.set_policy(denies("192.0.2.0/24"))
    way = Tsi(world)
    way.tell(EventKind.OPENED, there, conn=2)  # nobody asked for 2
    assert world.engine.ended == [(1, errno.EACCES), (2, errno.EACCES)]


def test_many_connections_are_asked_about_by_turns(world, monkeypatch):
    monkeypatch.setattr(outbound, "CHECKED_AT_ONCE", 10)

    async def main():
        for conn in range(95):
            world.router.route(("192.0.2.1", 443), conn)
        world.router.set_policy(denies("192.0.2.0/24"))
        assert len(world.engine.ended) == 10
        world.router.set_policy(denies("192.0.2.0/25"))  # the first one's rest is moot
        for _ in range(20):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert sorted(conn for conn, _ in world.engine.ended) == list(range(95))


def test_a_flood_of_refusals_gets_a_bounded_number_of_lines(
    way, world, caplog, monkeypatch
):
    monkeypatch.setattr(throttle, "time", Stopped)

    async def main():
        for _ in range(500):
            way.ask(DENIED)
            way.tell(EventKind.FAILED, DENIED, error=errno.ECONNREFUSED)
        world.outbound.close()

    asyncio.run(main())
    assert len(world.log.records) == throttle.BURST
    ((labels, left_out),) = world.samples("fastpath_denied_unlogged_total")
    assert labels == {"sandbox": "box"}
    assert len(world.log.records) + left_out == 500
    assert world.value("fastpath_denied_total") == 500
    said = f"{PRINCIPAL}: {left_out:.0f} denials are not in the access log"
    assert said in caplog.text


def test_lines_come_again_as_time_goes_by(world, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit = throttle.Throttle(lambda count: None)
    assert [limit.admits() for _ in range(100)] == [True] * 100
    now += 0.5
    assert [limit.admits() for _ in range(5)] == [True] * 5


def test_an_unknown_source_is_refused_counted_and_logged(world):
    way = Tproxy(world)
    stranger = ("10.0.0.77", 1234)
    way.tell(EventKind.REQUEST, VIP, src=stranger)
    way.tell(EventKind.FAILED, VIP, src=stranger, error=errno.ECONNREFUSED)
    assert world.engine.answers == {1: Reset(errno.ECONNREFUSED)}
    (record,) = world.log.records
    assert record.level == "warn"
    assert record.error == "unknown source: 10.0.0.77"
    assert world.samples("fastpath_denied_total") == [
        ({"sandbox": "", "reason": "unknown_source"}, 1)
    ]


def test_denied_datagrams_are_counted_and_logged_with_the_identity(world):
    denial = Denial("udp_off", "UDP is switched off")
    world.router.datagram_denied(("192.0.2.1", 123), denial)
    (record,) = world.log.records
    assert (record.level, record.message) == ("warn", "datagrams denied")
    assert record.src.identity == str(world.clients.sandbox("box").identity)
    assert record.dst.addr == "192.0.2.1:123"
    assert "UDP is switched off" in record.error
    assert world.samples("fastpath_denied_total") == [
        ({"sandbox": "box", "reason": "udp_off"}, 1)
    ]


def test_a_new_policy_ends_no_query_over_tcp(world):
    way, destination = Tsi(world), ("10.9.9.9", 53)
    assert isinstance(way.ask(destination), Here)
    way.tell(EventKind.OPENED, destination)
    everything = [Rule.parse("0.0.0.0/0")]
    world.router.set_policy(SandboxPolicy(egress=EgressPolicy(deny=everything)))
    assert not world.engine.ended
    assert isinstance(way.ask(destination), Here)


def test_lines_about_denied_datagrams_are_bounded(world, monkeypatch):
    monkeypatch.setattr(throttle, "time", Stopped)
    denial = Denial("udp_off", "UDP is switched off")

    async def work():
        for port in range(throttle.BURST + 5):
            world.router.datagram_denied(("192.0.2.1", port), denial)
        world.outbound.close()

    asyncio.run(work())
    assert len(world.log.records) == throttle.BURST
    ((_, count),) = world.samples("fastpath_denied_total")
    assert count == throttle.BURST + 5
