"""Istio's local file as data: what its ztunnel reads from `LOCAL_XDS_PATH`.

These classes are the whole description of the format. Field `workload_ips` is the key
`workloadIps`. Keys that Istio's ztunnel wants in a file are wanted here; in code they
have defaults. What each key means stands in docs/ztunnel-config.md.

Spec: istio/ztunnel, local configuration.
"""

# ruff: noqa: TC001, TC003 - `decode` reads the annotations when it runs
from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Self

from fastpath.identity import NAMESPACE, SERVICE_ACCOUNT, TRUST_DOMAIN, Identity
from fastpath.ztunnel.rbac import Authorization, Net, Port
from vhost_user.decode import REQUIRED
from vhost_user.schema import Between, IpAddress, Matches, parse_ip

Namespace = Annotated[str, Matches(NAMESPACE, "a namespace name")]
Hostname = Annotated[str, Matches(r"[A-Za-z0-9*][A-Za-z0-9*._-]*", "a host name")]
TargetPort = Annotated[int, Between(0, 65535)]
"""0: the other side of the mapping, workload or service, says it."""
Weight = Annotated[int, Between(0, 2**32 - 1)]


class Protocol(enum.Enum):
    """How a workload takes connections from the mesh."""

    TCP = "TCP"
    HBONE = "HBONE"


class NetworkMode(enum.Enum):
    """Whether a workload's IPs are its own."""

    STANDARD = "Standard"
    HOST_NETWORK = "HostNetwork"
    """They are the node's, so an IP does not tell which workload it is."""


class HealthStatus(enum.Enum):
    """Whether a workload may be chosen for a service."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class TunnelProtocol(enum.Enum):
    """What precedes the bytes of an inbound connection."""

    NONE = "NONE"
    PROXY = "PROXY"


class LoadBalancerMode(enum.Enum):
    """What `routingPreferences` do to the choice of an endpoint."""

    STANDARD = "Standard"
    """Nothing."""
    STRICT = "Strict"
    """Only those that match all of them."""
    FAILOVER = "Failover"
    """Those that match most of them, the first ones first."""
    PASSTHROUGH = "Passthrough"
    """No endpoint is chosen: the connection goes where it was to go."""


class HealthPolicy(enum.Enum):
    """Which endpoints a service has."""

    ONLY_HEALTHY = "OnlyHealthy"
    ALLOW_ALL = "AllowAll"


class Scope(enum.Enum):
    """What source and endpoint may have in common."""

    REGION = "Region"
    ZONE = "Zone"
    SUBZONE = "Subzone"
    NODE = "Node"
    CLUSTER = "Cluster"
    NETWORK = "Network"


class IpFamily(enum.Enum):
    """Which of an endpoint's IPs a service uses."""

    DUAL = "Dual"
    IPV4 = "IPv4"
    IPV6 = "IPv6"

    def accepts(self, address: IpAddress) -> bool:
        """Whether an IP is of the family."""
        return self is IpFamily.DUAL or self.value == f"IPv{address.version}"


class Visibility(enum.Enum):
    """Who finds a service by its VIPs and its name."""

    PUBLIC = "Public"
    NAMESPACE = "Namespace"
    """Workloads of its namespace."""


@dataclass(frozen=True, slots=True)
class NetworkAddress:
    """An IP on a network: `network/IP`; the network's name may be empty."""

    network: str
    address: IpAddress

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `network/IP`, or raise `ValueError`."""
        network, slash, address = text.partition("/")
        if not slash:
            raise ValueError(f"must be network/IP or /IP, not {text!r}")
        return cls(network, parse_ip(address))

    def __str__(self) -> str:
        return f"{self.network}/{self.address}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCidr:
    """A prefix on a network."""

    network: str
    cidr: Net


@dataclass(frozen=True, slots=True)
class NamespacedHostname:
    """A service: `namespace/hostname`."""

    namespace: str
    hostname: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `namespace/hostname`, or raise `ValueError`."""
        namespace, _, hostname = text.partition("/")
        if not namespace or not hostname or "/" in hostname:
            raise ValueError(f"must be namespace/hostname, not {text!r}")
        return cls(namespace, hostname)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.hostname}"


@dataclass(frozen=True, slots=True)
class GatewayDestination:
    """A gateway: `network/IP` or `namespace/hostname`."""

    address: NetworkAddress | None = None
    hostname: NamespacedHostname | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read either form, or raise `ValueError`."""
        try:
            return cls(address=NetworkAddress.parse(text))
        except ValueError:
            return cls(hostname=NamespacedHostname.parse(text))

    def __str__(self) -> str:
        return f"{self.address or self.hostname}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationTunnel:
    """How an inbound connection is handed to the workload."""

    protocol: TunnelProtocol
    port: Port | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAddress:
    """A waypoint, or a gateway to another network."""

    destination: GatewayDestination
    hbone_mtls_port: Port


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedWaypoint:
    """One of a service's waypoints, and its share of the connections."""

    destination: GatewayAddress
    weight: Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """Where a workload runs."""

    region: str
    zone: str
    subzone: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """One pod, virtual machine or external endpoint."""

    workload_ips: tuple[IpAddress, ...]
    namespace: Namespace
    uid: str = ""
    name: str = ""
    trust_domain: Annotated[str, Matches(TRUST_DOMAIN, "a trust domain")] = (
        "cluster.local"
    )
    service_account: Annotated[
        str, Matches(SERVICE_ACCOUNT, "a service account name")
    ] = "default"
    network: str = ""
    network_gateway: GatewayAddress | None = None
    hostname: str = ""
    """Its IPs are those of this name, if it has none."""
    node: str = ""
    cluster_id: str = "Kubernetes"
    locality: Locality = Locality(region="", zone="", subzone="")
    protocol: Protocol = Protocol.TCP
    network_mode: NetworkMode = NetworkMode.STANDARD
    native_tunnel: bool = False
    status: HealthStatus = HealthStatus.HEALTHY
    capacity: Weight = 1
    workload_name: str = ""
    workload_type: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    application_tunnel: ApplicationTunnel | None = None
    waypoint: GatewayAddress | None = None
    authorization_policies: tuple[str, ...] = ()
    services: Mapping[NamespacedHostname, Mapping[Port, TargetPort]] = field(
        default_factory=dict, metadata=REQUIRED
    )

    @property
    def identity(self) -> Identity:
        """What the workload's certificate would say."""
        return Identity(self.trust_domain, self.namespace, self.service_account)

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint that the service names, not the workload."""

    workload_uid: str
    port: Mapping[Port, TargetPort]
    status: HealthStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancer:
    """How one of a service's endpoints is chosen."""

    routing_preferences: tuple[Scope, ...]
    mode: LoadBalancerMode
    health_policy: HealthPolicy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Service:
    """A name with virtual IPs in front of workloads."""

    name: str
    namespace: Namespace
    hostname: Hostname
    vips: tuple[NetworkAddress, ...]
    cidr_vips: tuple[NetworkCidr, ...] = ()
    ports: Mapping[Port, TargetPort]
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    """By the workload's uid."""
    subject_alt_names: tuple[Identity, ...] = ()
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[WeightedWaypoint, ...] = ()
    load_balancer: LoadBalancer | None = None
    ip_families: IpFamily | None = None
    canonical: bool = False
    visibility: Visibility = Visibility.PUBLIC

    @property
    def key(self) -> NamespacedHostname:
        """How workloads refer to it."""
        return NamespacedHostname(self.namespace, self.hostname)

    @property
    def mode(self) -> LoadBalancerMode:
        """How endpoints are chosen."""
        balancer = self.load_balancer
        return balancer.mode if balancer else LoadBalancerMode.STANDARD

    def visible_to(self, namespace: str) -> bool:
        """Whether workloads of a namespace find it."""
        return self.visibility is Visibility.PUBLIC or self.namespace == namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    """The whole file."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Authorization, ...] = ()
