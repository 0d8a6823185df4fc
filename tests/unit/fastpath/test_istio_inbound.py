"""What a connection to a workload is answered: Istio's decisions, from its file."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from fastpath.identity import Identity
from fastpath.ztunnel.istio import file
from fastpath.ztunnel.istio.inbound import (
    Accepted,
    Authority,
    Rejected,
    Request,
    Tunnel,
    guess,
    inbound,
)
from fastpath.ztunnel.istio.state import MeshState

CLIENT = Identity("cluster.local", "default", "client")
STRANGER = Identity("cluster.local", "other", "client")
MESH = """
workloads:
- {uid: web, name: web, namespace: default, workloadIps: [10.0.0.11, "fd00::11"],
   waypoint: {destination: default/waypoint, hboneMtlsPort: 15008},
   services: {default/web: {80: 8080}, default/named: {80: 9090}}}
- {uid: tunnel, name: tunnel, namespace: default, workloadIps: [10.0.0.12],
   applicationTunnel: {protocol: PROXY, port: 15088}, services: {default/web: {80: 0}}}
- {uid: passing, name: passing, namespace: default, workloadIps: [10.0.0.13],
   applicationTunnel: {protocol: PROXY}, services: {}}
- {uid: plain, name: plain, namespace: default, workloadIps: [10.0.0.14],
   applicationTunnel: {protocol: NONE}, services: {}}
- {uid: way, name: waypoint, namespace: default, workloadIps: [10.0.0.30],
   services: {default/waypoint: {15008: 15008}}}
- {uid: guarded, name: guarded, namespace: guarded, workloadIps: [10.0.0.40],
   services: {}}
services:
- {name: web, namespace: default, hostname: web, vips: [far/10.96.0.9, "/fd96::10",
   /10.96.0.10], ports: {80: 80, 81: 0}}
- {name: named, namespace: default, hostname: named, vips: [], ports: {80: 0}}
- {name: waypoint, namespace: default, hostname: waypoint, vips: [],
   ports: {15008: 15008}}
- {name: behind, namespace: default, hostname: behind, vips: [/10.96.0.20],
   ports: {80: 80}, waypoint: {destination: /10.0.0.30, hboneMtlsPort: 15008}}
policies:
- {name: only-default, namespace: guarded, scope: Namespace, action: Allow,
   dryRun: false, rules: [[[{namespaces: [!Exact default], destinationPorts: [80]}]]]}
- {name: watched, namespace: guarded, scope: Namespace, action: Deny, dryRun: true,
   rules: [[]]}
"""
MISMATCH = "ip mismatch: 10.0.0.11 != 10.0.0.99"


@pytest.fixture(scope="module")
def state():
    loaded, _ = file.parse(MESH.encode(), "mesh.yaml")
    assert not list(file.problems(loaded))
    return MeshState(loaded)


def ask(state, name, authority, identity=CLIENT, host="", reached=None):
    workload = next(it for it in state.file.workloads if it.name == name)
    request = Request(
        authority=authority,
        source=ip_address("10.0.0.2"),
        reached=ip_address(reached) if reached else workload.workload_ips[0],
        identity=identity,
        forwarded_host=host,
    )
    return inbound(state, workload, request)


ANSWERS = {
    # workload, authority, status or where it goes, text or service
    "ip": ("web", "10.0.0.11:8080", "10.0.0.11:8080", "web"),
    "ip-other-port": ("web", "10.0.0.11:7070", "10.0.0.11:7070", ""),
    "named-port": ("web", "10.0.0.11:9090", "10.0.0.11:9090", "named"),
    "ipv6-mismatch": ("web", "[fd00::11]:80", 400, "10.0.0.11 != fd00::11"),
    "another-ip": ("web", "10.0.0.99:80", 400, MISMATCH),
    "hostname": ("web", "web:80", "10.0.0.11:8080", "web"),
    "hostname-named-port": ("web", "named:80", "10.0.0.11:9090", "named"),
    "hostname-unknown": ("web", "nobody:80", 503, "no service or workload for"),
    "hostname-port-unknown": ("web", "web:99", 503, "no port for hostname"),
    "no-port": ("web", "10.0.0.11", 400, "must be a number"),
    "no-host": ("web", ":80", 400, "no valid authority"),
    "empty": ("web", "", 400, "must be a number"),
    "port-0": ("web", "10.0.0.11:0", 400, "must be a number"),
    "port-too-large": ("web", "10.0.0.11:65536", 400, "must be a number"),
    "path": ("web", "a/b:80", 400, "no valid authority"),
    "user": ("web", "a@10.0.0.11:80", 400, "no valid authority"),
    "bare-ipv6": ("web", "fd00::11:80", 400, "no valid authority"),
    "ourselves": ("web", "10.0.0.11:15008", 503, "attempted recursive call"),
    "plain-text-port": ("web", "10.0.0.11:15006", 503, "attempted recursive call"),
    "metrics": ("web", "10.0.0.11:15020", "10.0.0.11:15020", ""),
    "tunnel": ("tunnel", "10.0.0.99:80", "lo:15088", ""),
    "tunnel-by-name": ("tunnel", "web:80", "lo:15088", ""),
    "tunnel-without-port": ("passing", "10.0.0.99:80", "lo:80", ""),
    "tunnel-of-nothing": ("plain", "10.0.0.99:80", "10.0.0.14:80", ""),
    "waypoint-of-a-service": ("waypoint", "10.96.0.20:80", "10.0.0.30:80", ""),
    "waypoint-of-a-workload": ("waypoint", "10.0.0.11:80", "10.0.0.30:80", ""),
    "waypoint-of-another": ("waypoint", "10.0.0.40:80", 400, "ip mismatch"),
    "allowed": ("guarded", "10.0.0.40:80", "10.0.0.40:80", ""),
    "denied": ("guarded", "10.0.0.40:81", 401, "allow policies exist, but none"),
}


@pytest.mark.parametrize(
    ("name", "authority", "expected", "more"), ANSWERS.values(), ids=ANSWERS.keys()
)
def test_a_connect_is_answered(state, name, authority, expected, more):
    found = ask(state, name, authority)
    if isinstance(expected, int):
        assert isinstance(found, Rejected)
        assert found.status == expected
        assert more in found.text
        return
    assert isinstance(found, Accepted)
    assert f"{'lo' if found.local else found.ip}:{found.port}" == expected
    assert (found.service.hostname if found.service else "") == more


def test_who_asks_decides(state):
    assert ask(state, "guarded", "10.0.0.40:80", STRANGER).status == 401


def test_policies_see_the_port_in_the_workload(state):
    found = ask(state, "tunnel", "10.0.0.99:80")
    assert (found.connection.port, found.connection.identity) == (15088, CLIENT)


@pytest.mark.parametrize(
    ("name", "authority", "ip", "port"),
    [
        pytest.param("tunnel", "10.0.0.99:80", "10.0.0.99", 80, id="as-asked"),
        pytest.param("tunnel", "web:80", "10.96.0.10", 80, id="a-vip-of-ours-ipv4"),
    ],
)
def test_a_tunnel_is_told_what_was_asked_for(state, name, authority, ip, port):
    tunnel = ask(state, name, authority).tunnel
    assert tunnel == Tunnel(destination=(ip_address(ip), port), identity=CLIENT)


def test_no_header_precedes_the_bytes_elsewhere(state):
    assert ask(state, "plain", "10.0.0.14:80").tunnel is None
    assert ask(state, "web", "10.0.0.11:80").tunnel is None


def test_a_name_without_vips_can_not_be_told_to_a_tunnel(state):
    found = ask(state, "tunnel", "waypoint:15008")
    assert found.status == 503  # a port of ours
    loaded = MESH.replace(
        "ports: {15008: 15008}}\n- {name: behind", "ports: {80: 80}}\n- {name: behind"
    )
    other = MeshState(file.parse(loaded.encode(), "mesh.yaml")[0])
    assert "no IP addresses" in ask(other, "tunnel", "waypoint:80").text


def test_the_service_is_the_one_that_the_peer_names(state):
    assert ask(state, "web", "10.0.0.11:8080", host="named").service.name == "named"
    assert ask(state, "web", "10.0.0.11:8080", host="nobody").service.name == "web"


@pytest.mark.parametrize(
    ("name", "port", "service"),
    [("web", 8080, "web"), ("web", 9090, "named"), ("web", 1, ""), ("passing", 80, "")],
)
def test_the_service_of_plain_text_is_guessed(state, name, port, service):
    workload = next(it for it in state.file.workloads if it.name == name)
    found = guess(state, workload, port)
    assert (found.name if found else "") == service


def test_a_dry_run_is_told(state):
    notes = ask(state, "guarded", "10.0.0.40:80").verdict.dry_run
    assert notes == ("dry-run: deny policy match: guarded/watched",)


@pytest.mark.parametrize("text", ["[fd00::1]:80", "10.0.0.1:80", "web.default:80"])
def test_an_authority_reads_back(text):
    authority = Authority.parse(text)
    host = str(authority.host)
    assert (f"[{host}]" if ":" in host else host) + f":{authority.port}" == text
