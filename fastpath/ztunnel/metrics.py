"""Istio's TCP metrics, and counters of denials; `collectors` has what others count.

As in Istio, "received" is client to server and "sent" is server to client, for
both reporters. The engine tells the bytes of a connection when it ends, so the
byte counters move then. Unlike in Istio's ztunnel, `source_principal` is known for
plain text too: who a sandbox is, its socket says.

Spec: Istio, "Standard Metrics", TCP; istio/ztunnel for the labels' values.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from fastpath.ztunnel.tally import Tally, new_family

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

    from fastpath.ztunnel.authorization import Whose
    from fastpath.ztunnel.connect import Behind
    from fastpath.ztunnel.flags import Flag
    from fastpath.ztunnel.istio.headers import Said
    from fastpath.ztunnel.istio.model import Locality
    from fastpath.ztunnel.model import Service, Workload
    from fastpath.ztunnel.routing import Decision
    from fastpath.ztunnel.tally import Value
    from fastpath.ztunnel.workloads import LocalWorkload

    _Key = tuple[LocalWorkload, Workload | None, Service | None, bool, Behind | None]

_UNKNOWN, _MUTUAL_TLS = "unknown", "mutual_tls"
_END_LABELS = (
    "workload",
    "canonical_service",
    "canonical_revision",
    "workload_namespace",
    "principal",
    "app",
    "version",
    "cluster",
)
SOURCE_LABELS = tuple(f"source_{name}" for name in _END_LABELS)
LABELS = (
    "reporter",
    *SOURCE_LABELS,
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    *(f"destination_{name}" for name in _END_LABELS),
    "request_protocol",
    "response_flags",
    "connection_security_policy",
    "source_region",
    "source_zone",
    "destination_region",
    "destination_zone",
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Series:
    """The four counters with one set of labels, looked up once."""

    opened: Value
    closed: Value
    received: Value
    sent: Value


class Metrics:
    """The counters, and what else is to be on the page."""

    def __init__(self) -> None:
        self._collectors: list[Collector] = [_Build()]
        total = "The total number of TCP connections"
        size = "The size of total bytes"
        case = "in case of a TCP connection"
        self._opened = self._counter("connections_opened", f"{total} opened")
        self._closed = self._counter("connections_closed", f"{total} closed")
        self._failed = self._counter(
            "connections_failed", f"{total} that failed to establish (unstable)"
        )
        self._received = self._counter(
            "received_bytes", f"{size} received during request {case}"
        )
        self._sent = self._counter("sent_bytes", f"{size} sent during response {case}")
        self._sockets = Tally(
            "istio_tcp_sockets_open",
            "The current number of open TCP sockets (unstable)",
            ("reporter",),
            "gauge",
        )
        self.register(self._sockets)
        self._revoked = Tally(
            "istio_crl_policy_rejections",
            "The total number of connections rejected due to CRL certificate revocation"
            " (unstable)",
            ("reporter",),
        )
        self.register(self._revoked)
        self._resolved = self._tally(
            "istio_on_demand_dns",
            "The total number of requests that used on-demand DNS (unstable)",
            (*SOURCE_LABELS, "hostname"),
        )
        self._series: dict[_Key, _Series] = {}
        self._inbound: dict[tuple[LocalWorkload, Whose], _Series] = {}
        self._unlogged = self._tally(
            "fastpath_denied_unlogged",
            "Of those, not in the access log: there were too many at once",
            ("sandbox",),
        )
        self._ended = self._tally(
            "fastpath_policy_ended",
            "Established connections that a new policy ended",
            ("sandbox", "reason"),
        )
        self._reloads = self._tally(
            "fastpath_policy_reloads",
            "New contents of policy files, good ones and those with an error",
            ("sandbox", "result"),
        )
        self._meshes = self._tally(
            "fastpath_mesh_reloads",
            "New contents of Istio's file, good ones and those with an error",
            ("result",),
        )
        self._denied = self._tally(
            "fastpath_denied",
            "Connections refused before any dial",
            ("sandbox", "reason"),
        )

    def opened(self, client: LocalWorkload, decision: Decision) -> None:
        """A connection is established, or at least its dial was tried."""
        self._series_of(client, decision).opened.inc()
        self._sockets.labels("source").inc()

    def closed(
        self,
        client: LocalWorkload,
        decision: Decision,
        *,
        received: int,
        sent: int,
        flag: Flag = "-",
    ) -> None:
        """An established connection ended.

        Args:
            client: who asked.
            decision: where it went.
            received: bytes from the client.
            sent: bytes to the client.
            flag: how it ended; with an error it has failed, as in Istio's ztunnel.
        """
        series = self._series_of(client, decision)
        self._sockets.labels("source").dec()
        series.received.inc(received)
        series.sent.inc(sent)
        if flag == "-":
            series.closed.inc()
        else:
            self._count_failed(_labels(client, decision, flag))

    def failed(
        self, client: LocalWorkload, decision: Decision, flag: Flag = "CONNECT"
    ) -> None:
        """A dial was tried and failed."""
        self.opened(client, decision)
        labels = _labels(client, decision, flag)
        self._sockets.labels("source").dec()
        self._count_failed(labels)

    def inbound_opened(self, server: LocalWorkload, whose: Whose) -> None:
        """A sandbox took a connection."""
        self._inbound_series(server, whose).opened.inc()
        self._sockets.labels("destination").inc()

    def inbound_closed(
        self,
        server: LocalWorkload,
        whose: Whose,
        *,
        received: int,
        sent: int,
        flag: Flag = "-",
    ) -> None:
        """A connection that a sandbox took ended.

        Args:
            server: the sandbox.
            whose: the client, and the service that it is of.
            received: bytes from the client.
            sent: bytes to the client.
            flag: see `closed`.
        """
        series = self._inbound_series(server, whose)
        self._sockets.labels("destination").dec()
        series.received.inc(received)
        series.sent.inc(sent)
        if flag == "-":
            series.closed.inc()
        else:
            self._count_failed(_server_labels(server, whose, flag))

    def inbound_failed(self, server: LocalWorkload, whose: Whose) -> None:
        """A sandbox didn't take a connection."""
        self._inbound_series(server, whose).opened.inc()
        self._count_failed(_server_labels(server, whose, "CONNECT"))

    def inbound_denied(self, server: LocalWorkload, whose: Whose) -> None:
        """An authorization policy denied a connection to a sandbox."""
        labels = _server_labels(server, whose, "DENY")
        self._inbound_series(server, whose).opened.inc()
        self._count_failed(labels)

    def revoked(self, reporter: Literal["source", "destination"]) -> None:
        """A tunnel's peer is revoked."""
        self._revoked.labels(reporter).inc()

    def resolved(self, client: LocalWorkload, hostname: str) -> None:
        """A connection goes where a workload's host name is, or would have gone."""
        self._resolved.labels(*_end(client.workload), hostname).inc()

    def forget(self) -> None:
        """Look labels up anew: workloads and services may have others."""
        self._series.clear()
        self._inbound.clear()

    def denied(self, sandbox: str, reason: str) -> None:
        """A connection was refused; `sandbox` is empty when there is none."""
        self._denied.labels(sandbox, reason).inc()

    def unlogged(self, sandbox: str) -> None:
        """A refused connection has no line in the access log."""
        self._unlogged.labels(sandbox).inc()

    def ended(self, sandbox: str, reason: str) -> None:
        """An established connection ended by a new policy."""
        self._ended.labels(sandbox, reason).inc()

    def reloaded(self, sandbox: str, *, good: bool) -> None:
        """A policy file has another content."""
        self._reloads.labels(sandbox, "good" if good else "error").inc()

    def mesh_reloaded(self, *, good: bool) -> None:
        """Istio's file has another content."""
        self._meshes.labels("good" if good else "error").inc()

    def register(self, collector: Collector) -> None:
        """Have what it collects on the page, too."""
        self._collectors.append(collector)

    def registry(self) -> CollectorRegistry:
        """All of it for Prometheus's library; callable on any thread."""
        from prometheus_client import CollectorRegistry

        made = CollectorRegistry()
        for each in self._collectors:
            made.register(each)
        return made

    def text(self) -> bytes:
        """All of it in Prometheus's text format; callable on any thread."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry())

    def _count_failed(self, labels: tuple[str, ...]) -> None:
        self._closed.labels(*labels).inc()
        self._failed.labels(*labels).inc()

    def _inbound_series(self, server: LocalWorkload, whose: Whose) -> _Series:
        key = (server, whose)
        series = self._inbound.get(key)
        if series is None:
            labels = _server_labels(server, whose)
            series = self._inbound[key] = self._make_series(labels)
        return series

    def _make_series(self, labels: tuple[str, ...]) -> _Series:
        return _Series(
            self._opened.labels(*labels),
            self._closed.labels(*labels),
            self._received.labels(*labels),
            self._sent.labels(*labels),
        )

    def _series_of(self, client: LocalWorkload, decision: Decision) -> _Series:
        """The counters with these labels; as many as workloads and services allow."""
        tunnelled = decision.connect is not None
        at = (decision.workload, decision.service, tunnelled, decision.behind)
        key = (client, *at)
        series = self._series.get(key)
        if series is None:
            labels = _labels(client, decision, "-")
            series = self._series[key] = self._make_series(labels)
        return series

    def _counter(self, name: str, what: str) -> Tally:
        return self._tally(f"istio_tcp_{name}", what, LABELS)

    def _tally(self, name: str, what: str, labels: Sequence[str]) -> Tally:
        tally = Tally(name, what, labels)
        self.register(tally)
        return tally


class _Build:
    """What this process is."""

    def collect(self) -> Iterator[Metric]:
        """The one family."""
        from importlib.metadata import version  # takes a MB

        made = new_family(
            "gauge", "istio_build", "Istio component build info", ("component", "tag")
        )
        made.add_metric(("ztunnel", f"fastpath-{version('vsock-fastpath')}"), 1)
        yield made


def _labels(client: LocalWorkload, decision: Decision, flag: Flag) -> tuple[str, ...]:
    """Of another network's far end its own words, as Istio's ztunnel has it."""
    behind = decision.behind
    server = decision.workload
    return (
        "source",
        *_end(client.workload),
        *_service(decision.service),
        *(_said(behind.said, behind.identity) if behind else _end(server)),
        "tcp",
        flag,
        _MUTUAL_TLS if decision.connect else _UNKNOWN,
        *_place(_locality(client.workload)),
        *_place(behind.said if behind else _locality(server)),
    )


def _server_labels(
    server: LocalWorkload, whose: Whose, flag: Flag = "-"
) -> tuple[str, ...]:
    """Who a client in plain text is, its IP says: not proved, so no principal.

    By HBONE one whose IP is no workload's is who it says, as Istio's ztunnel has it,
    but for the principal.
    """
    said = whose.said
    client = list(_said(said, "") if said else _end(whose.workload))
    client[_END_LABELS.index("principal")] = whose.principal or _UNKNOWN
    return (
        "destination",
        *client,
        *_service(whose.service),
        *_end(server.workload),
        "tcp",
        flag,
        _MUTUAL_TLS if whose.principal else _UNKNOWN,
        *_place(said or _locality(whose.workload)),
        *_place(_locality(server.workload)),
    )


def _said(said: Said, principal: str) -> tuple[str, ...]:
    """The same as `_end`; `app` is the workload there, in Istio's ztunnel, too."""
    return _labelled(
        said.workload,
        said.service,
        said.revision,
        said.namespace,
        principal,
        said.workload,
        said.revision,
        said.cluster,
    )


def _locality(workload: Workload | None) -> Locality | None:
    return workload.locality if workload else None


def _place(where: Said | Locality | None) -> tuple[str, ...]:
    return _labelled(where.region, where.zone) if where else (_UNKNOWN, _UNKNOWN)


def _labelled(*values: str) -> tuple[str, ...]:
    return tuple(value or _UNKNOWN for value in values)


def _end(workload: Workload | None) -> tuple[str, ...]:
    if workload is None:
        return (_UNKNOWN,) * len(_END_LABELS)
    return _labelled(
        workload.workload_name,
        workload.canonical_name,
        workload.canonical_revision,
        workload.namespace,
        str(workload.identity),
        workload.canonical_name,
        workload.canonical_revision,
        workload.cluster_id,
    )


def _service(service: Service | None) -> tuple[str, str, str]:
    if service is None:
        return (_UNKNOWN, _UNKNOWN, _UNKNOWN)
    return (service.hostname, service.namespace, service.name)
