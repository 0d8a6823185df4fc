"""The headers of CONNECT that tell of the source, and of the service asked for.

Spec: W3C "Baggage" with OpenTelemetry's names; RFC 7239 "Forwarded"; in the form that
Istio's ztunnel has.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

from vhost_user.schema import Between

if TYPE_CHECKING:
    from fastpath.ztunnel.istio.model import Service, Workload
    from vhost_user.engine import SocketAddress
    from vhost_user.schema import IpAddress

MAX_SAID: Final = 253
"""Characters of a name in `baggage`; of a longer one nothing is believed."""
MAX_KNOWN: Final = 1024
"""Different things that peers say of themselves: each has counters of its own."""

_PORT = Between(1, 65535)


class Said(NamedTuple):
    """What `baggage` says of its sender, which nobody has proved; empty: nothing."""

    cluster: str = ""
    namespace: str = ""
    workload: str = ""
    service: str = ""
    revision: str = ""
    region: str = ""
    zone: str = ""


_SAID: Final = {
    "k8s.cluster.name": "cluster",
    "k8s.namespace.name": "namespace",
    "k8s.deployment.name": "workload",
    "k8s.cronjob.name": "workload",
    "k8s.pod.name": "workload",
    "k8s.job.name": "workload",
    "service.name": "service",
    "service.version": "revision",
    "cloud.region": "region",
    "cloud.availability_zone": "zone",
}


def said(header: str) -> Said | None:
    """Read `baggage`; None: it says nothing that we know."""
    found: dict[str, str] = {}
    for part in header.split(",") if header.isascii() else ():
        name, _, rest = part.partition("=")
        value = rest.partition("=")[0]
        if name in _SAID and len(value) <= MAX_SAID:
            found[_SAID[name]] = value
    return Said(**found) if any(found.values()) else None


class Known:
    """What peers have said of themselves: only so many may say something new."""

    def __init__(self) -> None:
        self._all: set[Said] = set()

    def admit(self, said: Said | None) -> Said | None:
        """The same; None: too much has been said."""
        if said is None or said in self._all:
            return said
        if len(self._all) >= MAX_KNOWN:
            return None
        self._all.add(said)
        return said


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
    return _forwarded(header, "host")


def forwarded_port(header: str, ip: IpAddress) -> int:
    """The port of `forwarded`'s client, if that has an IP; 0: it says none."""
    host, _, port = _forwarded(header, "for").rpartition(":")
    try:
        same = ip_address(host.removeprefix("[").removesuffix("]")) == ip
        return _PORT.parse(port) if same else 0
    except ValueError:
        return 0


def is_foreign(said: str | None, network: str) -> bool:
    """Whether `x-forwarded-network` names another network than ours."""
    return said is not None and said.lower() != network.lower()


def _forwarded(header: str, wanted: str) -> str:
    if not header.isascii():
        return ""
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == wanted:
            return value.removeprefix('"').removesuffix('"')
    return ""
