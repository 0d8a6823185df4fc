"""What who runs the process sees: config dump, log level, log lines as JSON."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging

import pytest

from fastpath.ztunnel import config as configuration
from fastpath.ztunnel import configdump
from fastpath.ztunnel.access_log import Party, Record, format_json
from fastpath.ztunnel.configdump import LiveClient, LiveConnection, encode
from fastpath.ztunnel.drain import drained
from fastpath.ztunnel.istio import file
from fastpath.ztunnel.istio.outbound import Transport
from fastpath.ztunnel.istio.state import MeshState
from fastpath.ztunnel.loglevel import MAX_NAMES, LogLevel
from tests.support.clock import run as run_by_the_clock
from tests.support.mesh_cases import MESH
from tests.unit.fastpath.config_errors import SANDBOX, WORKLOAD

TIME = datetime.datetime(2026, 1, 31, 9, 59, 5, 28709, datetime.UTC)

HBONE = Transport.HBONE


def test_a_json_line_is_ztunnels():
    record = Record(
        level="error",
        message="connection complete",
        src=Party(addr="10.0.0.2:1", workload="client", cluster="Kubernetes"),
        dst=Party(addr="10.0.0.12:15008", namespace="default"),
        hbone_addr="10.0.0.12:8080",
        service="web.default",
        bytes_sent=0,
        bytes_recv=7,
        duration_ms=129,
        error='a "quoted" word',
    )
    assert format_json(record, TIME) == (
        '{"level":"error","time":"2026-01-31T09:59:05.028709Z","scope":"access",'
        '"message":"connection complete","src.addr":"10.0.0.2:1",'
        '"src.workload":"client","src.cluster":"Kubernetes",'
        '"dst.addr":"10.0.0.12:15008","dst.hbone_addr":"10.0.0.12:8080",'
        '"dst.service":"web.default","dst.namespace":"default",'
        '"direction":"outbound","bytes_sent":0,"bytes_recv":7,"duration":"129ms",'
        '"error":"a \\"quoted\\" word"}'
    )


@pytest.fixture
def dumped(tmp_path):
    """Dump Istio's file, and one sandbox of ours."""

    def dumped(mesh, own="", live=()):
        (tmp_path / "mesh.yaml").write_text(mesh)
        (tmp_path / "z.yaml").write_text(f"{own}mesh: {tmp_path}/mesh.yaml\n")
        config = configuration.load(tmp_path / "z.yaml")
        return json.loads(configdump.dump(MeshState(config), config, live))

    return dumped


def test_the_dump_has_what_istioctl_reads(dumped):
    live = [
        LiveConnection("a", ("10.0.0.1", 7), ("10.96.0.1", 80), ("fd00::1", 8080)),
        LiveClient("a", ("10.0.0.9", 5), "web.default", ("10.0.0.1", 80), HBONE),
        LiveClient("a", ("fd00::9", 5), "", ("fd00::1", 80)),
        LiveClient("other", ("fd00::9", 5), "", ("fd00::1", 80)),
    ]
    found = dumped(WORKLOAD, SANDBOX, live)
    assert set(found) == {
        "certificates",
        "config",
        "policies",
        "services",
        "stagedServices",
        "staticConfig",
        "version",
        "workloadState",
        "workloads",
    }
    assert found["workloads"] == [
        {
            "capacity": 1,
            "clusterId": "Kubernetes",
            "name": "a",
            "namespace": "default",
            "networkMode": "Standard",
            "protocol": "TCP",
            "serviceAccount": "default",
            "status": "Healthy",
            "trustDomain": "cluster.local",
            "workloadIps": ["10.0.0.1"],
        }
    ]
    assert found["config"]["sandboxes"][0]["socket"] == "/run/a.sock"
    assert found["workloadState"]["a"]["connections"] == {
        "outbound": [
            {
                "src": "10.0.0.1:7",
                "originalDst": "10.96.0.1:80",
                "actualDst": "[fd00::1]:8080",
                "protocol": "TCP",
            }
        ],
        "inbound": [
            {
                "src": "10.0.0.9:5",
                "originalDst": "web.default",
                "actualDst": "10.0.0.1:80",
                "protocol": "HBONE",
            },
            {
                "src": "[fd00::9]:5",
                "originalDst": None,
                "actualDst": "[fd00::1]:80",
                "protocol": "TCP",
            },
        ],
    }


def test_a_service_is_dumped_with_all_its_endpoints(dumped):
    services = {each["name"]: each for each in dumped(MESH)["services"]}
    uid = "cluster1//v1/Pod/default"
    assert services["abroad"]["endpoints"] == {
        f"{uid}/{name}": {
            "workloadUid": f"{uid}/{name}",
            "port": {"80": 8080},
            "status": "Healthy",
        }
        for name in ("same-region", "abroad")
    }
    assert services["wide"]["endpoints"][f"{uid}/picked"]["status"] == "Unhealthy"
    assert services["wide"]["cidrVips"] == [{"network": "", "cidr": "10.97.0.0/16"}]


def test_a_policy_is_dumped_as_istios():
    text = """
policies:
- {name: p, namespace: a, scope: Namespace, action: Deny, dryRun: false, rules:
   [[[{principals: [!Exact b, !Presence []], notSourceIps: [10.0.0.0/8]}]]]}
"""
    (policy,) = file.parse(text.encode(), "mesh.yaml")[0].policies
    assert encode(policy) == {
        "name": "p",
        "namespace": "a",
        "scope": "Namespace",
        "action": "Deny",
        "dryRun": False,
        "rules": [
            [
                [
                    {
                        "principals": [{"Exact": "b"}, {"Presence": []}],
                        "notSourceIps": ["10.0.0.0/8"],
                    }
                ]
            ]
        ],
    }


@pytest.fixture
def log_level():
    """Levels are the process's: they are put back."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    level = LogLevel()
    yield level
    level.page("reset=")
    root.setLevel(before)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "info"),
        ("level=", "info"),
        ("level=debug", "debug"),
        ("level=off", "off"),
        ("level=fastpath.ztunnel.dns=debug", "fastpath.ztunnel.dns=debug,info"),
        ("level=warn,vhost_user=error", "vhost_user=error,warn"),
        ("reset=&level=warn", "warn"),
    ],
)
def test_the_log_level_is_said_and_changed(log_level, query, said):
    page = log_level.page(query)
    assert (page.status, page.body) == (200, f"current log level is {said}\n".encode())


def test_a_level_counts_at_once_and_until_it_is_reset(log_level):
    log = logging.getLogger("fastpath.ztunnel.dns")
    log_level.page("level=fastpath.ztunnel=debug")
    assert log.isEnabledFor(logging.DEBUG)
    log_level.page("level=off")
    assert log.isEnabledFor(logging.DEBUG)
    log_level.page("reset=")
    assert not log.isEnabledFor(logging.DEBUG)
    assert log.isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    "query",
    ["level=foo", "level=a.b=debug", "level=fastpath=foo", "level=debug,foo"],
)
def test_what_is_no_level_changes_nothing(log_level, query):
    page = log_level.page(query)
    assert page.status == 400
    assert page.body.startswith(b"Invalid level provided: ")
    assert str(log_level) == "info"


def test_the_loggers_that_have_a_level_are_bounded(log_level):
    for number in range(MAX_NAMES):
        log_level.page(f"level=fastpath.{'a' * (number + 1)}=debug")
    assert log_level.page("level=fastpath.b=debug").status == 400


@pytest.mark.parametrize(
    ("left", "hurry", "passed"),
    [
        pytest.param([2, 2, 1, 0], False, (0, 1), id="they-end"),
        pytest.param([2], False, (5, 6), id="they-do-not"),
        pytest.param([2], True, (0, 0.1), id="a-second-signal"),
        pytest.param([0], False, (0, 0), id="nobody"),
    ],
)
def test_a_drain_waits_for_connections_up_to_its_limit(left, hurry, passed):
    def live():
        return left.pop(0) if len(left) > 1 else left[0]

    async def main():
        event = asyncio.Event()
        if hurry:
            event.set()
        loop = asyncio.get_running_loop()
        start = loop.time()
        await drained(live, 5, event)
        return loop.time() - start

    low, high = passed
    assert low <= run_by_the_clock(main()) <= high
