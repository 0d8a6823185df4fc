"""Which engine each VM is on.

Guests reach each other within one engine only. So VMs that share a group, directly or
by way of others, are placed as a whole: the largest set first, each on the engine that
has the fewest VMs by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhost_user.engine import MAX_DEVICES
from vhost_user.vsock.config import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


def place(groups: Sequence[frozenset[str]], threads: int) -> list[int]:
    """Return the engine of each VM, from 0; those used are the lowest.

    Args:
        groups: of each VM.
        threads: engines that there may be.

    Raises:
        ConfigError: an engine would get more than `MAX_DEVICES`.
    """
    loads = [0] * threads
    placed = [0] * len(groups)
    for vms in _wholes(groups):
        engine = loads.index(min(loads))
        loads[engine] += len(vms)
        if len(vms) > MAX_DEVICES:
            name = min(groups[vms[0]])
            raise ConfigError(
                f"{len(vms)} VMs are joined by groups ({name!r} is one), an engine "
                f"takes {MAX_DEVICES}: give them smaller groups (groups)"
            )
        if loads[engine] > MAX_DEVICES:
            raise ConfigError(
                f"{len(groups)} VMs on engines of {MAX_DEVICES} each, groups as a "
                f"whole: {threads} engines don't suffice; raise --threads"
            )
        for vm in vms:
            placed[vm] = engine
    return placed


def _wholes(groups: Sequence[frozenset[str]]) -> list[list[int]]:
    """Return the VMs that groups join, as indexes; the largest set first."""
    parents = list(range(len(groups)))

    def root(vm: int) -> int:
        while parents[vm] != vm:
            parents[vm] = vm = parents[parents[vm]]
        return vm

    members: dict[str, int] = {}
    for vm, names in enumerate(groups):
        for name in names:
            parents[root(vm)] = root(members.setdefault(name, vm))
    wholes: dict[int, list[int]] = {}
    for vm in range(len(groups)):
        wholes.setdefault(root(vm), []).append(vm)
    return sorted(wholes.values(), key=len, reverse=True)
