"""Where an outbound TCP connection goes: the decision, without any I/O.

    destination --policy--> echo address      an engine service, by port
                            anything else     `istio.outbound`: an endpoint, a workload,
                                              TCP passthrough
                            but with a hand-off, all to the other proxy
                --policy--> what was chosen

Policy is asked twice: a service must not lead where a direct connection may not. Of
what goes by HBONE it is asked about the end, not about the tunnel's port, which stays
denied to programs. What needs HBONE and can't have it is refused (`_unsupported`):
plain TCP in its place would drop its mutual TLS. Which tunnel a stream is of, `pools`
knows.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fastpath.ztunnel.connect import connect, stands
from fastpath.ztunnel.istio.outbound import (
    Lookup,
    Route,
    RouteRefusal,
    Transport,
    outbound,
    parse_destination,
)
from fastpath.ztunnel.istio.services import Balancer
from fastpath.ztunnel.istio.state import MeshState
from vhost_user.engine import Chargen, Discard, Echo, Reset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastpath.ztunnel.connect import Behind, Connect
    from fastpath.ztunnel.hostnames import Hostnames
    from fastpath.ztunnel.model import Config, Service, Workload
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.engine import SocketAddress, Target
    from vhost_user.schema import IpAddress

ECHO_PORTS: Mapping[int, Target] = {7: Echo(), 9: Discard(), 19: Chargen()}
"""RFC 862, RFC 863, RFC 864."""
MAX_FIXED = 4096
"""Decisions that are kept."""


class Decision(NamedTuple):
    """What to do with one connection, and all that the log will say of it.

    A tuple, as `vhost_user.events.Event` is one.
    """

    destination: SocketAddress
    """What the program asked for."""
    target: Target
    """With `connect`, `pools` says it."""
    address: SocketAddress | None = None
    """Where it is dialled; None: nowhere."""
    endpoint: SocketAddress | None = None
    """What policy was asked about, besides the destination."""
    connect: Connect | None = None
    """None: it goes by no HBONE."""
    service: Service | None = None
    workload: Workload | None = None
    refusal: RouteRefusal | None = None
    cacheable: bool = False
    """The same destination always gets this decision."""
    lookup: str = ""
    """It can't be decided before the IPs of this name are known."""
    behind: Behind | None = None
    """Who is there instead of `workload`, once it has answered."""
    names: tuple[str, ...] = ()
    """Host names whose IPs it took, or would have taken."""

    @property
    def transport(self) -> Transport:
        """How it is carried to where it is dialled."""
        if self.connect is None:
            return Transport.TCP
        return Transport.DOUBLE_HBONE if self.connect.via else Transport.HBONE


@dataclass(slots=True)
class _Names:
    """Workloads' host names as `outbound` asks for them.

    Args:
        hostnames: what is known.
        version: the IP version that is preferred.
    """

    hostnames: Hostnames | None
    version: int
    asked: list[str] = field(default_factory=list)
    """An IP may be another one the next time."""

    def get(self, name: str) -> IpAddress | None:
        """An IP of a name, if one is known."""
        self.asked.append(name)
        return self.hostnames.find(name, self.version) if self.hostnames else None


class Routes:
    """The tables for `decide`.

    Args:
        config: checked.
        listener: our own capture listener: connecting to it would never end.
        rng: chooses among endpoints.
        hostnames: what workloads' names are; None: nobody looks them up.
    """

    def __init__(
        self,
        config: Config,
        *,
        listener: SocketAddress | None = None,
        rng: random.Random | None = None,
        hostnames: Hostnames | None = None,
    ) -> None:
        self._echo = config.fastpath.echo
        self._listener = listener
        self.hostnames = hostnames
        self._rng = rng or random.Random()  # noqa: S311 - balances load, no secret
        self.set_mesh(MeshState(config, config.fastpath.network))

    def set_mesh(self, state: MeshState) -> None:
        """Decide by another mesh from now on."""
        self._state = state
        self._balancer = Balancer(state, self._rng)
        self._fixed: dict[
            tuple[LocalWorkload, SocketAddress, IpAddress | None], Decision
        ] = {}
        """Decisions that stay; a guest can name any number of destinations."""

    def decide(
        self,
        client: LocalWorkload,
        destination: SocketAddress,
        source_ip: IpAddress | None = None,
    ) -> Decision:
        """Decide on one connection of `client`.

        Args:
            client: who asks.
            destination: IP and port; an IPv4 address may be in IPv6 form.
            source_ip: whence; None: from the client's IP of that version.
        """
        key = (client, destination, source_ip)
        decision = self._fixed.get(key)
        if decision is None:
            decision = self._decide(client, unmap(destination), source_ip)
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
        if refusal is None and decision.endpoint:
            refusal = self._denied(client, decision.endpoint)
        return refusal or self._strayed(client, decision)

    def _strayed(
        self, client: LocalWorkload, decision: Decision
    ) -> RouteRefusal | None:
        """Why a tunnel is not what the mesh wants any more."""
        if decision.connect is None or decision.workload is None:
            return None
        key = decision.connect.pool
        if key.source != client.identity:
            return RouteRefusal("mesh", "it has another identity now")
        if stands(decision.connect, decision.workload, decision.service, self._state):
            return None
        text = f"{format_address(key.address)} has another identity now, or none"
        return RouteRefusal("mesh", text)

    def _decide(
        self,
        client: LocalWorkload,
        destination: SocketAddress,
        source_ip: IpAddress | None,
    ) -> Decision:
        refusal = self._denied(client, destination)
        if refusal:
            return _refuse(destination, refusal)
        where = parse_destination(destination)
        if where[0] == self._echo:
            return _answer_here(destination)
        if client.proxy:
            return self._hand_over(client, destination, where[0])
        names = _Names(self.hostnames, where[0].version)
        route = outbound(
            self._state,
            self._balancer,
            client.workload,
            where,
            source_ip=source_ip,
            names=names,
        )
        if isinstance(route, RouteRefusal):
            service = self._state.service_at(
                self._state.network, where[0], client.workload.namespace
            )
            found = _refuse(destination, route, service)
        elif isinstance(route, Lookup):
            found = self._look_up(destination, route.hostname)
        elif route.transport is not Transport.TCP:
            source_ip = source_ip or client.own_address(where[0].version)
            found = self._tunnelled(client, destination, route, source_ip)
        else:
            found = self._dialled(client, destination, route)
        if not names.asked:
            return found
        return found._replace(cacheable=False, names=tuple(names.asked))

    def _look_up(self, destination: SocketAddress, hostname: str) -> Decision:
        """Its IPs have to be known first, unless it is known that there are none."""
        why = f"{hostname} is not looked up here"
        if self.hostnames:
            why = self.hostnames.why_not(hostname)
        refusal = RouteRefusal("hostname", why, errno.EHOSTUNREACH)
        if why:
            return _refuse(destination, refusal)
        return Decision(destination, Reset(refusal.errno), lookup=hostname)

    def _hand_over(
        self, client: LocalWorkload, destination: SocketAddress, address: IpAddress
    ) -> Decision:
        """Leave it to the other proxy what a service or a workload is.

        So a VIP arrives there as one.
        """
        network = self._state.network
        namespace = client.workload.namespace
        return Decision(
            destination,
            client.dial(destination),
            destination,
            service=self._state.service_at(network, address, namespace),
            workload=self._state.workload_at(network, address),
            cacheable=_stays(client, destination),
        )

    def _dialled(
        self, client: LocalWorkload, destination: SocketAddress, route: Route
    ) -> Decision:
        """By TCP, if it may."""
        address = route.address
        endpoint = address if address != destination else None
        refused = self._denied(client, address) if endpoint else None
        if address == self._listener:
            text = f"{format_address(address)} is this process's own listener"
            refused = RouteRefusal("self_call", text)
        if refused:
            return _refuse(destination, refused, route.service, route.workload)
        cacheable = _stays(client, destination) and route.service is None
        return Decision(
            destination,
            client.dial(address),
            address,
            endpoint,
            service=route.service,
            workload=route.workload,
            cacheable=cacheable,
        )

    def _tunnelled(
        self,
        client: LocalWorkload,
        destination: SocketAddress,
        route: Route,
        source_ip: IpAddress,
    ) -> Decision:
        """By HBONE, if the engine can, and it may."""
        refused = _unsupported(client, destination, route)
        endpoint = route.endpoint if route.endpoint != destination else None
        if refused is None and endpoint:
            refused = self._denied(client, endpoint)
        if refused:
            return _refuse(destination, refused, route.service, route.workload)
        return Decision(
            destination,
            Reset(),
            route.address,
            endpoint,
            connect(client, route, source_ip, self._state.network),
            route.service,
            route.workload,
            cacheable=_stays(client, destination) and route.service is None,
        )

    def _denied(
        self, client: LocalWorkload, address: SocketAddress
    ) -> RouteRefusal | None:
        denial = client.policy.egress.check(address)
        if denial is None:
            return None
        text = f"{format_address(address)}: {denial.text}"
        return RouteRefusal(denial.reason, text, denial.error)


def _unsupported(
    client: LocalWorkload, destination: SocketAddress, route: Route
) -> RouteRefusal | None:
    """Why the engine can't carry a connection as the mesh wants it."""
    where = format_address(destination)
    if route.transport is Transport.DOUBLE_HBONE and not route.final_sans:
        text = f"{route.authority} is on another network: nobody there can prove to be"
        return RouteRefusal("network", f"{text} it, for it has no subjectAltNames")
    if client.meshed:
        return None
    why = "not supported without `certificates`, nor with `hbone: false`"
    if route.waypoint:
        return RouteRefusal("waypoint", f"{where} is behind a waypoint: {why}")
    return RouteRefusal("hbone", f"{route.authority} takes HBONE only: {why}")


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
    ip, port = parse_destination(address)
    return str(ip), port


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
