"""Where connections go: Istio's decisions, as data, from the same file."""

from __future__ import annotations

import collections
import errno
import random
from ipaddress import ip_address

import pytest

from fastpath.identity import Identity
from fastpath.ztunnel.istio import file, headers
from fastpath.ztunnel.istio.outbound import (
    Lookup,
    Route,
    RouteRefusal,
    Transport,
    outbound,
    parse_destination,
    pool_key,
)
from fastpath.ztunnel.istio.services import Balancer
from fastpath.ztunnel.istio.state import MeshState
from fastpath.ztunnel.model import ListenAddress
from fastpath.ztunnel.routing import format_address
from tests.support.mesh_cases import ISTIOS, MESH, OUTBOUND

HEAD = "namespace: default, trustDomain: cluster.local, services: {}"


class World:
    """A mesh, and its workload `client` who asks."""

    def __init__(self, text, network=""):
        loaded, _ = file.parse(text.encode(), "mesh.yaml")
        assert not list(file.problems(loaded))
        self.state = MeshState(loaded, network)
        self.balancer = Balancer(self.state, random.Random(1))
        self.workloads = {each.name: each for each in loaded.workloads}

    def decide(self, to, source="client", **more):
        address = ListenAddress.parse(to)
        return outbound(
            self.state,
            self.balancer,
            self.workloads[source],
            (address.host, address.port),
            **more,
        )


@pytest.fixture(scope="module")
def world():
    return World(MESH)


@pytest.mark.parametrize("case", OUTBOUND.values(), ids=OUTBOUND.keys())
def test_a_connection_goes_where_istios_would(world, case):
    found = world.decide(case.to)
    if case.refused:
        assert isinstance(found, RouteRefusal)
        assert found.reason == case.refused
        assert found.reason in ISTIOS
        return
    assert isinstance(found, Route)
    assert format_address(found.address) == case.addr
    assert found.authority == case.hbone
    assert (found.service.hostname if found.service else "") == case.service
    assert (found.workload.name if found.workload else "") == case.workload
    assert (found.transport is Transport.TCP) is not bool(case.hbone)


def names(identities):
    return [str(each).removeprefix("spiffe://cluster.local/") for each in identities]


def test_who_the_far_end_may_be(world):
    assert names(world.decide("10.0.0.12:81").sans) == ["ns/default/sa/meshed"]
    by_service = world.decide("10.96.0.12:80")
    assert names(by_service.sans) == ["spiffe://a/ns/b/sa/c", "ns/default/sa/meshed"]
    assert names(world.decide("10.96.0.16:80").sans) == ["ns/default/sa/waypoint"]
    assert world.decide("10.96.0.16:80").waypoint
    double = world.decide("10.96.0.22:80")
    assert double.transport is Transport.DOUBLE_HBONE
    assert names(double.sans) == ["ns/default/sa/gateway"]
    assert double.final_sans == ()


def test_a_tunnel_is_shared_by_source_identity_names_ip_and_address(world):
    client = world.workloads["client"]
    ip = ip_address("10.0.0.2")
    key = pool_key(world.decide("10.0.0.12:81"), client, ip)
    assert key == pool_key(world.decide("10.0.0.12:82"), client, ip)
    assert key.source == Identity("cluster.local", "default", "client")
    assert key.address == ("10.0.0.12", 15008)
    others = [
        pool_key(world.decide("10.96.0.12:80"), client, ip),
        pool_key(world.decide("10.0.0.12:81"), client, ip_address("10.0.0.3")),
        pool_key(world.decide("10.0.0.12:81"), world.workloads["plain"], ip),
    ]
    assert key not in others


def test_a_waypoint_is_not_sent_to_itself(world):
    """By its identity and its IP, both."""
    to = "10.0.0.14:81"
    assert world.decide(to, "waypoint").workload.name == "guarded"
    elsewhere = world.decide(to, "waypoint", source_ip=ip_address("10.0.0.2"))
    assert elsewhere.workload.name == "waypoint"


def test_endpoints_are_chosen_by_capacity():
    text = f"workloads:\n- {{name: client, workloadIps: [10.0.0.2], {HEAD}}}\n"
    for name, ip, capacity in (("a", 11, 1), ("b", 12, 3), ("c", 13, 0)):
        text += f"- {{name: {name}, workloadIps: [10.0.0.{ip}], capacity: {capacity},"
        text += " namespace: default, services: {default/web: {80: 80}}}\n"
    text += "services: [{name: web, hostname: web, namespace: default,"
    text += " vips: [/10.96.0.1], ports: {80: 80}}]"
    there = World(text)
    found = [there.decide("10.96.0.1:80").workload.name for _ in range(4000)]
    counts = collections.Counter(found)
    assert set(counts) == {"a", "b"}
    assert counts["b"] == pytest.approx(3000, rel=0.05)


NAMED = """
workloads:
- {name: client, workloadIps: [10.0.0.2], namespace: default, services: {}}
- {name: out, workloadIps: [], hostname: db.example, protocol: HBONE,
   namespace: default, services: {default/db: {80: 8080}}}
- {name: bare, workloadIps: [], namespace: default,
   services: {default/bare: {80: 8080}}}
services:
- {name: db, hostname: db, namespace: default, vips: [/10.96.0.1], ports: {80: 0}}
- {name: bare, hostname: bare, namespace: default, vips: [/10.96.0.2], ports: {80: 0}}
"""


def test_a_workload_with_a_host_name_is_looked_up_first():
    there = World(NAMED)
    assert there.decide("10.96.0.1:80") == Lookup("db.example", 4)
    known = there.decide("10.96.0.1:80", names={"db.example": ip_address("192.0.2.9")})
    assert known.address == ("192.0.2.9", 15008)
    assert known.authority == "192.0.2.9:8080"


def test_a_workload_without_any_address_is_never_chosen():
    assert World(NAMED).decide("10.96.0.2:80").reason == "no_endpoint"


def test_what_is_nowhere_is_unreachable(world):
    assert world.decide("10.96.0.23:80").errno == errno.EHOSTUNREACH
    assert world.decide("10.0.0.15:80").errno == errno.EHOSTUNREACH
    assert world.decide("10.96.0.32:80").errno == errno.ECONNREFUSED


def test_the_network_of_the_proxy_is_that_of_vips():
    there = World(MESH, network="far")
    found = there.decide("10.96.0.33:80")
    assert isinstance(found, RouteRefusal)  # a service, of which `client` sees nothing


@pytest.mark.parametrize("host", ["192.0.2.1", "::ffff:192.0.2.1"])
def test_an_ipv4_address_in_ipv6_form_is_one(host):
    assert parse_destination((host, 80)) == (ip_address("192.0.2.1"), 80)


def test_the_headers_tell_of_the_source_and_the_service(world):
    client = world.workloads["client"]
    assert headers.baggage(client) == (
        "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,"
        "cloud.region=eu,cloud.availability_zone=eu-1"
    )
    service = world.decide("10.96.0.12:80").service
    assert headers.forwarded(("10.0.0.2", 1), None) == 'for="10.0.0.2:1"'
    text = headers.forwarded(("fd00::2", 1), service)
    assert text == 'for="[fd00::2]:1";host=web.default'
    assert headers.forwarded_host(text) == "web.default"


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("by=a;for=b;host=example.com;proto=https", "example.com"),
        ('by=a; host="example.com"', "example.com"),
        ("by=a;for=b", ""),
        ("by=a;host=;for=b", ""),
        ('for=for;host=host;proto="pröto"', ""),
    ],
)
def test_the_host_of_forwarded(header, host):
    assert headers.forwarded_host(header) == host


def test_ten_thousand_workloads_cost_a_decision_what_ten_do(monkeypatch):
    """By the work that is done, not by the clock: look-ups, and one random number."""
    text = f"workloads:\n- {{name: client, workloadIps: [10.0.0.2], {HEAD}}}\n"
    for i in range(10_000):
        text += f"- {{name: p{i}, workloadIps: [10.1.{i // 256}.{i % 256}], namespace:"
        text += " default, services: {default/web: {80: 80}}}\n"
    text += "services: [{name: web, hostname: web, namespace: default,"
    text += " vips: [/10.96.0.1], ports: {80: 80}}]"
    there = World(text)
    there.decide("10.96.0.1:80")
    calls: list[object] = []
    monkeypatch.setattr(there.state, "members_of", calls.append)
    for _ in range(1000):
        assert isinstance(there.decide("10.96.0.1:80"), Route)
    assert calls == []
