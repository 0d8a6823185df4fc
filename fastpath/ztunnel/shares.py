"""What one sandbox may have of the process's descriptors, so that others have theirs.

Each connection and each UDP socket takes one: without this, one VM could take those of
all.
"""

from __future__ import annotations

import logging
import resource
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from vhost_user.engine import DEFAULT_MAX_CONNS

if TYPE_CHECKING:
    from fastpath.tsi.policy import SandboxPolicy
    from fastpath.ztunnel.model import Config, Sandbox

OWN_FDS: Final = 256
"""Descriptors that each sandbox, and the process, take besides connections and UDP
sockets: for control and datagram streams, and DNS queries that are under way."""
MAX_SHARE: Final = 1 << 20
"""Connections that a sandbox may have where descriptors are no bound."""
MAX_TUNNELS: Final = 4096
"""Of a gate, where descriptors are no bound."""
MAX_POOLS: Final = 1024
"""Peers that a sandbox has tunnels to, where descriptors are no bound."""
MAX_POOL_TUNNELS: Final = 256
"""To one of them, same."""
USUAL_POOL_TUNNELS: Final = 64
"""To one of them, where they are: 6,400 connections."""
MAX_CARRIED: Final = 1024
"""Connections to a service on another network by one gateway: each has a tunnel, which
is no descriptor, but takes memory."""
LEAST_POOLS: Final = 8
LEAST_SHARE: Final = 16
"""Connections that a sandbox gets however few descriptors there are."""

_log = logging.getLogger(__name__)


def raise_file_limit() -> None:
    """Take as many descriptors as we may: each relayed connection needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def share(config: Config) -> int:
    """Connections and UDP sockets that each sandbox, and the captured, can have."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MAX_SHARE
    users = len(config.fastpath.sandboxes) + 1
    found = (limit - users * OWN_FDS) // users
    return min(max(found, LEAST_SHARE), MAX_SHARE)


def within_share(config: Config, name: str, policy: SandboxPolicy) -> SandboxPolicy:
    """A sandbox's policy whose connections and sockets can be had all at once."""
    limits, most = policy.limits, share(config)
    sockets = min(limits.max_udp_sockets, most // 4)
    sandbox = next(it for it in config.fastpath.sandboxes if it.name == name)
    places = _places(config, sandbox)
    listeners = min(limits.max_listeners, most // 4 // max(places, 1))
    taken = sockets if policy.udp else 0
    taken += listeners * places if policy.published.ranges else 0
    if config.meshed(sandbox):
        ips = config.workload(sandbox.workload).workload_ips
        taken += len(ips) * max_tunnels(config, sandbox)
        pools = pool_limits(config)
        taken += pools.pools * pools.tunnels
    conns = min(limits.max_conns, (most - taken) // descriptors(sandbox))
    if conns < limits.max_conns != DEFAULT_MAX_CONNS:
        _log.warning(
            "%s: maxConns is %d: open files are limited (ulimit -Hn)", name, conns
        )
    limits = replace(
        limits,
        max_conns=conns,
        max_udp_sockets=sockets,
        max_listeners=listeners,
    )
    return replace(policy, limits=limits)


def max_tunnels(config: Config, sandbox: Sandbox) -> int:
    """Tunnels that each gate of a sandbox takes: each is a descriptor."""
    gates = len(config.workload(sandbox.workload).workload_ips)
    return min(MAX_TUNNELS, max(share(config) // 4 // gates, 1))


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Of the tunnels that a sandbox has made; each is a descriptor."""

    pools: int
    """Peers at a time."""
    tunnels: int
    """To each."""


def pool_limits(config: Config) -> PoolLimits:
    """What each sandbox, and the captured, can have: a quarter of its share."""
    most = share(config) // 4
    pools = min(max(most // USUAL_POOL_TUNNELS, LEAST_POOLS), MAX_POOLS)
    return PoolLimits(pools, min(max(most // pools, 1), MAX_POOL_TUNNELS))


def descriptors(sandbox: Sandbox) -> int:
    """How many one of its connections takes."""
    return 2 if sandbox.handoff and sandbox.handoff.ring else 1


def _places(config: Config, sandbox: Sandbox) -> int:
    """Addresses that a published port of a sandbox has, at most."""
    ips = config.workload(sandbox.workload).workload_ips
    return len(sandbox.publish) + (len(ips) if sandbox.pod_listeners else 0)
