"""Which endpoint of a service a connection goes to.

    endpoints --port, address--> --scopes--> the best ones --weight--> one of them

What can be chosen hangs on the service, the port and where the source is, so it is
worked out once for each, and a choice is a look-up and a random number.
"""

from __future__ import annotations

import bisect
import enum
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.ztunnel.istio.model import LoadBalancerMode, Scope

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from fastpath.ztunnel.istio.model import LoadBalancer, Service, Workload
    from fastpath.ztunnel.istio.state import Member, MeshState

MAX_CHOICES: Final = 1024
"""Choices that are kept: services, ports and places of sources that are in use."""

_OF_SCOPE: Final[Mapping[Scope, Callable[[Workload], str]]] = {
    Scope.REGION: lambda it: it.locality.region,
    Scope.ZONE: lambda it: it.locality.zone,
    Scope.SUBZONE: lambda it: it.locality.subzone,
    Scope.NODE: lambda it: it.node,
    Scope.CLUSTER: lambda it: it.cluster_id,
    Scope.NETWORK: lambda it: it.network,
}


class Purpose(enum.Enum):
    """What an endpoint is looked for."""

    STANDARD = enum.auto()
    WAYPOINT = enum.auto()
    """Its service need not have the port, if it has an application tunnel."""


@dataclass(frozen=True, slots=True)
class _Choice:
    members: tuple[Member, ...]
    weights: Sequence[int]
    """Of a member and all before it."""


class Balancer:
    """Chooses endpoints.

    Args:
        state: has them.
        rng: chooses among those of the same rank.
    """

    def __init__(self, state: MeshState, rng: random.Random) -> None:
        self._state = state
        self._rng = rng
        self._choices: dict[Hashable, _Choice] = {}

    def choose(
        self, service: Service, port: int, source: Workload, purpose: Purpose
    ) -> Member | None:
        """One of a service's endpoints; None: there is none for the port."""
        key = (service.key, port, purpose, _place(service, source))
        choice = self._choices.get(key)
        if choice is None:
            choice = self._work_out(service, port, source, purpose)
            if len(self._choices) >= MAX_CHOICES:
                self._choices.clear()
            self._choices[key] = choice
        if not choice.weights or not choice.weights[-1]:
            return None
        at = self._rng.randrange(choice.weights[-1])
        return choice.members[bisect.bisect_right(choice.weights, at)]

    def pick(self, weights: Sequence[int]) -> int | None:
        """An index, by weight; None: they are all 0."""
        if not any(weights):
            return None
        return self._rng.choices(range(len(weights)), weights)[0]

    def _work_out(
        self, service: Service, port: int, source: Workload, purpose: Purpose
    ) -> _Choice:
        members = [
            member
            for member in self._state.members_of(service)
            if _serves(service, member, port, purpose)
            and _can_be_reached(member.workload, source)
        ]
        balancer = service.load_balancer
        if balancer and balancer.mode is not LoadBalancerMode.STANDARD:
            members = _preferred(members, balancer, source)
        weights = itertools.accumulate(it.workload.capacity for it in members)
        return _Choice(tuple(members), tuple(weights))


def target_port(service: Service, member: Member, port: int) -> int | None:
    """Where an endpoint serves a port of the service; None: nobody says."""
    found = member.ports.get(port) or service.ports.get(port)
    if found:
        return found
    tunnel = member.workload.application_tunnel
    return port if tunnel and tunnel.port else None


def _place(service: Service, source: Workload) -> Hashable:
    """All of a source that a choice hangs on."""
    if service.mode is LoadBalancerMode.STANDARD:
        return source.network
    return tuple(of(source) for of in _OF_SCOPE.values())


def _serves(service: Service, member: Member, port: int, purpose: Purpose) -> bool:
    known = port in service.ports
    if purpose is Purpose.WAYPOINT:
        return known or member.workload.application_tunnel is not None
    return known and bool(service.ports[port] or member.ports.get(port))


def _can_be_reached(workload: Workload, source: Workload) -> bool:
    """One without an address only by a gateway, from another network."""
    has_address = bool(workload.workload_ips or workload.hostname)
    by_gateway = workload.network_gateway and workload.network != source.network
    return has_address or bool(by_gateway)


def _preferred(
    members: list[Member], balancer: LoadBalancer, source: Workload
) -> list[Member]:
    """Those of the highest rank; with `Strict`, of the highest that there can be."""
    ranks = [_rank(member.workload, balancer, source) for member in members]
    wanted = balancer.routing_preferences
    if balancer.mode is LoadBalancerMode.STRICT:
        complete = [matched == len(wanted) for matched, _ in ranks]
        members = list(itertools.compress(members, complete))
        ranks = list(itertools.compress(ranks, complete))
    best = max((rank for _, rank in ranks), default=0)
    pairs = zip(members, ranks, strict=True)
    return [member for member, (_, rank) in pairs if rank == best]


def _rank(
    workload: Workload, balancer: LoadBalancer, source: Workload
) -> tuple[int, int]:
    """How many preferences match, one after the other, and the rank by that.

    With `Network` first, an endpoint of the source's network goes before all others;
    of those of other networks the rest of the preferences count.
    """
    wanted = balancer.routing_preferences
    network_first = wanted[:1] == (Scope.NETWORK,)
    matched = more = 0
    for scope in wanted:
        same = _OF_SCOPE[scope](workload) == _OF_SCOPE[scope](source)
        if scope is Scope.NETWORK and network_first:
            if not same:
                continue
            more = len(wanted) - 1
        if not same:
            break
        matched += 1
    return matched, matched + more
