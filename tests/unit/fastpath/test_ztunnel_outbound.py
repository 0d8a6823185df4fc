"""One connection's life: the same log lines and counts however it arrived."""

from __future__ import annotations

import errno

from fastpath.tsi.datagram_limits import DatagramStats
from fastpath.tsi.router import Here
from fastpath.ztunnel.collectors import DatagramCollector, EngineCollector
from fastpath.ztunnel.dns import DnsStats
from tests.unit.fastpath.outbound_ways import (
    DENIED,
    PRINCIPAL,
    VIP,
    Tproxy,
    Tsi,
    event,
    way,
    world,
)
from vhost_user.engine import (
    DeviceStats,
    Dial,
    Echo,
    EngineStats,
    EventKind,
    Reset,
)

__all__ = ["way", "world"]


def test_a_connection_to_a_service(way, world):
    assert way.ask(VIP) == Dial(("10.0.0.11", 8080))
    way.tell(EventKind.OPENED, VIP)
    assert not world.log.records
    assert world.value("istio_tcp_connections_opened_total") == 1
    assert world.value("istio_tcp_connections_closed_total") == 0
    way.tell(EventKind.CLOSED, VIP, up=79, down=4839)
    (record,) = world.log.records
    assert (record.level, record.message) == ("info", "connection complete")
    assert record.src == (
        "10.0.0.2:40000",
        "client-1",
        "default",
        PRINCIPAL,
        "Kubernetes",
    )
    assert record.dst == (
        "10.0.0.11:8080",
        "web-1",
        "default",
        "",
        "Kubernetes",
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
        "source_region": "unknown",
        "source_zone": "unknown",
        "destination_region": "unknown",
        "destination_zone": "unknown",
    }
    for name, value in {
        "istio_tcp_connections_opened_total": 1,
        "istio_tcp_connections_closed_total": 1,
        "istio_tcp_received_bytes_total": 79,
        "istio_tcp_sent_bytes_total": 4839,
    }.items():
        assert world.samples(name) == [(labels, value)]
    assert b"_created" not in world.metrics.text()


def test_nothing_is_connected_to_once_the_process_is_to_end(way, world):
    world.outbound.drain()
    assert way.ask(VIP) == Reset(errno.ECONNREFUSED)
    way.tell(EventKind.FAILED, VIP, error=errno.ECONNREFUSED)
    (record,) = world.log.records
    assert record.error == "ztunnel is about to end"


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


def test_a_connection_that_breaks(way, world):
    way.ask(VIP)
    way.tell(EventKind.OPENED, VIP)
    way.tell(EventKind.CLOSED, VIP, error=errno.ECONNRESET, up=1)
    (record,) = world.log.records
    assert (record.level, record.bytes_sent) == ("error", 1)
    assert record.error == "Connection reset by peer (os error 104)"
    for name in ("closed", "failed"):
        ((labels, value),) = world.samples(f"istio_tcp_connections_{name}_total")
        assert (labels["response_flags"], value) == ("CONNECT", 1)
    assert world.value("istio_tcp_sockets_open") == 0


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


def test_nothing_is_kept_of_connections_that_are_gone(way, world):
    for _ in range(2):
        way.ask(VIP)
        way.tell(EventKind.OPENED, VIP)
        way.tell(EventKind.CLOSED, VIP)
        way.ask(DENIED)
        way.tell(EventKind.FAILED, DENIED, error=errno.ECONNREFUSED)
    assert not world.outbound.live
    assert not world.capture._captured


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
    world.metrics.register(collector)
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
    world.metrics.register(collector)
    stats.sent += 1
    assert world.samples("fastpath_datagram_sent_total") == [({"sandbox": "box"}, 5)]
    assert world.samples("fastpath_datagram_flows") == [({"sandbox": "box"}, 2)]
    assert world.value("fastpath_dns_local_total") == 3


def test_port_53_is_answered_here_whatever_the_address(world):
    way, destination = Tsi(world), ("169.254.169.254", 53)
    assert isinstance(way.ask(destination), Here)
    way.tell(EventKind.OPENED, destination)
    way.tell(EventKind.CLOSED, destination, up=30, down=60)
    (record,) = world.log.records
    assert (record.message, record.error) == ("connection complete", "")
    assert record.dst.addr == "169.254.169.254:53"
