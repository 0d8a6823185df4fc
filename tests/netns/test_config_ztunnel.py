"""Istio's own ztunnel decides from the same file as we do: `--ztunnel BIN`.

It runs in dedicated mode, for `client` of the file, in a namespace where nothing can be
reached. Its SOCKS5 listener takes destinations; its access log says what it made of
them. tests/unit/fastpath/test_istio_outbound.py holds ours to the same table.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from fastpath.datapath.netns import Namespace
from fastpath.ztunnel import configdump
from fastpath.ztunnel.access_log import Record, format_json, format_line, party
from fastpath.ztunnel.istio import file as istio
from fastpath.ztunnel.istio.state import MeshState
from fastpath.ztunnel.metrics import Metrics
from fastpath.ztunnel.model import (
    Config,
    Fastpath,
    ListenAddress,
    LogFormat,
    Sandbox,
)
from fastpath.ztunnel.routing import Routes
from fastpath.ztunnel.workloads import LocalWorkloads
from tests.support.limits import LIMIT_S, wait_until
from tests.support.mesh_cases import CLIENT, ISTIOS, MESH, OUTBOUND
from tests.unit.fastpath.config_errors import ERRORS, TAGGED

pytestmark = [pytest.mark.netns, pytest.mark.ztunnel]

DOCS = Path(__file__).parents[2] / "docs"
SOCKS = ("127.0.0.1", 15080)


class Ztunnel:
    """It, and its log."""

    def __init__(self, binary, folder, namespace, mesh, more):
        self._namespace = namespace
        (folder / "mesh.yaml").write_text(mesh)
        make_root = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes"]
        make_root += ["-subj", "/O=t", "-pkeyopt", "ec_paramgen_curve:P-256"]
        make_root += ["-keyout", "key", "-out", "ca"]
        subprocess.run(make_root, check=True, capture_output=True, cwd=folder)
        settings = {
            "PATH": os.environ["PATH"],
            "XDS_ADDRESS": "",
            "LOCAL_XDS_PATH": f"{folder}/mesh.yaml",
            "PROXY_MODE": "dedicated",
            "PROXY_WORKLOAD_INFO": CLIENT,
            "NODE_NAME": "local",
            "UNSTABLE_ENABLE_SOCKS5": "true",
            "ZTUNNEL_WORKER_THREADS": "1",
            "CA_ADDRESS": "https://127.0.0.1:1",  # nobody's: no tunnel gets far
            "CA_ROOT_CA": f"{folder}/ca",
        } | more
        self.log = folder / "ztunnel.log"
        argv = namespace.command([str(binary.resolve()), "proxy", "ztunnel"])
        with self.log.open("w") as out:
            self.process = subprocess.Popen(argv, env=settings, stdout=out, stderr=out)

    def inside(self, call):
        """Call it in the namespace."""
        return self._namespace.run(call)

    def says(self, words):
        """Wait for words in its log."""
        wait_until(lambda: words in self.log.read_text(), what=words)

    def decides(self, to):
        """Ask for a destination; return the access log's line about it."""
        address = ListenAddress.parse(to)
        kind = 4 if address.host.version == 6 else 1
        request = struct.pack("!BBBB", 5, 1, 0, kind)
        request += address.host.packed + struct.pack("!H", address.port)
        with self._namespace.socket() as sock:
            sock.settimeout(LIMIT_S)
            wait_until(lambda: not sock.connect_ex(SOCKS))  # its log runs ahead
            source = rf'src\.addr"?[=:]"?127\.0\.0\.1:{sock.getsockname()[1]}\b'
            sock.sendall(b"\5\1\0" + request)
            return wait_until(lambda: self._line(source), what=to)

    def _line(self, source):
        lines = self.log.read_text().splitlines()
        found = (it for it in lines if "access" in it and re.search(source, it))
        return next(found, None)


@contextlib.contextmanager
def running(request, folder, mesh, **more):
    binary = request.config.getoption("--ztunnel")
    with contextlib.ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        script = "ip link set lo up; ip route add prohibit 0.0.0.0/1"
        subprocess.run(namespace.command(["sh", "-ec", script]), check=True)
        there = Ztunnel(binary, folder, namespace, mesh, more)
        stack.callback(there.process.wait, LIMIT_S)
        stack.callback(there.process.kill)
        yield there


@pytest.fixture(scope="module")
def ztunnel(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ztunnel")
    with running(request, folder, MESH) as there:
        there.says("socks5")
        yield there


def field(line, name):
    """A field's value; empty: it is not there."""
    found = re.search(rf'{re.escape(name)}="?([^" ]*)', line)
    return found[1] if found else ""


@pytest.mark.parametrize("case", OUTBOUND.values(), ids=OUTBOUND.keys())
def test_it_decides_by_the_same_file_what_we_do(ztunnel, case):
    line = ztunnel.decides(case.to)
    if case.refused:
        assert "connection failed" in line
        assert ISTIOS[case.refused] in line
        return
    assert field(line, "dst.addr") == case.addr
    assert field(line, "dst.hbone_addr") == case.hbone
    assert field(line, "dst.service") == case.service
    assert field(line, "dst.workload") == case.workload


def test_it_reads_the_file_with_every_key(request, tmp_path):
    text = (DOCS / "mesh.example.yaml").read_text()
    with running(request, tmp_path, text) as there:
        there.says("local config initialized\tnum_workloads=7 num_policies=2")


def test_it_takes_words_as_tags_as_we_do(request, tmp_path):
    with running(request, tmp_path, TAGGED) as there:
        there.says("local config initialized\tnum_workloads=0 num_policies=1")


WRONG = ["policy-rules-missing", "policy-dry-run-missing", "workload-services-missing"]
WRONG += [
    "our-settings",
    "unknown-key",
    "snake-case-is-unknown",
    "unknown-in-a-waypoint",
]
WRONG += ["bool-in-quotes", "word-and-tag", "tag-in-lower-case"]
WRONG += ["presence-of-null", "prefix-without-length", "match-without-tag"]
WRONG += ["endpoint-without-status", "vip-without-network", "bad-enum", "key-twice"]


@pytest.mark.parametrize("name", WRONG)
def test_it_refuses_what_we_refuse(request, tmp_path, name):
    with running(request, tmp_path, ERRORS[name][0]) as there:
        assert there.process.wait(LIMIT_S) != 0


def get(there, port, path):
    """A page of it."""

    def ask():
        connection = http.client.HTTPConnection("localhost", port)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read().decode()

    return there.inside(ask)


def families(found):
    """By the name of a family that is Istio's: its help, type and samples."""
    return {
        family.name: (family.documentation.rstrip("."), family.type, family.samples)
        for family in found
        if family.name.startswith("istio_")
    }


def test_our_metrics_have_its_names_and_labels(ztunnel):
    """For one connection in plain text that can't be made."""
    case = OUTBOUND["failover-best"]
    ztunnel.decides(case.to)
    page = get(ztunnel, 15020, "/metrics")
    theirs = families(openmetrics.text_string_to_metric_families(page))
    ours = families(text_string_to_metric_families(our_metrics(case.to)))
    for name in ("istio_crl_policy_rejections", "istio_on_demand_dns"):
        del ours[name]  # of these, there are no numbers
    shared = {
        "istio_build",
        "istio_tcp_connections_opened",
        "istio_tcp_connections_closed",
        "istio_tcp_connections_failed",
        "istio_tcp_received_bytes",
        "istio_tcp_sent_bytes",
        "istio_tcp_sockets_open",
    }
    assert set(ours) == shared
    for name, (documentation, kind, samples) in ours.items():
        assert theirs[name][:2] == (documentation, kind)
        labels = [each.labels for each in theirs[name][2]]
        assert {frozenset(each.labels) for each in samples} == {
            frozenset(each) for each in labels
        }
        for sample in samples:
            if "source_principal" in sample.labels:  # known here by the socket
                sample.labels["source_principal"] = "unknown"
            if sample.value and name != "istio_build":
                assert sample.labels in labels, name


NAMED = """\
- {uid: out, name: out, namespace: default, workloadIps: [], hostname: out.invalid,
   services: {default/out.default: {80: 8080}}}
"""
SERVICE = """\
- {name: out, namespace: default, hostname: out.default, vips: [/10.96.0.99],
   ports: {80: 8080}}
"""


def test_a_connection_by_a_host_name_is_counted_as_it_counts_it(request, tmp_path):
    """One that has no address, for there is no resolver."""
    mesh = MESH.replace("workloads:\n", f"workloads:\n{NAMED}")
    mesh = mesh.replace("services:\n", f"services:\n{SERVICE}")
    with running(request, tmp_path, mesh) as there:
        there.says("socks5")
        assert "connection failed" in there.decides("10.96.0.99:80")
        page = get(there, 15020, "/metrics")
    metrics = Metrics()
    metrics.resolved(LocalWorkloads(our_config()).sandbox("a"), "out.invalid")
    ours = families(text_string_to_metric_families(metrics.text().decode()))
    theirs = families(openmetrics.text_string_to_metric_families(page))
    numbers = [
        {each.name: (each.labels, each.value) for each in found[2]}
        for found in (ours["istio_on_demand_dns"], theirs["istio_on_demand_dns"])
    ]
    assert numbers[0]["istio_on_demand_dns_total"][1] == 1
    assert numbers[0] == numbers[1]


def our_config():
    """The same mesh, with `client` as a sandbox."""
    loaded, _ = istio.parse(MESH.encode(), "mesh.yaml")
    sandbox = Sandbox(name="a", workload="default/client", socket=Path("/s"), cid=3)
    return Config(
        workloads=loaded.workloads,
        services=loaded.services,
        fastpath=Fastpath(sandboxes=(sandbox,)),
    )


def our_metrics(to):
    """Our page after the same."""
    config = our_config()
    metrics = Metrics()
    client = LocalWorkloads(config).sandbox("a")
    address = ListenAddress.parse(to)
    decision = Routes(config).decide(client, (str(address.host), address.port))
    assert decision.refusal is None
    metrics.failed(client, decision)
    return metrics.text().decode()


def test_our_dump_is_as_its(ztunnel):
    theirs = json.loads(get(ztunnel, 15000, "/config_dump"))
    loaded, _ = istio.parse(MESH.encode(), "mesh.yaml")
    config = Config(workloads=loaded.workloads, services=loaded.services)
    ours = json.loads(configdump.dump(MeshState(config), config, ()))
    assert set(theirs) <= set(ours)
    for name, key in (("workloads", "uid"), ("services", "hostname")):
        pairs = [{each[key]: each for each in dump[name]} for dump in (theirs, ours)]
        assert set(pairs[0]) == set(pairs[1])
        for which, there in pairs[0].items():
            here = dict(pairs[1][which])
            if name == "workloads":  # from a file, it doesn't keep their services
                here.pop("services", None)
            assert here == there


@pytest.mark.parametrize("form", list(LogFormat))
def test_our_log_lines_have_its_fields(request, tmp_path, form):
    """In its order; but for what only we know of plain text, and time and ports."""
    case = OUTBOUND["failover-best"]
    with running(request, tmp_path, MESH, LOG_FORMAT=form.value) as there:
        there.says("socks5")
        line = there.decides(case.to)
    loaded, _ = istio.parse(MESH.encode(), "mesh.yaml")
    by_name = {each.name: each for each in loaded.workloads}
    record = Record(
        level="error",
        message="connection complete",
        src=party(("127.0.0.1", 1), by_name["client"]),
        dst=party(("10.0.0.21", 8080), by_name["same-zone"]),
        service="near.default",
        bytes_sent=0,
        bytes_recv=0,
        duration_ms=0,
        error="io error: Permission denied (os error 13)",
    )
    write = format_json if form is LogFormat.JSON else format_line
    ours = write(record, datetime.datetime.now(datetime.UTC))
    assert blurred(ours) == blurred(line)


def blurred(line):
    """A line without what differs between two of the same connection."""
    line = re.sub(r"20\d\d-[-0-9T:.]+Z", "TIME", line)
    return re.sub(r'(127\.0\.0\.1:)\d+|\d+(?=ms")', r"\1N", line)
