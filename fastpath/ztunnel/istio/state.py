"""The mesh with its indexes: who has an IP, a name; which policies are for whom.

A `MeshState` never changes; a new file makes a new one. All look-ups cost the same
however large the mesh is, but those of `cidrVips`, which are few.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastpath.ztunnel.istio.model import (
    HealthPolicy,
    HealthStatus,
    LocalFile,
    NetworkMode,
    Service,
)
from fastpath.ztunnel.rbac import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastpath.ztunnel.istio.model import (
        GatewayDestination,
        NamespacedHostname,
        NetworkCidr,
        Workload,
    )
    from fastpath.ztunnel.rbac import Authorization
    from vhost_user.schema import IpAddress

    Key = tuple[str, IpAddress]


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A workload as an endpoint of a service."""

    workload: Workload
    ports: Mapping[int, int]
    """Of the service: its target ports here."""
    status: HealthStatus = HealthStatus.HEALTHY
    """As whoever names it has it."""


class MeshState:
    """All workloads, services and policies.

    Args:
        file: checked (`file.problems`).
        network: the one that this process is on.
    """

    def __init__(self, file: LocalFile, network: str = "") -> None:
        self.network = network
        self.file = file
        self._by_ip: dict[Key, Workload] = {}
        self._by_uid: dict[str, Workload] = {}
        self._by_hostname: dict[tuple[str, str], Workload] = {}
        for workload in file.workloads:
            if workload.network_mode is not NetworkMode.HOST_NETWORK:
                for ip in workload.workload_ips:
                    self._by_ip[workload.network, ip] = workload
            if workload.uid:
                self._by_uid[workload.uid] = workload
            if workload.hostname:
                name = (workload.namespace, workload.hostname)
                self._by_hostname[name] = workload
        self._services = {service.key: service for service in file.services}
        self._by_vip: defaultdict[Key, list[Service]] = defaultdict(list)
        self._by_name: defaultdict[str, list[Service]] = defaultdict(list)
        self._by_cidr: list[tuple[NetworkCidr, Service]] = []
        for service in file.services:
            self._by_name[service.hostname].append(service)
            for vip in service.vips:
                self._by_vip[vip.network, vip.address].append(service)
            self._by_cidr += [(cidr, service) for cidr in service.cidr_vips]
        self._members = self._all_members()
        self._policies = {policy.key: policy for policy in file.policies}
        self._of_namespace: defaultdict[str, list[Authorization]] = defaultdict(list)
        for policy in file.policies:
            if policy.scope is not Scope.WORKLOAD_SELECTOR:
                whose = "" if policy.scope is Scope.GLOBAL else policy.namespace
                self._of_namespace[whose].append(policy)

    def workload_at(self, network: str, ip: IpAddress) -> Workload | None:
        """Whose an IP is."""
        return self._by_ip.get((network, ip))

    def again(self, workload: Workload) -> Workload | None:
        """What a workload of another state is in this one."""
        if workload.uid:
            return self._by_uid.get(workload.uid)
        found = (self.workload_at(workload.network, ip) for ip in workload.workload_ips)
        return next(filter(None, found), None)

    def service_at(
        self, network: str, ip: IpAddress, namespace: str | None
    ) -> Service | None:
        """The service that has a VIP, as a namespace sees it; None: as nobody does."""
        found = best_of(self._by_vip.get((network, ip), ()), namespace)
        return found or self._service_around(network, ip, namespace)

    def service(self, key: NamespacedHostname) -> Service | None:
        """The service with a name."""
        return self._services.get(key)

    def find(self, destination: GatewayDestination) -> Service | Workload | None:
        """What a gateway's destination names."""
        if destination.address:
            ip = destination.address.address
            return self.address(destination.address.network, ip, None)
        assert destination.hostname
        name = destination.hostname
        workload = self._by_hostname.get((name.namespace, name.hostname))
        return self._services.get(name) or workload

    def address(
        self, network: str, ip: IpAddress, namespace: str | None
    ) -> Service | Workload | None:
        """The workload that has an IP, or else the service."""
        workload = self.workload_at(network, ip)
        return workload or self.service_at(network, ip, namespace)

    def service_named(self, hostname: str, namespace: str) -> Service | None:
        """The service of a host name, as a namespace sees it."""
        return best_of(self._by_name.get(hostname, ()), namespace)

    def services_of(self, workload: Workload) -> list[Service]:
        """Those that a workload is an endpoint of, as it says."""
        return [self._services[key] for key in workload.services]

    def members_of(self, service: Service) -> tuple[Member, ...]:
        """A service's endpoints."""
        return self._members[service.key]

    def policies_of(self, workload: Workload) -> list[Authorization]:
        """Those that are for a workload."""
        return [
            *self._of_namespace.get(workload.namespace, ()),
            *self._of_namespace.get("", ()),
            *(self._policies[key] for key in workload.authorization_policies),
        ]

    def _all_members(self) -> Mapping[NamespacedHostname, tuple[Member, ...]]:
        """Endpoints that services name, and those that say so themselves."""
        found: dict[NamespacedHostname, dict[object, Member]] = {}
        for service in self.file.services:
            named = found[service.key] = {}
            for endpoint in service.endpoints.values():
                workload = self._by_uid.get(endpoint.workload_uid)
                if workload is not None:
                    named[workload] = Member(workload, endpoint.port, endpoint.status)
        for workload in self.file.workloads:
            for key, ports in workload.services.items():
                if _takes(self._services[key], workload):
                    found[key][workload] = Member(workload, ports, workload.status)
        return {key: tuple(members.values()) for key, members in found.items()}

    def _service_around(
        self, network: str, ip: IpAddress, namespace: str | None
    ) -> Service | None:
        """The service one of whose `cidrVips` an IP is in."""
        best: tuple[tuple[bool, int, bool], Service] | None = None
        for cidr, service in self._by_cidr:
            if cidr.network != network or ip not in cidr.cidr:
                continue
            if namespace is not None and not service.visible_to(namespace):
                continue
            own = service.namespace == namespace
            rank = (own, cidr.cidr.prefixlen, service.canonical)
            if best is None or rank > best[0]:
                best = rank, service
        return best[1] if best else None


def _takes(service: Service, workload: Workload) -> bool:
    balancer = service.load_balancer
    any_health = balancer and balancer.health_policy is HealthPolicy.ALLOW_ALL
    return bool(any_health) or workload.status is HealthStatus.HEALTHY


def best_of(services: Iterable[Service], namespace: str | None) -> Service | None:
    """Of those that a namespace sees: its own, else a canonical one, else the first."""
    best = None
    for service in services:
        if namespace is not None and not service.visible_to(namespace):
            continue
        if service.namespace == namespace:
            return service
        if service.canonical or best is None:
            best = service
    return best
