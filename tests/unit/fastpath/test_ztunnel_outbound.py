"""One connection's life: the same log lines and counts however it arrived."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastpath import throttle
from fastpath.tsi.datagram_limits import DatagramStats
from fastpath.tsi.policy import Denial, EgressPolicy, Rule, SandboxPolicy
from fastpath.tsi.policyfile import DenialErrno, Egress
from fastpath.tsi.router import Here
from fastpath.ztunnel import outbound
from fastpath.ztunnel.dns import Dns, DnsStats
from fastpath.ztunnel.metrics import DatagramCollector, EngineCollector, Metrics
from fastpath.ztunnel.model import (
    Config,
    Fastpath,
    NamespacedHostname,
    NetworkAddress,
    Sandbox,
    Service,
    Workload,
)
from fastpath.ztunnel.outbound import Capture, Outbound, SandboxRouter
from fastpath.ztunnel.routing import Routes
from fastpath.ztunnel.workloads import LocalWorkloads
from tests.support.clock import Stopped
from vhost_user.engine import (
    DeviceStats,
    Dial,
    Echo,
    EngineStats,
    Event,
    EventKind,
    Reset,
)

if TYPE_CHECKING:
    from fastpath.ztunnel.access_log import AccessLog
    from vhost_user.engine import Engine

WEB = NamespacedHostname("default", "web")
POD = ("10.0.0.2", 40000)
VIP = ("10.96.0.1", 80)
DENIED = ("10.9.9.9", 22)
PRINCIPAL = "spiffe://cluster.local/ns/default/sa/client"
CONFIG = Config(
    workloads=(
        Workload(
            workload_ips=(ip_address("10.0.0.2"),),
            namespace="default",
            name="client-1",
            service_account="client",
            workload_name="client",
            canonical_name="client-app",
            canonical_revision="v1",
        ),
        Workload(
            workload_ips=(ip_address("10.0.0.11"),),
            namespace="default",
            name="web-1",
            service_account="web",
            services={WEB: {80: 8080}},
        ),
    ),
    services=(
        Service(
            name="web",
            namespace="default",
            hostname="web",
            vips=(NetworkAddress("", ip_address("10.96.0.1")),),
            ports={80: 8080},
        ),
    ),
    fastpath=Fastpath(
        sandboxes=(
            Sandbox(
                name="box",
                workload="default/client-1",
                socket=Path("/run/s"),
                cid=3,
                egress=Egress(deny=(Rule.parse("10.9.9.9/32"),)),
            ),
        ),
        echo=ip_address("198.18.0.1"),
    ),
)


class FakeEngine:
    def __init__(self):
        self.answers = {}
        self.ended = []

    def answer(self, conn, target):
        self.answers[conn] = target
        return True

    def reset(self, conn, error):
        self.ended.append((conn, error))


class FakeLog:
    def __init__(self):
        self.records = []
        self.dropped = 0

    def write(self, record):
        self.records.append(record)


def event(kind, *, conn=1, error=0, up=0, down=0, src=None, dst=None):
    return Event(
        kind=kind,
        conn=conn,
        error=error,
        port=0x10000,
        peer_port=0x5_0000 + POD[1],
        up_bytes=up,
        down_bytes=down,
        duration_us=2999,
        src=src,
        dst=dst,
    )


class World:
    def __init__(self) -> None:
        self.engine, self.log = FakeEngine(), FakeLog()
        self.metrics = Metrics()
        self.clients = LocalWorkloads(CONFIG)
        self.outbound = Outbound(
            Routes(CONFIG),
            cast("AccessLog", self.log),
            self.metrics,
            self.engine.reset,
        )
        self.capture = Capture(cast("Engine", self.engine), self.outbound, self.clients)
        client = self.clients.sandbox("box")
        self.router = SandboxRouter(self.outbound, client, Dns(CONFIG))

    def samples(self, name):
        """Samples of one counter that are not 0, by their labels."""
        text = self.metrics.text().decode()
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.value
        ]

    def value(self, name):
        return sum(value for _, value in self.samples(name))


class Tsi:
    """Plays the TSI service for one sandbox."""

    def __init__(self, world):
        self.world = world
        self.router = world.router

    def ask(self, destination):
        return self.router.route(destination, 1).target

    def tell(self, kind, destination, **fields):
        getattr(self.router, kind.name.lower())(event(kind, **fields), destination)


class Tproxy:
    """Plays the engine for the capture listener."""

    def __init__(self, world):
        self.world = world

    def ask(self, destination):
        self.tell(EventKind.REQUEST, destination)
        return self.world.engine.answers[1]

    def tell(self, kind, destination, **fields):
        fields = {"src": POD, "dst": destination} | fields
        self.world.capture.handle_event(event(kind, **fields))


@pytest.fixture
def world():
    return World()


@pytest.fixture(params=[Tsi, Tproxy], ids=["tsi", "tproxy"])
def way(request, world):
    return request.param(world)


def test_a_connection_to_a_service(way, world):
    assert way.ask(VIP) == Dial(("10.0.0.11", 8080))
    way.tell(EventKind.OPENED, VIP)
    assert not world.log.records
    assert world.value("istio_tcp_connections_opened_total") == 1
    assert world.value("istio_tcp_connections_closed_total") == 0
    way.tell(EventKind.CLOSED, VIP, up=79, down=4839)
    (record,) = world.log.records
    assert (record.level, record.message) == ("info", "connection complete")
    assert dataclasses.astuple(record.src) == (
        "10.0.0.2:40000",
        "client-1",
        "default",
        PRINCIPAL,
    )
    assert dataclasses.astuple(record.dst) == (
        "10.0.0.11:8080",
        "web-1",
        "default",
        "",
    )
    assert record.service == "web"
    assert (record.bytes_sent, record.bytes_recv, record.duration_ms) == (79, 4839, 2)
    assert record.error == ""


def test_the_metrics_are_istios(way, world):
    way.ask(VIP)
    way.tell(EventKind.OPENED, VIP)
    way.tell(EventKind.CLOSED, VIP, up=79, down=4839)
    labels = {
        "reporter": "source",
        "source_workload": "client",
        "source_canonical_service": "client-app",
        "source_canonical_revision": "v1",
        "source_workload_namespace": "default",
        "source_principal": PRINCIPAL,
        "source_app": "client-app",
        "source_version": "v1",
        "source_cluster": "Kubernetes",
        "destination_service": "web",
        "destination_service_namespace": "default",
        "destination_service_name": "web",
        "destination_workload": "unknown",
        "destination_canonical_service": "unknown",
        "destination_canonical_revision": "unknown",
        "destination_workload_namespace": "default",
        "destination_principal": "spiffe://cluster.local/ns/default/sa/web",
        "destination_app": "unknown",
        "destination_version": "unknown",
        "destination_cluster": "Kubernetes",
        "request_protocol": "tcp",
        "response_flags": "-",
        "connection_security_policy": "unknown",
    }
    for name, value in {
        "istio_tcp_connections_opened_total": 1,
        "istio_tcp_connections_closed_total": 1,
        "istio_tcp_received_bytes_total": 79,
        "istio_tcp_sent_bytes_total": 4839,
    }.items():
        assert world.samples(name) == [(labels, value)]
    assert b"_created" not in world.metrics.text()


def test_a_dial_that_fails(way, world):
    way.ask(VIP)
    way.tell(EventKind.FAILED, VIP, error=errno.ECONNREFUSED)
    (record,) = world.log.records
    assert (record.level, record.message) == ("error", "connection complete")
    assert record.error == "Connection refused (os error 111)"
    assert record.bytes_sent == 0
    ((labels, value),) = world.samples("istio_tcp_connections_closed_total")
    assert (labels["response_flags"], value) == ("CONNECT", 1)
    assert world.value("istio_tcp_connections_opened_total") == 1
    assert world.value("fastpath_denied_total") == 0


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


def test_a_connection_that_breaks(way, world):
    way.ask(VIP)
    way.tell(EventKind.OPENED, VIP)
    way.tell(EventKind.CLOSED, VIP, error=errno.ECONNRESET, up=1)
    (record,) = world.log.records
    assert (record.level, record.bytes_sent) == ("error", 1)
    assert record.error == "Connection reset by peer (os error 104)"


def test_the_echo_address(way, world):
    assert way.ask(("198.18.0.1", 7)) == Echo()
    way.tell(EventKind.OPENED, ("198.18.0.1", 7))
    way.tell(EventKind.CLOSED, ("198.18.0.1", 7), up=5, down=5)
    assert world.log.records[0].dst.addr == "198.18.0.1:7"


def test_an_answer_that_the_engine_had_cached_is_logged_too(world):
    there = ("192.0.2.1", 443)
    assert world.router.route(there, 1).cacheable
    way = Tsi(world)
    way.tell(EventKind.OPENED, there, conn=2)  # nobody asked for 2
    way.tell(EventKind.CLOSED, there, conn=2, up=1)
    way.tell(EventKind.FAILED, there, conn=3, error=errno.EHOSTUNREACH)
    assert [record.dst.addr for record in world.log.records] == ["192.0.2.1:443"] * 2
    assert world.value("istio_tcp_connections_opened_total") == 2


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


def test_nothing_is_kept_of_connections_that_are_gone(way, world):
    for _ in range(2):
        way.ask(VIP)
        way.tell(EventKind.OPENED, VIP)
        way.tell(EventKind.CLOSED, VIP)
        way.ask(DENIED)
        way.tell(EventKind.FAILED, DENIED, error=errno.ECONNREFUSED)
    assert not world.outbound.live
    assert not world.capture._captured


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


def test_an_ipv4_source_in_ipv6_form_is_known(world):
    way = Tproxy(world)
    mapped = ("::ffff:10.0.0.2", 40000)
    way.tell(EventKind.REQUEST, ("::ffff:10.96.0.1", 80), src=mapped)
    assert world.engine.answers == {1: Dial(("10.0.0.11", 8080))}


def test_an_error_in_one_connection_ends_that_connection_only(
    way, world, monkeypatch, caplog
):
    def broken(*args):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(world.outbound._routes, "decide", broken)
        assert way.ask(VIP) == Reset(errno.ECONNABORTED)
        way.tell(EventKind.FAILED, VIP, error=errno.ECONNABORTED)
        patch.setattr(world.log, "write", broken)
        way.ask(VIP)
        way.tell(EventKind.FAILED, VIP, error=errno.ECONNABORTED)
    assert "ZeroDivisionError" in caplog.text
    ((labels, value),) = world.samples("fastpath_denied_total")
    assert (labels["reason"], value) == ("internal", 2)
    assert way.ask(VIP) == Dial(("10.0.0.11", 8080))


def test_a_client_that_is_gone_before_its_request_is_forgotten(world):
    for kind in (EventKind.REQUEST, EventKind.FAILED):
        world.capture.handle_event(event(kind))
    assert world.engine.answers == {1: Reset(errno.ECONNABORTED)}
    assert not world.log.records


def test_the_end_of_a_connection_needs_no_addresses(world):
    way = Tproxy(world)
    way.ask(VIP)
    way.tell(EventKind.OPENED, VIP, src=None)
    way.tell(EventKind.CLOSED, VIP, src=None, dst=None)
    assert world.log.records[0].src.addr == "10.0.0.2:40000"


def device_stats(conns, opened):
    zero = dict.fromkeys(DeviceStats.__slots__, 0)
    return DeviceStats(**(zero | {"conns": conns, "opened": opened}))


def test_the_engines_counters_are_read_when_asked(world):
    collector = EngineCollector(
        engines=lambda: [
            EngineStats(
                conns=2, wakeups=3, spins=0, spin_hits=0, events_lost=0, refused=0
            )
        ],
        devices=lambda: {"box": device_stats(4, 5), "other": device_stats(6, 7)},
        dropped_lines=lambda: 8,
    )
    world.metrics.registry.register(collector)
    assert world.samples("fastpath_engine_conns") == [({"engine": "0"}, 2)]
    assert world.samples("fastpath_engine_wakeups_total") == [({"engine": "0"}, 3)]
    assert world.value("fastpath_access_log_dropped_total") == 8
    assert world.samples("fastpath_device_conns") == [
        ({"sandbox": "box"}, 4),
        ({"sandbox": "other"}, 6),
    ]
    assert world.value("fastpath_device_opened_total") == 12


def test_the_counters_of_udp_and_dns_are_read_when_asked(world):
    stats = DatagramStats(sent=4, flows=2)
    collector = DatagramCollector(lambda: {"box": stats}, lambda: DnsStats(local=3))
    world.metrics.registry.register(collector)
    stats.sent += 1
    assert world.samples("fastpath_datagram_sent_total") == [({"sandbox": "box"}, 5)]
    assert world.samples("fastpath_datagram_flows") == [({"sandbox": "box"}, 2)]
    assert world.value("fastpath_dns_local_total") == 3


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


def test_port_53_is_answered_here_whatever_the_address(world):
    way, destination = Tsi(world), ("169.254.169.254", 53)
    assert isinstance(way.ask(destination), Here)
    way.tell(EventKind.OPENED, destination)
    way.tell(EventKind.CLOSED, destination, up=30, down=60)
    (record,) = world.log.records
    assert (record.message, record.error) == ("connection complete", "")
    assert record.dst.addr == "169.254.169.254:53"


def test_a_new_policy_ends_no_query_over_tcp(world):
    way, destination = Tsi(world), ("10.9.9.9", 53)
    assert isinstance(way.ask(destination), Here)
    way.tell(EventKind.OPENED, destination)
    everything = [Rule.parse("0.0.0.0/0")]
    world.router.set_policy(SandboxPolicy(egress=EgressPolicy(deny=everything)))
    assert not world.engine.ended
    assert isinstance(way.ask(destination), Here)


def test_lines_about_denied_datagrams_are_bounded(world, monkeypatch):
    denial = Denial("udp_off", "UDP is switched off")

    async def work():
        for port in range(throttle.BURST + 5):
            world.router.datagram_denied(("192.0.2.1", port), denial)
        world.outbound.close()

    asyncio.run(work())
    assert throttle.BURST <= len(world.log.records) < throttle.BURST + 5
    ((_, count),) = world.samples("fastpath_denied_total")
    assert count == throttle.BURST + 5
