"""Where an outbound TCP connection goes: the decision, without any I/O.

    destination --policy--> echo address      an engine service, by port
                            service VIP       a weighted random healthy endpoint
                            workload IP       that workload
                            anything else     TCP passthrough
                            but with a hand-off, all to the other proxy
                --policy--> what was chosen

Policy is asked twice: a service must not lead where a direct connection may not.
Workloads that speak HBONE only, and waypoints, are refused: this process has no
HBONE client, and plain TCP in its place would drop their mutual TLS.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from fastpath.ztunnel.model import HealthStatus, Protocol
from vhost_user.engine import Chargen, Discard, Echo, Reset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fastpath.ztunnel.model import Config, Service, Workload
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.engine import SocketAddress, Target
    from vhost_user.schema import IpAddress

ECHO_PORTS: Mapping[int, Target] = {7: Echo(), 9: Discard(), 19: Chargen()}
"""RFC 862, RFC 863, RFC 864."""
MAX_FIXED = 4096
"""Decisions that are kept."""


@dataclass(frozen=True, slots=True)
class RouteRefusal:
    """Why a connection is not made."""

    reason: str
    """A label: few values, no addresses."""
    text: str
    """For the log: one line, with the particulars."""
    errno: int = errno.ECONNREFUSED


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one connection, and all that the log will say of it."""

    destination: SocketAddress
    """What the program asked for."""
    target: Target
    address: SocketAddress | None = None
    """Where it is dialled; None: nowhere."""
    service: Service | None = None
    workload: Workload | None = None
    refusal: RouteRefusal | None = None
    cacheable: bool = False
    """The same destination always gets this decision."""


class Routes:
    """The tables for `decide`.

    Args:
        config: checked.
        listener: our own capture listener: connecting to it would never end.
        rng: chooses among endpoints.
    """

    def __init__(
        self,
        config: Config,
        *,
        listener: SocketAddress | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._echo = config.fastpath.echo
        self._network = config.fastpath.network
        self._listener = listener
        self._rng = rng or random.Random()  # noqa: S311 - balances load, no secret
        self._fixed: dict[tuple[LocalWorkload, SocketAddress], Decision] = {}
        """Decisions that stay; a guest can name any number of destinations."""
        self._services = {
            vip.address: service
            for service in config.services
            for vip in service.vips
            if vip.network == self._network
        }
        self._workloads = {
            address: workload
            for workload in config.workloads
            for address in config.addresses_here(workload)
        }
        self._members = {
            service.key: [w for w in config.workloads if service.key in w.services]
            for service in config.services
        }

    def decide(self, client: LocalWorkload, destination: SocketAddress) -> Decision:
        """Decide on one connection of `client`.

        Args:
            client: who asks.
            destination: IP and port; an IPv4 address may be in IPv6 form.
        """
        key = (client, destination)
        decision = self._fixed.get(key)
        if decision is None:
            decision = self._decide(client, unmap(destination))
            if decision.cacheable:
                if len(self._fixed) >= MAX_FIXED:
                    self._fixed.clear()
                self._fixed[key] = decision
        return decision

    def forget(self, client: LocalWorkload) -> None:
        """Keep no decision of `client`: its policy is another one."""
        self._fixed = {key: it for key, it in self._fixed.items() if key[0] != client}

    def denied(self, client: LocalWorkload, decision: Decision) -> RouteRefusal | None:
        """Why the policy that `client` has now denies what was decided before."""
        if decision.address is None:  # nothing was dialled: DNS, answered here
            return None
        refusal = self._denied(client, unmap(decision.destination))
        if refusal is None and decision.address != decision.destination:
            refusal = self._denied(client, decision.address)
        return refusal

    def _decide(self, client: LocalWorkload, destination: SocketAddress) -> Decision:
        refusal = self._denied(client, destination)
        if refusal:
            return _refuse(destination, refusal)
        address = ip_address(destination[0])
        if address == self._echo:
            return _answer_here(destination)
        if client.proxy:
            return self._hand_over(client, destination, address)
        if service := self._services.get(address):
            return self._balance(client, destination, address, service)
        workload = self._workloads.get(address)
        decision = self._direct(client, destination, destination, workload)
        return replace(
            decision,
            cacheable=_stays(client, destination) and decision.refusal is None,
        )

    def _hand_over(
        self, client: LocalWorkload, destination: SocketAddress, address: IpAddress
    ) -> Decision:
        """Leave it to the other proxy what a service or a workload is.

        So a VIP arrives there as one.
        """
        return Decision(
            destination,
            client.dial(destination),
            destination,
            self._services.get(address),
            self._workloads.get(address),
            cacheable=_stays(client, destination),
        )

    def _balance(
        self,
        client: LocalWorkload,
        destination: SocketAddress,
        vip: IpAddress,
        service: Service,
    ) -> Decision:
        endpoints = list(self._endpoints(service, vip, destination[1]))
        weights = [workload.capacity for workload, _ in endpoints]
        if not any(weights):
            refusal = RouteRefusal(
                "no_endpoint", f"no healthy endpoint for {service.key}"
            )
            return _refuse(destination, refusal, service)
        (choice,) = self._rng.choices(endpoints, weights)
        workload, address = choice
        refused = self._denied(client, address)
        if refused:
            return _refuse(destination, refused, service, workload)
        return self._direct(client, destination, address, workload, service)

    def _endpoints(
        self, service: Service, vip: IpAddress, port: int
    ) -> Iterator[tuple[Workload, SocketAddress]]:
        """Healthy members that serve `port`, each with the address to dial."""
        if port not in service.ports:
            return
        for workload in self._members[service.key]:
            target_port = workload.services[service.key].get(port, 0)
            target_port = target_port or service.ports[port]
            healthy = workload.status is HealthStatus.HEALTHY
            if not healthy or not target_port or not workload.workload_ips:
                continue
            ips = workload.workload_ips
            same_family = [ip for ip in ips if ip.version == vip.version]
            yield workload, (str((same_family or ips)[0]), target_port)

    def _direct(
        self,
        client: LocalWorkload,
        destination: SocketAddress,
        address: SocketAddress,
        workload: Workload | None,
        service: Service | None = None,
    ) -> Decision:
        refusal = self._unreachable(address, workload)
        if refusal:
            return _refuse(destination, refusal, service, workload)
        return Decision(
            destination,
            client.dial(address),
            address,
            service,
            workload,
        )

    def _denied(
        self, client: LocalWorkload, address: SocketAddress
    ) -> RouteRefusal | None:
        denial = client.policy.egress.check(address)
        if denial is None:
            return None
        text = f"{format_address(address)}: {denial.text}"
        return RouteRefusal(denial.reason, text, denial.error)

    def _unreachable(
        self, address: SocketAddress, workload: Workload | None
    ) -> RouteRefusal | None:
        where = format_address(address)
        if address == self._listener:
            return RouteRefusal("self_call", f"{where} is this process's own listener")
        if workload is None:
            return None
        if workload.waypoint:
            return RouteRefusal(
                "waypoint", f"{where} is behind a waypoint: not supported"
            )
        if workload.protocol is Protocol.HBONE:
            return RouteRefusal("hbone", f"{where} takes HBONE only: not supported yet")
        if workload.network != self._network:
            return RouteRefusal("network", f"{where} is on network {workload.network}")
        return None


def _stays(client: LocalWorkload, destination: SocketAddress) -> bool:
    """Whether what the policy says of a destination hangs on nothing else.

    Whether ztunnel's ports are denied hangs on the addresses that the host has now.
    """
    return not client.policy.egress.may_change(destination[1])


def format_address(address: SocketAddress) -> str:
    """`192.0.2.1:80` or `[2001:db8::1]:80`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unmap(address: SocketAddress) -> SocketAddress:
    """An IPv4 address in IPv6 form (`::ffff:192.0.2.1`) as an IPv4 address."""
    host, port = address
    parsed = ip_address(host)
    mapped = parsed.ipv4_mapped if parsed.version == 6 else None
    return (str(mapped), port) if mapped else (str(parsed), port)


def _answer_here(destination: SocketAddress) -> Decision:
    target = ECHO_PORTS.get(destination[1])
    if target is None:
        text = f"{format_address(destination)}: the echo address serves 7, 9 and 19"
        return _refuse(destination, RouteRefusal("no_endpoint", text))
    return Decision(destination, target, destination, cacheable=True)


def _refuse(
    destination: SocketAddress,
    refusal: RouteRefusal,
    service: Service | None = None,
    workload: Workload | None = None,
) -> Decision:
    return Decision(
        destination,
        Reset(refusal.errno),
        service=service,
        workload=workload,
        refusal=refusal,
    )
