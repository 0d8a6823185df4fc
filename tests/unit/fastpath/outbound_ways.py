"""An outbound side with its log and metrics, and both ways that lead into it."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel.capture import Capture
from fastpath.ztunnel.dns import Dns
from fastpath.ztunnel.metrics import Metrics
from fastpath.ztunnel.model import (
    Config,
    Fastpath,
    NamespacedHostname,
    NetworkAddress,
    Sandbox,
    Service,
    Workload,
)
from fastpath.ztunnel.outbound import Outbound
from fastpath.ztunnel.routing import Routes
from fastpath.ztunnel.sandboxrouter import SandboxRouter
from fastpath.ztunnel.workloads import LocalWorkloads
from vhost_user.engine import Event, EventKind

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
