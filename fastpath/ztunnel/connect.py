"""What is asked of the mesh for a connection: which tunnel, and what CONNECT says.

Spec: istio/ztunnel; see `istio.headers` for each header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastpath.ztunnel.istio.headers import baggage, forwarded_around
from fastpath.ztunnel.istio.outbound import parse_destination, pool_key

if TYPE_CHECKING:
    from fastpath.ztunnel.istio.model import Workload
    from fastpath.ztunnel.istio.outbound import PoolKey, Route
    from fastpath.ztunnel.istio.state import MeshState
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.schema import IpAddress


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


def connect(client: LocalWorkload, route: Route, source_ip: IpAddress) -> Connect:
    """What a route by HBONE takes.

    Args:
        client: who asks.
        route: where to.
        source_ip: whence.
    """
    return Connect(
        pool_key(route, client.workload, client.own_address(route.ip.version)),
        client.netns,
        route.authority,
        forwarded_around(str(source_ip), route.service),
        baggage(client.workload),
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
    return parse_destination(key.address)[0] in there.workload_ips
