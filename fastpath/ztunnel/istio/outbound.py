"""Where a workload's outbound connection goes, as Istio's ztunnel decides it.

    destination  VIP --waypoint?--> the waypoint, by HBONE
                     `Passthrough`  the VIP itself, by TCP
                     --endpoint-->  on another network: its gateway, by HBONE in HBONE
                                    TCP, or HBONE to its port 15008
                 workload's IP      its waypoint, TCP or HBONE
                 anything else      the IP itself, by TCP

What a waypoint is told (`authority`) is the destination as it was asked for; an
endpoint is told its own address; a gateway the service's name.

Spec: istio/ztunnel 62d8265, and what a run of it showed (tests/netns).
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from fastpath.ztunnel.istio import model
from fastpath.ztunnel.istio.model import LoadBalancerMode, Service, Workload
from fastpath.ztunnel.istio.services import Purpose, target_port

if TYPE_CHECKING:
    from fastpath.identity import Identity
    from fastpath.ztunnel.istio.model import GatewayAddress
    from fastpath.ztunnel.istio.services import Balancer
    from fastpath.ztunnel.istio.state import MeshState
    from vhost_user.engine import SocketAddress
    from vhost_user.schema import IpAddress


class Names(Protocol):
    """What is known of workloads' host names; a mapping is one."""

    def get(self, name: str, /) -> IpAddress | None:
        """An IP of a name; None: none is known."""
        ...


NO_NAMES: Final[Names] = MappingProxyType[str, "IpAddress"]({})
HBONE_PORT: Final = 15008
"""Where workloads take HBONE."""


class Transport(enum.Enum):
    """How a connection is carried to the next hop."""

    TCP = "TCP"
    HBONE = "HBONE"
    DOUBLE_HBONE = "DOUBLEHBONE"
    """HBONE to the workload, within HBONE to its network's gateway."""


@dataclass(frozen=True, slots=True)
class RouteRefusal:
    """Why a connection is not made."""

    reason: str
    """A label: few values, no addresses."""
    text: str
    """For the log: one line, with the particulars."""
    errno: int = errno.ECONNREFUSED


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where it goes, and as what."""

    transport: Transport
    ip: IpAddress
    """Of the next hop."""
    port: int
    authority: str = ""
    """Of CONNECT; empty: there is none."""
    endpoint: SocketAddress | None = None
    """The end of HBONE, if it is the next hop that it ends at."""
    sans: tuple[Identity, ...] = ()
    """Whom the next hop may prove to be."""
    final_sans: tuple[Identity, ...] = ()
    """Whom the end of the inner HBONE may prove to be."""
    workload: Workload | None = None
    """The next hop; None: nobody that we know."""
    service: Service | None = None
    """What was asked for, if it was a service."""
    waypoint: bool = False
    """Whether the next hop is one."""

    @property
    def address(self) -> SocketAddress:
        """The next hop's."""
        return str(self.ip), self.port


@dataclass(frozen=True, slots=True)
class Lookup:
    """It can't be decided before the IP of a name is known."""

    hostname: str
    version: int
    """4 or 6: of the IP that is preferred."""


@dataclass(frozen=True, slots=True)
class PoolKey:
    """Connections that may share a tunnel."""

    source: Identity
    sans: tuple[Identity, ...]
    source_ip: IpAddress
    address: SocketAddress


@dataclass(frozen=True, slots=True)
class _Upstream:
    """A workload that was chosen, and where it is reached."""

    workload: Workload
    port: int
    service: Service | None
    ip: IpAddress | None
    """None: it is reached by its network's gateway only."""

    @property
    def service_sans(self) -> tuple[Identity, ...]:
        return self.service.subject_alt_names if self.service else ()

    @property
    def sans(self) -> tuple[Identity, ...]:
        return (*self.service_sans, self.workload.identity)

    def route(
        self,
        transport: Transport,
        *,
        service: Service | None,
        port: int | None = None,
        authority: str = "",
        endpoint: SocketAddress | None = None,
        final_sans: tuple[Identity, ...] = (),
        waypoint: bool = False,
    ) -> Route | RouteRefusal:
        """The way to it; it has to have an IP."""
        if self.ip is None:
            return _nowhere(self.workload)
        return Route(
            transport=transport,
            ip=self.ip,
            port=port or self.port,
            authority=authority,
            endpoint=endpoint,
            sans=self.sans,
            final_sans=final_sans,
            workload=self.workload,
            service=service,
            waypoint=waypoint,
        )


def pool_key(route: Route, source: Workload, source_ip: IpAddress) -> PoolKey:
    """Which connections may share a route's tunnel."""
    return PoolKey(source.identity, route.sans, source_ip, route.address)


def outbound(
    state: MeshState,
    balancer: Balancer,
    source: Workload,
    destination: tuple[IpAddress, int],
    *,
    source_ip: IpAddress | None = None,
    names: Names = NO_NAMES,
) -> Route | RouteRefusal | Lookup:
    """Decide on a connection.

    Args:
        state: the mesh.
        balancer: of that state.
        source: who asks.
        destination: what it asks for; no IPv4 address in IPv6 form.
        source_ip: where it asks from, if not from the first of its own IPs.
        names: IPs of workloads' host names, as far as they are known.
    """
    decision = _Decision(state, balancer, source, destination, names)
    return decision.decide(source_ip)


class _Decision:
    """One decision: what all of its parts need to know."""

    def __init__(
        self,
        state: MeshState,
        balancer: Balancer,
        source: Workload,
        destination: tuple[IpAddress, int],
        names: Names,
    ) -> None:
        self._state = state
        self._balancer = balancer
        self._source = source
        self._ip, self._port = destination
        self._names = names

    def decide(self, source_ip: IpAddress | None) -> Route | RouteRefusal | Lookup:
        asked = self._state.address(
            self._state.network, self._ip, self._source.namespace
        )
        service = asked if isinstance(asked, Service) else None
        if service and (gateway := self._service_waypoint(service)):
            return self._by_waypoint(gateway, service)
        upstream = self._find((self._source.network, self._ip, self._port))
        if isinstance(upstream, RouteRefusal | Lookup):
            return upstream
        if upstream is None:
            return self._passthrough(service)
        if upstream.workload.network != self._source.network:
            return self._by_gateway(upstream, service)
        gateway = upstream.workload.waypoint
        if gateway and not service and not self._is_gateway(gateway, source_ip):
            return self._by_waypoint(gateway, None, upstream.service)
        return self._direct(upstream)

    def _passthrough(self, service: Service | None) -> Route | RouteRefusal:
        if service and service.mode is not LoadBalancerMode.PASSTHROUGH:
            text = f"no healthy endpoint for {service.key}"
            return RouteRefusal("no_endpoint", text)
        return Route(transport=Transport.TCP, ip=self._ip, port=self._port)

    def _direct(self, upstream: _Upstream) -> Route | RouteRefusal:
        if upstream.ip is None:
            return _nowhere(upstream.workload)
        if upstream.workload.protocol is model.Protocol.TCP:
            return upstream.route(Transport.TCP, service=upstream.service)
        return upstream.route(
            Transport.HBONE,
            service=upstream.service,
            port=HBONE_PORT,
            authority=_authority(upstream.ip, upstream.port),
            endpoint=(str(upstream.ip), upstream.port),
        )

    def _by_waypoint(
        self,
        gateway: GatewayAddress,
        service: Service | None,
        intended: Service | None = None,
    ) -> Route | RouteRefusal | Lookup:
        """Through a waypoint, which gets to know what was asked for."""
        waypoint = self._resolve(gateway, Purpose.WAYPOINT)
        if isinstance(waypoint, RouteRefusal | Lookup):
            return waypoint
        if waypoint is None:
            text = f"unknown waypoint: {gateway.destination}"
            return RouteRefusal("no_waypoint", text, errno.EHOSTUNREACH)
        if service and waypoint.workload.network != self._source.network:
            return self._by_gateway(waypoint, service)
        return waypoint.route(
            Transport.HBONE,
            service=service or intended,
            authority=_authority(self._ip, self._port),
            waypoint=True,
        )

    def _by_gateway(
        self, upstream: _Upstream, service: Service | None
    ) -> Route | RouteRefusal | Lookup:
        """To another network: its gateway gets to know the service's name."""
        there = upstream.workload
        gateway = there.network_gateway
        if service is None or gateway is None:
            text = f"{_name(there)} is on network {there.network!r}, without a gateway"
            return RouteRefusal("network", text, errno.EHOSTUNREACH)
        found = self._resolve(gateway, Purpose.STANDARD)
        if isinstance(found, RouteRefusal | Lookup):
            return found
        if found is None:
            text = f"unknown network gateway: {gateway.destination}"
            return RouteRefusal("network", text, errno.EHOSTUNREACH)
        return found.route(
            Transport.DOUBLE_HBONE,
            service=service,
            authority=f"{service.hostname}:{self._port}",
            final_sans=upstream.service_sans,
        )

    def _service_waypoint(self, service: Service) -> GatewayAddress | None:
        """One of the weighted ones; `waypoint`, if there are none or all weigh 0."""
        weighted = service.weighted_waypoints
        at = self._balancer.pick([it.weight for it in weighted]) if weighted else None
        return service.waypoint if at is None else weighted[at].destination

    def _resolve(
        self, gateway: GatewayAddress, purpose: Purpose
    ) -> _Upstream | RouteRefusal | Lookup | None:
        """A workload behind a gateway's IP or name."""
        port = gateway.hbone_mtls_port
        if address := gateway.destination.address:
            where = (address.network, address.address, port)
            return self._find(where, purpose)
        found = self._state.find(gateway.destination)
        if isinstance(found, Workload):
            return self._at(found, port, None, self._ip)
        return self._of_service(found, port, purpose, self._ip) if found else None

    def _find(
        self, where: tuple[str, IpAddress, int], purpose: Purpose = Purpose.STANDARD
    ) -> _Upstream | RouteRefusal | Lookup | None:
        """What has an IP: one of a service's endpoints, or a workload."""
        network, ip, port = where
        service = self._state.service_at(network, ip, self._source.namespace)
        if service:
            if service.mode is LoadBalancerMode.PASSTHROUGH:
                return None
            return self._of_service(service, port, purpose, ip)
        workload = self._state.workload_at(network, ip)
        return self._at(workload, port, None, ip) if workload else None

    def _of_service(
        self, service: Service, port: int, purpose: Purpose, asked: IpAddress
    ) -> _Upstream | RouteRefusal | Lookup | None:
        member = self._balancer.choose(service, port, self._source, purpose)
        target = target_port(service, member, port) if member else None
        if member is None or target is None:
            return None
        return self._at(member.workload, target, service, asked)

    def _at(
        self, workload: Workload, port: int, service: Service | None, asked: IpAddress
    ) -> _Upstream | RouteRefusal | Lookup:
        """Choose one of a workload's IPs: the one asked for, or its IP version."""
        ips = workload.workload_ips
        if asked in ips:
            return _Upstream(workload, port, service, asked)
        family = service.ip_families if service else None
        fit = [ip for ip in ips if family is None or family.accepts(ip)]
        same = [ip for ip in fit if ip.version == asked.version]
        if best := same or fit:
            return _Upstream(workload, port, service, best[0])
        if not workload.hostname:
            by_gateway = _Upstream(workload, port, service, None)
            return by_gateway if workload.network_gateway else _nowhere(workload)
        found = self._names.get(workload.hostname)
        if found is None:
            return Lookup(workload.hostname, asked.version)
        return _Upstream(workload, port, service, found)

    def _is_gateway(self, gateway: GatewayAddress, source_ip: IpAddress | None) -> bool:
        """Whether the source is the waypoint: it must not be sent to itself."""
        found = self._state.find(gateway.destination)
        if isinstance(found, Service):
            workloads = [it.workload for it in self._state.members_of(found)]
        else:
            workloads = [found] if found else []
        ip = source_ip or (*self._source.workload_ips, None)[0]
        return any(
            it.identity == self._source.identity and ip in it.workload_ips
            for it in workloads
        )


def _nowhere(workload: Workload) -> RouteRefusal:
    text = f"{_name(workload)} has no suitable IP"
    return RouteRefusal("no_address", text, errno.EHOSTUNREACH)


def _name(workload: Workload) -> str:
    return workload.uid or workload.key


def _authority(ip: IpAddress, port: int) -> str:
    text = str(ip)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def parse_destination(address: SocketAddress) -> tuple[IpAddress, int]:
    """A destination as `outbound` takes it; IPv4 in IPv6 form becomes IPv4."""
    ip = ip_address(address[0])
    mapped = ip.ipv4_mapped if ip.version == 6 else None
    return mapped or ip, address[1]
