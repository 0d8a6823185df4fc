"""Configuration: every error has its file, line and key."""

from __future__ import annotations

import dataclasses
import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fastpath.errors import FastpathError
from fastpath.identity import Identity
from fastpath.tsi.policyfile import DenialErrno, Egress
from fastpath.ztunnel import config, model, rbac
from vhost_user.decode import camel_case

DOCS = Path(__file__).parents[3] / "docs"

WORKLOAD = """\
workloads:
  - name: a
    namespace: default
    workloadIps: [10.0.0.1]
"""
SANDBOX = f"""{WORKLOAD}\
fastpath:
  sandboxes:
    - name: a
      workload: default/a
      socket: /run/a.sock
      cid: 3
"""
SERVICE = """\
services:
  - name: web
    namespace: default
    hostname: web
    vips: [/10.96.0.1]
    ports: {80: 8080}
"""
POLICY = """\
policies:
  - name: p
    namespace: default
    scope: WorkloadSelector
    action: Allow
"""


@pytest.fixture
def load(tmp_path):
    def load(text):
        path = tmp_path / "z.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return config.load(path)

    return load


def test_the_documented_example_is_understood_in_full():
    example = config.load(DOCS / "ztunnel.example.yaml")
    client, web, sick, meshed = example.workloads
    assert client.identity == Identity("cluster.local", "default", "client")
    assert client.workload_ips == (ip_address("10.0.0.2"), ip_address("fd00::2"))
    assert web.capacity == 3
    key = model.NamespacedHostname("default", "web.default.svc.cluster.local")
    assert web.services == {key: {80: 8080}}
    assert sick.status is model.HealthStatus.UNHEALTHY
    assert meshed.protocol is model.Protocol.HBONE
    (policy,) = example.policies
    first, second = policy.rules[0]
    exact = rbac.StringMatch(rbac.MatchKind.EXACT, "cluster.local/ns/default/sa/client")
    assert first[0].principals == (exact,)
    assert first[1].not_source_ips == (ip_network("10.9.0.0/16"),)
    assert second[0].destination_ports == (8080, 8443)
    assert example.fastpath.outbound
    assert str(example.fastpath.outbound.tproxy) == "0.0.0.0:15001"
    sandbox, other, third = example.fastpath.sandboxes
    assert other.policy == Path("/etc/fastpath/web-1.policy.yaml")
    assert other.netns == Path("/run/netns/web-1")
    assert other.handoff
    assert str(other.handoff.socks5) == "127.0.0.1:15080"
    assert other.handoff.inpod == Path("/run/fastpath/zds.sock")
    assert third.handoff == model.Handoff(unix=Path("/run/envoy/sandboxes.sock"))
    assert sandbox.egress
    assert sandbox.egress.errno is DenialErrno.ECONNREFUSED


@pytest.mark.parametrize(
    "schema",
    [
        model.Workload,
        model.Service,
        model.Fastpath,
        model.Sandbox,
        model.Handoff,
        Egress,
        rbac.Authorization,
    ],
)
def test_every_key_is_in_the_example_and_in_the_page(schema):
    example = (DOCS / "ztunnel.example.yaml").read_text()
    page = (DOCS / "ztunnel-config.md").read_text()
    for field in dataclasses.fields(schema):
        key = camel_case(field.name)
        assert re.search(rf"\b{key}:", example), key
        assert re.search(rf"\b{key}\b", page), key


ERRORS = {
    "empty-file": ("", 1, "", "the file is empty"),
    "not-yaml": ("workloads:\n  - [\n", 3, "", "expected the node content"),
    "not-utf8": (b"a: b\nc: \xff\n", 2, "", "invalid start byte"),
    "two-documents": ("{}\n---\n{}\n", 2, "", "but found another document"),
    "too-deep": ("workloads: " + "[" * 5000, 1, "", "nested too deeply"),
    "top-is-a-list": ("- a\n", 1, "", "must be a mapping, not a list"),
    "unknown-section": ("workload: []\n", 1, "workload", "unknown field"),
    "unknown-key": (
        WORKLOAD + "    nodes: x\n",
        5,
        "workloads[0].nodes",
        "unknown field",
    ),
    "snake-case-is-unknown": (
        WORKLOAD + "    trust_domain: x\n",
        5,
        "workloads[0].trust_domain",
        "unknown field",
    ),
    "key-twice": (WORKLOAD + "    name: b\n", 5, "workloads[0].name", "given twice"),
    "missing-key": (
        "workloads:\n  - name: a\n    namespace: b\n",
        2,
        "workloads[0].workloadIps",
        "is missing",
    ),
    "not-an-ip": (
        WORKLOAD.replace("10.0.0.1", "10.0.0"),
        4,
        "workloads[0].workloadIps[0]",
        "does not appear to be an IPv4 or IPv6 address",
    ),
    "ip-with-scope": (
        WORKLOAD.replace("10.0.0.1", "fe80::1%eth0"),
        4,
        "workloads[0].workloadIps[0]",
        "an IP without a scope",
    ),
    "ips-not-a-list": (
        WORKLOAD.replace("[10.0.0.1]", "10.0.0.1"),
        4,
        "workloads[0].workloadIps",
        "must be a list, not a single value",
    ),
    "string-is-a-number": (
        WORKLOAD.replace("name: a", "name: 12"),
        2,
        "workloads[0].name",
        'must be a string, not 12; write "12"',
    ),
    "string-is-null": (
        WORKLOAD.replace("name: a", "name:"),
        2,
        "workloads[0].name",
        "must be a string, not empty",
    ),
    "bad-namespace": (
        WORKLOAD.replace("namespace: default", "namespace: a/b"),
        3,
        "workloads[0].namespace",
        "must be a namespace name, not 'a/b'",
    ),
    "bad-trust-domain": (
        WORKLOAD + "    trustDomain: Cluster.local\n",
        5,
        "workloads[0].trustDomain",
        "must be a trust domain",
    ),
    "bad-enum": (
        WORKLOAD + "    protocol: hbone\n",
        5,
        "workloads[0].protocol",
        "must be one of TCP, HBONE, not hbone",
    ),
    "capacity-too-large": (
        WORKLOAD + "    capacity: 4294967296\n",
        5,
        "workloads[0].capacity",
        "must be a number from 0 to 4294967295",
    ),
    "capacity-negative": (
        WORKLOAD + "    capacity: -1\n",
        5,
        "workloads[0].capacity",
        "must be a number",
    ),
    "unknown-service": (
        WORKLOAD + "    services:\n      default/web: {80: 80}\n",
        6,
        'workloads[0].services["default/web"]',
        "names no service",
    ),
    "service-key-without-namespace": (
        WORKLOAD + "    services: {web: {80: 80}}\n",
        5,
        "workloads[0].services.web",
        "must be namespace/hostname",
    ),
    "service-port-zero": (
        SERVICE.replace("80: 8080", "0: 8080"),
        6,
        'services[0].ports["0"]',
        "must be a number from 1 to 65535, not 0",
    ),
    "vip-without-network": (
        SERVICE.replace("/10.96.0.1", "10.96.0.1"),
        5,
        "services[0].vips[0]",
        "must be network/IP or /IP",
    ),
    "bad-identity": (
        SERVICE + "    subjectAltNames: [spiffe://a/b]\n",
        7,
        "services[0].subjectAltNames[0]",
        "must be spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT",
    ),
    "unknown-policy": (
        WORKLOAD + "    authorizationPolicies: [default/p]\n",
        5,
        "workloads[0].authorizationPolicies[0]",
        "names no policy",
    ),
    "policy-of-another-scope": (
        WORKLOAD
        + "    authorizationPolicies: [default/p]\n"
        + POLICY.replace("WorkloadSelector", "Namespace"),
        5,
        "workloads[0].authorizationPolicies[0]",
        "names a policy of another scope",
    ),
    "policy-namespace-empty": (
        POLICY.replace("namespace: default", 'namespace: ""'),
        3,
        "policies[0].namespace",
        "scope WorkloadSelector needs one",
    ),
    "match-without-tag": (
        POLICY + "    rules:\n      - - - namespaces: [a]\n",
        7,
        "policies[0].rules[0][0][0].namespaces[0]",
        "must have one of the tags !Exact !Prefix !Suffix !Presence",
    ),
    "presence-with-value": (
        POLICY + "    rules:\n      - - - namespaces: [!Presence a]\n",
        7,
        "policies[0].rules[0][0][0].namespaces[0]",
        "!Presence takes no value",
    ),
    "bad-prefix": (
        POLICY + "    rules:\n      - - - sourceIps: [10.0.0.0/33]\n",
        7,
        "policies[0].rules[0][0][0].sourceIps[0]",
        "does not appear to be an IPv4 or IPv6 network",
    ),
    "dry-run-not-a-bool": (
        POLICY + "    dryRun: maybe\n",
        6,
        "policies[0].dryRun",
        "must be true or false, not maybe",
    ),
    "same-uid": (
        WORKLOAD
        + "    uid: u\n  - {namespace: default, uid: u, workloadIps: [10.0.0.2]}\n",
        6,
        "workloads[1].uid",
        "u is also at workloads[0].uid",
    ),
    "same-ip": (
        WORKLOAD + "  - namespace: default\n    workloadIps:\n      - 10.0.0.1\n",
        7,
        "workloads[1].workloadIps[0]",
        "/10.0.0.1 is also at workloads[0].workloadIps[0]",
    ),
    "same-vip": (
        SERVICE.replace("[/10.96.0.1]", "[/10.96.0.1, /10.96.0.1]"),
        5,
        "services[0].vips[1]",
        "/10.96.0.1 is also at services[0].vips[0]",
    ),
    "sandbox-of-nobody": (
        SANDBOX.replace("default/a", "default/b"),
        8,
        "fastpath.sandboxes[0].workload",
        "names no workload of this file: default/b",
    ),
    "sandbox-of-two": (
        SANDBOX.replace(
            "fastpath:",
            "  - {name: a, namespace: default, workloadIps: [10.0.0.9]}\nfastpath:",
        ),
        9,
        "fastpath.sandboxes[0].workload",
        "names several workloads",
    ),
    "cid-of-the-host": (
        SANDBOX.replace("cid: 3", "cid: 2"),
        10,
        "fastpath.sandboxes[0].cid",
        "must be a number from 3 to 4294967294, not 2",
    ),
    "socket-path-too-long": (
        SANDBOX.replace("/run/a.sock", f"/run/{'a' * 103}"),
        9,
        "fastpath.sandboxes[0].socket",
        "longer than the 107 bytes",
    ),
    "egress-rule-without-effect": (
        SANDBOX + "      egress: {allow: [10.1.0.0/16], deny: [10.0.0.0/8]}\n",
        11,
        "fastpath.sandboxes[0].egress.allow[0]",
        "can never match: deny[0], 10.0.0.0/8, denies what it allows",
    ),
    "bad-egress-rule": (
        SANDBOX + "      egress: {allow: [10.0.0.0/8, nowhere]}\n",
        11,
        "fastpath.sandboxes[0].egress.allow[1]",
        "nowhere",
    ),
    "bad-errno": (
        SANDBOX + "      egress: {errno: EPERM}\n",
        11,
        "fastpath.sandboxes[0].egress.errno",
        "must be one of ECONNREFUSED, EACCES, not EPERM",
    ),
    "listen-address-without-port": (
        "fastpath: {outbound: {tproxy: 0.0.0.0}}\n",
        1,
        "fastpath.outbound.tproxy",
        "must be IP:PORT or [IPv6]:PORT",
    ),
    "listen-address-ipv6-bare": (
        "fastpath: {metrics: '::1:80'}\n",
        1,
        "fastpath.metrics",
        "must be IP:PORT or [IPv6]:PORT",
    ),
    "echo-is-a-workload": (
        WORKLOAD + "fastpath: {echo: 10.0.0.1}\n",
        5,
        "fastpath.echo",
        "10.0.0.1 belongs to a service or a workload",
    ),
}


@pytest.mark.parametrize(
    ("text", "line", "key", "why"), ERRORS.values(), ids=ERRORS.keys()
)
def test_an_error_names_file_line_and_key(load, tmp_path, text, line, key, why):
    with pytest.raises(FastpathError) as caught:
        load(text)
    where = f"{tmp_path / 'z.yaml'}:{line}" + (f": {key}" if key else "")
    assert caught.value.what == where
    assert why in caught.value.why


@pytest.mark.parametrize("key", ["name", "workload", "socket", "cid"])
def test_two_sandboxes_share_nothing(load, key):
    other = {"name": "b", "workload": "default/b", "socket": "/run/b", "cid": "4"}
    first = {"name": "a", "workload": "default/a", "socket": "/run/a.sock", "cid": "3"}
    other[key] = first[key]
    lines = [f"      {name}: {value}\n" for name, value in other.items()]
    text = SANDBOX.replace(
        "fastpath:",
        "  - {name: b, namespace: default, workloadIps: [10.0.0.2]}\nfastpath:",
    )
    text += "    - " + "".join(lines).lstrip()
    line = text[: text.rindex(f"{key}: {other[key]}")].count("\n") + 1
    with pytest.raises(FastpathError, match="is also at fastpath") as caught:
        load(text)
    assert caught.value.what.endswith(f":{line}: fastpath.sandboxes[1].{key}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FastpathError, match=r"none\.yaml: No such file"):
        config.load(tmp_path / "none.yaml")


def test_the_same_ip_on_two_networks_is_two_addresses(load):
    text = WORKLOAD + "  - {namespace: a, network: n, workloadIps: [10.0.0.1]}\n"
    assert len(load(text).workloads) == 2


def test_a_host_network_workload_has_no_ip_of_its_own(load):
    text = WORKLOAD + (
        "  - {namespace: a, networkMode: HostNetwork, workloadIps: [10.0.0.1]}\n"
    )
    loaded = load(text)
    assert loaded.addresses_here(loaded.workloads[1]) == ()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("0.0.0.0:0", "0.0.0.0", 0), ("[::1]:15001", "::1", 15001)],
)
def test_a_listen_address_reads_back(text, host, port):
    address = model.ListenAddress.parse(text)
    assert (str(address.host), address.port) == (host, port)
    assert str(address) == text


def test_a_configuration_built_in_code_is_checked_too(tmp_path):
    built = config.for_sandbox(
        socket=tmp_path / "s", cid=3, addresses=(ip_address("10.0.0.2"),)
    )
    config.check(built)
    (workload,) = built.workloads
    assert str(workload.identity) == "spiffe://cluster.local/ns/default/sa/default"
    nobody = dataclasses.replace(built, workloads=())
    with pytest.raises(
        FastpathError, match=r"configuration: fastpath.sandboxes\[0\].workload: "
    ):
        config.check(nobody)
