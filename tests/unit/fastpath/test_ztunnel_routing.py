"""Routing: VIPs, workloads, passthrough, and policy on both sides of a VIP."""

from __future__ import annotations

import collections
import dataclasses
import errno
import random
from ipaddress import ip_address

import pytest

from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import DenialErrno, Egress
from fastpath.ztunnel import config as configuration
from fastpath.ztunnel import routing
from fastpath.ztunnel.model import (
    Config,
    Fastpath,
    GatewayAddress,
    GatewayDestination,
    HealthStatus,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    Protocol,
    Sandbox,
    Service,
    Workload,
)
from fastpath.ztunnel.routing import Routes, format_address, unmap
from fastpath.ztunnel.workloads import LocalWorkloads
from vhost_user.engine import Chargen, Dial, Discard, Echo, Reset

VIP = "10.96.0.1"
WEB = NamespacedHostname("default", "web")


def workload(name, *ips, **fields):
    addresses = tuple(ip_address(ip) for ip in ips)
    return Workload(workload_ips=addresses, namespace="default", name=name, **fields)


def endpoint(name, ip, target_port=8080, **fields):
    return workload(name, ip, services={WEB: {80: target_port}}, **fields)


def web(ports=None, *vips):
    return Service(
        name="web",
        namespace="default",
        hostname="web",
        vips=tuple(NetworkAddress("", ip_address(vip)) for vip in vips or (VIP,)),
        ports=ports or {80: 8080},
    )


class World:
    """One sandbox, `client` at 10.0.0.2, among other workloads."""

    def __init__(self, tmp_path, workloads=(), services=(), egress=None, **routes):
        sandbox = Sandbox(
            name="client",
            workload="default/client",
            socket=tmp_path / "s",
            cid=3,
            egress=egress or Egress(),
        )
        own = Fastpath(sandboxes=(sandbox,), echo=ip_address("198.18.0.1"))
        client = workload("client", "10.0.0.2")
        config = Config(
            workloads=(client, *workloads), services=tuple(services), fastpath=own
        )
        configuration.check(config)
        self.clients = LocalWorkloads(config)
        self.client = self.clients.sandbox("client")
        self.routes = Routes(config, rng=random.Random(1), **routes)

    def decide(self, host, port):
        return self.routes.decide(self.client, (host, port))


@pytest.fixture
def world(tmp_path):
    def world(*workloads, **fields):
        return World(tmp_path, workloads, **fields)

    return world


def rules(*texts):
    return tuple(Rule.parse(text) for text in texts)


def test_an_unknown_ip_passes_through(world):
    decision = world().decide("192.0.2.1", 443)
    assert decision.target == Dial(("192.0.2.1", 443))
    assert decision.address == ("192.0.2.1", 443)
    assert decision.workload is None
    assert decision.cacheable


def test_what_hangs_on_the_hosts_addresses_is_decided_each_time(world):
    assert not world().decide("192.0.2.1", 15001).cacheable


def test_any_number_of_destinations_can_be_named(world, monkeypatch):
    monkeypatch.setattr(routing, "MAX_FIXED", 10)
    there = world()
    for port in range(1, 100):
        assert there.decide("192.0.2.1", port).target == Dial(("192.0.2.1", port))
    assert len(there.routes._fixed) <= 10


def test_a_workload_ip_is_dialled_and_named(world):
    server = workload("server", "10.0.0.9", "fd00::9")
    decision = world(server).decide("fd00::9", 8080)
    assert decision.target == Dial(("fd00::9", 8080))
    assert decision.workload is server
    assert decision.cacheable


@pytest.mark.parametrize(
    ("port", "target"), [(7, Echo()), (9, Discard()), (19, Chargen())]
)
def test_the_echo_address_is_answered_here(world, port, target):
    decision = world().decide("198.18.0.1", port)
    assert decision.target == target
    assert decision.cacheable


def test_the_echo_address_refuses_other_ports(world):
    decision = world().decide("198.18.0.1", 80)
    assert decision.target == Reset(errno.ECONNREFUSED)
    assert decision.refusal


def test_a_vip_is_balanced_by_capacity(world):
    light = endpoint("light", "10.0.0.11")
    heavy = endpoint("heavy", "10.0.0.12", capacity=3)
    empty = endpoint("empty", "10.0.0.13", capacity=0)
    there = world(light, heavy, empty, services=[web()])
    decisions = [there.decide(VIP, 80) for _ in range(4000)]
    counts = collections.Counter(decision.target for decision in decisions)
    assert set(counts) == {Dial(("10.0.0.11", 8080)), Dial(("10.0.0.12", 8080))}
    assert counts[Dial(("10.0.0.12", 8080))] == pytest.approx(3000, rel=0.05)
    assert not any(decision.cacheable for decision in decisions)
    assert {decision.service.hostname for decision in decisions} == {"web"}


@pytest.mark.parametrize(
    ("of_service", "of_workload", "dialled"),
    [
        pytest.param(8080, 9090, 9090, id="the-workload-knows-better"),
        pytest.param(8080, 0, 8080, id="the-workload-does-not-say"),
        pytest.param(0, 9090, 9090, id="the-service-does-not-say"),
    ],
)
def test_the_target_port(world, of_service, of_workload, dialled):
    there = world(
        endpoint("a", "10.0.0.11", of_workload), services=[web({80: of_service})]
    )
    assert there.decide(VIP, 80).target == Dial(("10.0.0.11", dialled))


@pytest.mark.parametrize(
    ("fields", "port"),
    [
        pytest.param({"status": HealthStatus.UNHEALTHY}, 80, id="unhealthy"),
        pytest.param({"capacity": 0}, 80, id="no-capacity"),
        pytest.param({}, 443, id="port-not-served"),
    ],
)
def test_a_service_without_endpoint_refuses(world, fields, port):
    there = world(endpoint("a", "10.0.0.11", **fields), services=[web()])
    decision = there.decide(VIP, port)
    assert decision.target == Reset(errno.ECONNREFUSED)
    assert decision.refusal.reason == "no_endpoint"
    assert "default/web" in decision.refusal.text
    assert decision.service.hostname == "web"
    assert not decision.cacheable


def test_an_endpoint_of_the_vips_family_is_dialled(world):
    dual = workload("a", "10.0.0.11", "fd00::11", services={WEB: {80: 80}})
    there = world(dual, services=[web(None, VIP, "fd96::1")])
    assert there.decide("fd96::1", 80).address == ("fd00::11", 80)
    assert there.decide(VIP, 80).address == ("10.0.0.11", 80)


def test_a_vip_of_another_network_is_not_ours(world):
    remote = dataclasses.replace(
        web(), vips=(NetworkAddress("remote", ip_address(VIP)),)
    )
    assert world(services=[remote]).decide(VIP, 80).target == Dial((VIP, 80))


WAYPOINT = GatewayAddress(
    destination=GatewayDestination.parse("/10.0.0.30"), hbone_mtls_port=15008
)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"protocol": Protocol.HBONE}, "hbone"),
        ({"waypoint": WAYPOINT}, "waypoint"),
    ],
)
@pytest.mark.parametrize(
    "host", [pytest.param("10.0.0.11", id="direct"), pytest.param(VIP, id="by-vip")]
)
def test_what_needs_hbone_is_never_plain_text(world, fields, reason, host):
    """A waypoint is the workload's or, by the VIP, the service's."""
    service = web()
    if reason == "waypoint" and host == VIP:
        fields, service = {}, dataclasses.replace(service, waypoint=WAYPOINT)
    server = endpoint("a", "10.0.0.11", **fields)
    there = world(server, workload("waypoint", "10.0.0.30"), services=[service])
    decision = there.decide(host, 80)
    assert decision.target == Reset(errno.ECONNREFUSED)
    assert decision.refusal.reason == reason
    assert "not supported" in decision.refusal.text


def test_a_workloads_waypoint_is_not_on_the_way_of_a_service(world):
    there = world(endpoint("a", "10.0.0.11", waypoint=WAYPOINT), services=[web()])
    assert there.decide(VIP, 80).target == Dial(("10.0.0.11", 8080))


def test_an_unknown_waypoint_is_unreachable(world):
    there = world(workload("a", "10.0.0.11", waypoint=WAYPOINT))
    decision = there.decide("10.0.0.11", 80)
    assert decision.target == Reset(errno.EHOSTUNREACH)
    assert decision.refusal.reason == "no_waypoint"


def test_a_name_that_has_to_be_looked_up_is_refused(world):
    server = workload("a", hostname="db.example", services={WEB: {80: 80}})
    decision = world(server, services=[web()]).decide(VIP, 80)
    assert decision.refusal.reason == "hostname"
    assert "db.example" in decision.refusal.text


def test_an_endpoint_on_another_network_is_refused(world):
    there = world(endpoint("a", "10.0.0.11", network="far"), services=[web()])
    assert there.decide(VIP, 80).refusal.reason == "network"


def test_our_own_listener_is_no_destination(world):
    there = world(listener=("10.1.0.1", 4000))
    assert there.decide("10.1.0.1", 4000).refusal.reason == "self_call"
    assert there.decide("10.1.0.1", 4001).refusal is None


@pytest.mark.parametrize(
    ("name", "number"),
    [(DenialErrno.ECONNREFUSED, errno.ECONNREFUSED), (DenialErrno.EACCES, 13)],
)
def test_policy_comes_before_the_vip(world, name, number):
    egress = Egress(deny=rules(f"{VIP}/32"), errno=name)
    there = world(endpoint("a", "10.0.0.11"), services=[web()], egress=egress)
    decision = there.decide(VIP, 80)
    assert decision.target == Reset(number)
    assert VIP in decision.refusal.text
    assert not decision.cacheable


def test_policy_comes_after_the_vip(world):
    egress = Egress(deny=rules("10.0.0.11/32"))
    there = world(endpoint("a", "10.0.0.11"), services=[web()], egress=egress)
    decision = there.decide(VIP, 80)
    assert decision.target == Reset(errno.ECONNREFUSED)
    assert "10.0.0.11:8080" in decision.refusal.text
    assert decision.workload.name == "a"


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "fe80::1", "::1"])
def test_a_service_does_not_lead_where_nobody_may_go(world, host):
    there = world(endpoint("a", host), services=[web(None, VIP, "fd96::1")])
    assert there.decide(VIP, 80).refusal
    assert there.decide(host, 80).refusal


def test_policy_covers_the_echo_address(world):
    there = world(egress=Egress(deny=rules("198.18.0.0/15")))
    assert there.decide("198.18.0.1", 7).refusal


def test_clients_are_known_by_sandbox_and_by_ip(world):
    other = workload("other", "10.0.0.3", service_account="other")
    hidden = workload("node", "10.0.0.4", network_mode=NetworkMode.HOST_NETWORK)
    clients = world(other, hidden).clients
    assert clients.at(ip_address("10.0.0.2")) is clients.sandbox("client")
    found = clients.at(ip_address("10.0.0.3"))
    assert found.name == ""
    assert str(found.identity) == "spiffe://cluster.local/ns/default/sa/other"
    assert clients.at(ip_address("10.0.0.4")) is None
    assert clients.at(ip_address("10.0.0.5")) is None


@pytest.mark.parametrize(
    ("address", "same", "text"),
    [
        (("::ffff:192.0.2.1", 80), ("192.0.2.1", 80), "192.0.2.1:80"),
        (("192.0.2.1", 80), ("192.0.2.1", 80), "192.0.2.1:80"),
        (("2001:DB8:0::1", 80), ("2001:db8::1", 80), "[2001:db8::1]:80"),
    ],
)
def test_an_address_has_one_form(address, same, text):
    assert unmap(address) == same
    assert format_address(same) == text
