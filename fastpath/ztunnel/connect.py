"""What is asked of the mesh for a connection: which tunnel, and what CONNECT says.

Spec: istio/ztunnel; see `istio.headers` for each header.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from fastpath.ztunnel.istio.headers import baggage, forwarded_around
from fastpath.ztunnel.istio.outbound import Transport, parse_destination, pool_key

if TYPE_CHECKING:
    from fastpath.identity import Identity
    from fastpath.ztunnel.istio.headers import Said
    from fastpath.ztunnel.istio.model import Service, Workload
    from fastpath.ztunnel.istio.outbound import PoolKey, Route
    from fastpath.ztunnel.istio.state import MeshState
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.schema import IpAddress


class Behind(NamedTuple):
    """Who answered from another network: whom its gateway led to."""

    said: Said
    """What it says of itself."""
    identity: str
    """Its SPIFFE ID, proved by mutual TLS."""


@dataclass(frozen=True, slots=True)
class Connect:
    """A CONNECT in a tunnel that others may share."""

    pool: PoolKey
    netns: int
    """Where the tunnel is made; see `Dial.netns`."""
    authority: str
    forwarded: tuple[str, str]
    """Before and behind the client's port."""
    baggage: str
    network: str | None = None
    """The network that it comes from, if it goes to another one."""
    via: Connect | None = None
    """A CONNECT to a gateway, whose stream carries the tunnel in place of TCP."""

    def peer(self, workload: Workload | None) -> Identity | None:
        """Who is at the end, as far as that is known.

        Args:
            workload: the next hop.
        """
        if self.via is None:
            return workload.identity if workload else None
        return self.pool.sans[0] if len(self.pool.sans) == 1 else None


def connect(
    client: LocalWorkload, route: Route, source_ip: IpAddress, network: str
) -> Connect:
    """What a route by HBONE takes.

    Args:
        client: who asks.
        route: where to.
        source_ip: whence.
        network: ours.
    """
    outer = Connect(
        pool_key(route, client.workload, client.own_address(route.ip.version)),
        client.netns,
        route.authority,
        forwarded_around(str(source_ip), route.service),
        baggage(client.workload),
    )
    if route.transport is not Transport.DOUBLE_HBONE:
        return outer
    within = replace(outer.pool, sans=route.final_sans)
    return replace(outer, pool=within, netns=0, network=network, via=outer)


def stands(
    asked: Connect, workload: Workload, service: Service | None, state: MeshState
) -> bool:
    """Whether a tunnel leads still to whom the mesh has there.

    Args:
        asked: what it is for.
        workload: the next hop, as it was then.
        service: what was asked for, same.
        state: the mesh now.
    """
    if asked.via is None:
        return leads_to(asked.pool, workload, state)
    there = state.service(service.key) if service else None
    return (
        there is not None
        and {*asked.pool.sans} <= {*there.subject_alt_names}
        and leads_to(asked.via.pool, workload, state)
    )


def leads_to(key: PoolKey, workload: Workload, state: MeshState) -> bool:
    """Whether a tunnel's peer is still who the mesh has there.

    Args:
        key: the tunnel's.
        workload: whom it was made to.
        state: the mesh now.
    """
    there = state.again(workload)
    if there is None or there.identity not in key.sans:
        return False
    if not there.workload_ips:  # its IPs are those of its name
        return bool(there.hostname) and there.hostname == workload.hostname
    return parse_destination(key.address)[0] in there.workload_ips
