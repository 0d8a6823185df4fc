"""The headers of CONNECT that tell of the source, and of the service asked for.

Spec: W3C "Baggage" with OpenTelemetry's names; RFC 7239 "Forwarded"; in the form that
Istio's ztunnel has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastpath.ztunnel.istio.model import Service, Workload
    from vhost_user.engine import SocketAddress


def baggage(workload: Workload) -> str:
    """What says which workload it is: of a request the source, of an answer the end."""
    values = {
        "k8s.cluster.name": workload.cluster_id,
        "k8s.namespace.name": workload.namespace,
        f"k8s.{workload.workload_type}.name": workload.workload_name,
        "service.name": workload.canonical_name,
        "service.version": workload.canonical_revision,
        "cloud.region": workload.locality.region,
        "cloud.availability_zone": workload.locality.zone,
    }
    return ",".join(f"{name}={value}" for name, value in values.items() if value)


def forwarded(source: SocketAddress, service: Service | None) -> str:
    """Who asks, and for which service's name."""
    before, after = forwarded_around(source[0], service)
    return f"{before}{source[1]}{after}"


def forwarded_around(host: str, service: Service | None) -> tuple[str, str]:
    """The same: what is before the client's port, and behind it."""
    text = f"[{host}]" if ":" in host else host
    return f'for="{text}:', '"' + (f";host={service.hostname}" if service else "")


def forwarded_host(header: str) -> str:
    """The host name of `forwarded`; empty: there is none."""
    if not header.isascii():
        return ""
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == "host":
            return value.removeprefix('"').removesuffix('"')
    return ""
