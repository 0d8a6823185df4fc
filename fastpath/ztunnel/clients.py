"""Who asks: which workload a connection comes from.

A sandbox is known by the unix socket that its VM is attached to, a captured
(TPROXY) connection by its source IP. Nothing that the guest says counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastpath.tsi.policy import SandboxPolicy
from fastpath.ztunnel.model import Egress

if TYPE_CHECKING:
    from fastpath.tsi.policy import EgressPolicy
    from fastpath.ztunnel.decode import IpAddress
    from fastpath.ztunnel.identity import Identity
    from fastpath.ztunnel.model import Config, Workload


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """One workload whose outbound connections we carry."""

    name: str
    """The sandbox's name; empty when there is no sandbox."""
    workload: Workload
    identity: Identity
    policy: EgressPolicy
    udp: bool = False
    """Whether its UDP is carried."""

    @property
    def sandbox_policy(self) -> SandboxPolicy:
        """All that is decided for it."""
        return SandboxPolicy(egress=self.policy, udp=self.udp)


class Clients:
    """All workloads that may come to us.

    Args:
        config: checked (`config.check`).
    """

    def __init__(self, config: Config) -> None:
        self._sandboxes: dict[str, Client] = {}
        self._addresses: dict[IpAddress, Client] = {}
        sandboxes = {
            config.workload(sandbox.workload): sandbox
            for sandbox in config.fastpath.sandboxes
        }
        for workload in config.workloads:
            sandbox = sandboxes.get(workload)
            egress = sandbox.egress if sandbox else Egress()
            name = sandbox.name if sandbox else ""
            udp = sandbox is not None and sandbox.udp
            policy = egress.policy()
            client = Client(name, workload, workload.identity, policy, udp)
            if sandbox:
                self._sandboxes[name] = client
            for address in config.addresses_here(workload):
                self._addresses[address] = client

    def sandbox(self, name: str) -> Client:
        """The sandbox with this name; the caller got it from the same config."""
        return self._sandboxes[name]

    def at(self, address: IpAddress) -> Client | None:
        """The workload that has this IP on our network; None: unknown."""
        return self._addresses.get(address)
