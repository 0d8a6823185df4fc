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
from fastpath.ztunnel.istio import model as istio
from tests.unit.fastpath.config_errors import (
    ERRORS,
    OWN_ERRORS,
    POLICY,
    SANDBOX,
    SERVICE,
    TAGGED,
    TWO,
    WORKLOAD,
)
from vhost_user.decode import camel_case

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def load(tmp_path):
    """Load Istio's file `mesh.yaml`, and ours, `z.yaml`, which names it."""

    def load(mesh, own=""):
        path = tmp_path / "z.yaml"
        path.write_text(f"{own}mesh: {tmp_path / 'mesh.yaml'}\n")
        mesh = mesh if isinstance(mesh, bytes) else mesh.encode()
        (tmp_path / "mesh.yaml").write_bytes(mesh)
        return config.load(path)

    return load


def test_the_documented_example_is_understood_in_full(monkeypatch):
    monkeypatch.chdir(DOCS.parent)
    example = config.load(DOCS / "ztunnel.example.yaml")
    client, web, sick, meshed, *_ = example.workloads
    assert client.identity == Identity("cluster.local", "default", "client")
    assert client.workload_ips == (ip_address("10.0.0.2"), ip_address("fd00::2"))
    assert web.capacity == 3
    key = model.NamespacedHostname("default", "web.default.svc.cluster.local")
    assert web.services == {key: {80: 8080}}
    assert sick.status is model.HealthStatus.UNHEALTHY
    assert meshed.protocol is model.Protocol.HBONE
    policy, _ = example.policies
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
        istio.ApplicationTunnel,
        istio.Endpoint,
        istio.GatewayAddress,
        istio.LoadBalancer,
        istio.LocalFile,
        istio.Locality,
        istio.NetworkCidr,
        istio.Service,
        istio.WeightedWaypoint,
        istio.Workload,
        model.CertificateFiles,
        model.CertificateService,
        model.Certificates,
        model.Fastpath,
        model.Sandbox,
        model.Handoff,
        Egress,
        rbac.Authorization,
        rbac.Match,
        rbac.ServiceAccountMatch,
    ],
)
def test_every_key_is_in_the_example_and_in_the_page(schema):
    files = ("ztunnel.example.yaml", "mesh.example.yaml")
    example = "".join((DOCS / name).read_text() for name in files)
    page = (DOCS / "ztunnel-config.md").read_text()
    for field in dataclasses.fields(schema):
        key = camel_case(field.name)
        assert re.search(rf"\b{key}:", example), key
        assert re.search(rf"\b{key}\b", page), key


def check_error(caught, file, line, key, why):
    """The error is at a line, and a column, of the file."""
    where = (
        re.escape(f"{file}:{line}:") + r"\d+" + (re.escape(f": {key}") if key else "")
    )
    assert re.fullmatch(where, caught.value.what)
    assert why in caught.value.why


@pytest.mark.parametrize(
    ("text", "line", "key", "why"), ERRORS.values(), ids=ERRORS.keys()
)
def test_an_error_names_file_line_and_key(load, tmp_path, text, line, key, why):
    with pytest.raises(FastpathError) as caught:
        load(text)
    check_error(caught, tmp_path / "mesh.yaml", line, key, why)


@pytest.mark.parametrize(
    ("text", "line", "key", "why"), OWN_ERRORS.values(), ids=OWN_ERRORS.keys()
)
def test_an_error_in_our_file_names_it(load, tmp_path, text, line, key, why):
    with pytest.raises(FastpathError) as caught:
        load(WORKLOAD, text)
    check_error(caught, tmp_path / "z.yaml", line, key, why)


def test_a_sandbox_is_one_workload(load, tmp_path):
    with pytest.raises(FastpathError) as caught:
        load(TWO.replace("name: b", "name: a"), SANDBOX)
    why = "names several workloads"
    check_error(caught, tmp_path / "z.yaml", 3, "sandboxes[0].workload", why)


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        (
            WORKLOAD + "    nodes: x\n",
            "6:5",
            "did you mean node? use one of workloadIps",
        ),
        (
            WORKLOAD + "fastpath: {}\n",
            "6:1",
            "our own settings are a file of their own",
        ),
        (
            WORKLOAD.replace("    services: {}\n", ""),
            "2:5",
            "write services: {} for none",
        ),
        (POLICY, "2:5", "write rules: []"),
    ],
    ids=["unknown", "ours", "missing-mapping", "missing-list"],
)
def test_what_is_wrong_has_its_column_and_what_mends_it(
    load, tmp_path, text, place, hint
):
    with pytest.raises(FastpathError) as caught:
        load(text)
    assert caught.value.what.startswith(f"{tmp_path / 'mesh.yaml'}:{place}: ")
    assert f"{caught.value.hint}".startswith(hint)


def test_what_aliases_repeat_is_bounded(load, tmp_path):
    """Four lists of a hundred, each of the one before it: 10**8 values."""
    text = f"{{sourceIps: [{', '.join(['10.0.0.0/8'] * 100)}]}}"
    for name in "mcr":
        text = f"[&{name} {text}{f', *{name}' * 99}]"
    with pytest.raises(
        FastpathError, match="is repeated too often by aliases"
    ) as error:
        load(f"{POLICY}    rules: {text}\n")
    assert error.value.what.startswith(f"{tmp_path / 'mesh.yaml'}:7:")


def test_an_alias_stands_for_what_it_names(load):
    text = "workloads:\n"
    text += "  - {name: a, namespace: &ns default, workloadIps: [], services: &s {}}\n"
    text += "  - {name: b, namespace: *ns, workloadIps: [], services: *s}\n"
    assert [each.key for each in load(text).workloads] == ["default/a", "default/b"]


@pytest.mark.parametrize("behind", ["", " ~", " null"])
def test_a_word_may_be_a_tag(load, behind):
    text = TAGGED.replace("!Deny", f"!Deny{behind}")
    (policy,) = load(text).policies
    assert (policy.action, policy.scope) == (
        rbac.Action.DENY,
        rbac.Scope.WORKLOAD_SELECTOR,
    )


@pytest.mark.parametrize(
    ("word", "meant"), [("true", True), ("True", True), ("FALSE", False)]
)
def test_a_bool_is_one_of_yamls(load, word, meant):
    (policy,) = load(TAGGED.replace("false", word)).policies
    assert policy.dry_run is meant


def test_services_of_two_namespaces_may_share_a_vip(load):
    other = SERVICE.replace("services:\n", "").replace(
        "namespace: default", "namespace: b"
    )
    assert len(load(SERVICE + other).services) == 2


def test_ten_thousand_workloads_are_read(load):
    """Each with what it has in a cluster; PyYAML's own parser needs minutes."""
    text = "workloads:\n"
    for i in range(10_000):
        ip = f"10.1.{i // 256}.{i % 256}"
        text += f"- {{uid: cluster1//v1/Pod/ns/pod-{i}, name: pod-{i}, namespace: ns,"
        text += f" workloadIps: [{ip}], trustDomain: cluster.local, node: node,"
        text += " protocol: HBONE, canonicalName: pod, services: {}}\n"
    assert len(load(text).workloads) == 10_000


@pytest.mark.parametrize("key", ["name", "workload", "socket", "cid"])
def test_two_sandboxes_share_nothing(load, key):
    other = {"name": "b", "workload": "default/b", "socket": "/run/b", "cid": "4"}
    first = {"name": "a", "workload": "default/a", "socket": "/run/a.sock", "cid": "3"}
    other[key] = first[key]
    lines = [f"    {name}: {value}\n" for name, value in other.items()]
    text = f"{SANDBOX}  - {''.join(lines).lstrip()}"
    line = text[: text.rindex(f"{key}: {other[key]}")].count("\n") + 1
    with pytest.raises(FastpathError, match="is also at fastpath") as caught:
        load(TWO, text)
    where = rf".*:{line}:\d+: sandboxes\[1\]\.{key}"
    assert re.fullmatch(where, caught.value.what)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FastpathError, match=r"none\.yaml: No such file"):
        config.load(tmp_path / "none.yaml")


def test_the_same_ip_on_two_networks_is_two_addresses(load):
    text = WORKLOAD
    text += "  - {namespace: a, network: n, workloadIps: [10.0.0.1], services: {}}\n"
    assert len(load(text).workloads) == 2


def test_a_host_network_workload_has_no_ip_of_its_own(load):
    text = WORKLOAD + (
        "  - {namespace: a, networkMode: HostNetwork, workloadIps: [10.0.0.1],"
        " services: {}}\n"
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
