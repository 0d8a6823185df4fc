"""What a connection to a workload is answered, as Istio's ztunnel decides it.

    authority --parsed--> --ours?--> --port--> --policies--> where it goes
                 400        400        503        401

By HBONE the peer's identity is proved and the port is in `authority`; in plain text
there is neither: only the policies are asked.

Spec: istio/ztunnel 62d8265, and what a run of it showed (tests/netns).
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from fastpath.ztunnel.istio.authorize import Connection, Verdict, judge
from fastpath.ztunnel.istio.model import Service, TunnelProtocol
from vhost_user.schema import Between

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastpath.identity import Identity
    from fastpath.ztunnel.istio.model import Workload
    from fastpath.ztunnel.istio.state import MeshState
    from vhost_user.schema import IpAddress

BAD_REQUEST: Final = 400
UNAUTHORIZED: Final = 401
UNAVAILABLE: Final = 503
OWN_PORTS: Final = frozenset({15001, 15006, 15008, 15080})
"""Ztunnel's: nothing leads there, or connections went round in circles."""

SELF_CALL: Final = "attempted recursive call to ourselves"

_PORT = Between(1, 65535)
_NAME = re.compile(r"[A-Za-z0-9*][A-Za-z0-9*._-]{0,254}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Authority:
    """`IP:PORT`, `[IPv6]:PORT` or `HOSTNAME:PORT`."""

    host: IpAddress | str
    port: int

    @classmethod
    def parse(cls, text: str) -> Authority:
        """Read it, or raise `ValueError`."""
        host, _, port = text.rpartition(":")
        number = _PORT.parse(port)
        if host.startswith("[") and host.endswith("]"):
            return cls(IPv6Address(host[1:-1]), number)
        with contextlib.suppress(ValueError):
            return cls(IPv4Address(host), number)
        if not _NAME.fullmatch(host):
            raise ValueError(f"no valid authority: {text!r}")
        return cls(host, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A CONNECT to a workload."""

    authority: str
    source: IpAddress
    """The peer's."""
    reached: IpAddress
    """The workload's IP that the peer connected to."""
    identity: Identity
    """The peer's."""
    forwarded_host: str = ""
    """The service that the peer was asked for, if it says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """It is not made."""

    status: int
    text: str
    denied: Accepted | None = field(default=None, compare=False)
    """What it would be, if it is only policies that deny it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """What precedes the bytes: a PROXY header."""

    destination: tuple[IpAddress, int]
    """What was asked for."""
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Where it goes."""

    ip: IpAddress
    port: int
    local: bool = False
    """To this port of the workload's loopback address, not of `ip`."""
    tunnel: Tunnel | None = None
    service: Service | None = None
    """For the labels, a guess where the peer did not say."""
    connection: Connection
    """What policies are asked about, when they change."""
    verdict: Verdict


def inbound(
    state: MeshState, workload: Workload, request: Request
) -> Accepted | Rejected:
    """Decide on a CONNECT to a workload."""
    try:
        authority = Authority.parse(request.authority)
    except ValueError as error:
        return Rejected(status=BAD_REQUEST, text=str(error))
    if not _is_for(state, workload, authority.host, request.reached):
        text = f"ip mismatch: {request.reached} != {authority.host}"
        return Rejected(status=BAD_REQUEST, text=text)
    services: Sequence[Service] = state.services_of(workload)
    port = authority.port
    if isinstance(authority.host, str):
        service = state.service_named(authority.host, workload.namespace)
        target = _port_of(state, service, port, workload) if service else 0
        if service is None or not target:
            what = "port" if service else "service or workload"
            text = f"no {what} for hostname: {authority.host}:{port}"
            return Rejected(status=UNAVAILABLE, text=text)
        services, port = [service], target
    if port in OWN_PORTS:
        return Rejected(status=UNAVAILABLE, text=SELF_CALL)
    return _to(state, workload, request, authority, services, port)


def _to(
    state: MeshState,
    workload: Workload,
    request: Request,
    authority: Authority,
    services: Sequence[Service],
    port: int,
) -> Accepted | Rejected:
    """Decide, now that it is known which port is meant."""
    tunnel = workload.application_tunnel
    proxied = tunnel is not None and tunnel.protocol is TunnelProtocol.PROXY
    target = tunnel.port or port if tunnel else port
    destination: tuple[IpAddress, int] | None = None
    if tunnel:
        destination = _asked_for(state, authority, services)
        if destination is None:
            text = f"requested service {authority.host} found, but has no IP addresses"
            return Rejected(status=UNAVAILABLE, text=text)
    connection = Connection(request.source, request.reached, target, request.identity)
    header = None
    if proxied and destination:
        header = Tunnel(destination=destination, identity=request.identity)
    verdict = judge(state.policies_of(workload), connection)
    accepted = Accepted(
        ip=request.reached,
        port=target,
        local=proxied,
        tunnel=header,
        service=_guess(state, services, target, workload, request.forwarded_host),
        connection=connection,
        verdict=verdict,
    )
    if verdict.allowed:
        return accepted
    text = f"connection closed due to policy rejection: {verdict.text}"
    return Rejected(status=UNAUTHORIZED, text=text, denied=accepted)


def _is_for(
    state: MeshState, workload: Workload, host: IpAddress | str, reached: IpAddress
) -> bool:
    """Whether the peer asks for us, or for something whose waypoint we are."""
    if isinstance(host, str) or host == reached or workload.application_tunnel:
        return True
    asked = state.address(state.network, host, None)
    waypoint = asked.waypoint if asked else None
    found = state.find(waypoint.destination) if waypoint else None
    if isinstance(found, Service):
        return any(it.workload is workload for it in state.members_of(found))
    return found is not None and reached in found.workload_ips


def _port_of(state: MeshState, service: Service, port: int, workload: Workload) -> int:
    """Where a workload serves a service's port; 0: nobody says."""
    for member in state.members_of(service):
        if member.workload is workload and member.ports.get(port):
            return member.ports[port]
    return service.ports.get(port, 0)


def _asked_for(
    state: MeshState, authority: Authority, services: Sequence[Service]
) -> tuple[IpAddress, int] | None:
    """The destination as an IP, for PROXY; of a service one of ours, IPv4 first."""
    if not isinstance(authority.host, str):
        return authority.host, authority.port
    vips = sorted(
        services[0].vips,
        key=lambda vip: (vip.network != state.network, vip.address.version),
    )
    return (vips[0].address, authority.port) if vips else None


def guess(state: MeshState, workload: Workload, port: int) -> Service | None:
    """Which of a workload's services a connection to one of its ports is for."""
    return _guess(state, state.services_of(workload), port, workload, "")


def _guess(
    state: MeshState,
    services: Sequence[Service],
    port: int,
    workload: Workload,
    hostname: str,
) -> Service | None:
    """Which service it is for: the one that the peer names, or one with the port."""
    for service in services:
        if hostname and service.hostname == hostname:
            return service
    for service in services:
        for asked in service.ports:
            if port == _port_of(state, service, asked, workload):
                return service
    return None
