"""Who asks: which workload a connection comes from.

A sandbox is known by the unix socket that its VM is attached to, a captured
(TPROXY) connection by its source IP. Nothing that the guest says counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastpath.tsi.policy import ISTIO_PORTS, SandboxPolicy, Surroundings
from fastpath.tsi.policyfile import Egress
from vhost_user.engine import Dial

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from fastpath.identity import Identity
    from fastpath.ztunnel.handoffs import Proxy
    from fastpath.ztunnel.model import Config, Sandbox, Workload
    from fastpath.ztunnel.pods import Pod
    from vhost_user.engine import Ring, SocketAddress
    from vhost_user.schema import IpAddress


@dataclass(slots=True, eq=False)
class LocalWorkload:
    """One workload whose outbound connections we carry."""

    name: str
    """The sandbox's name; empty when there is no sandbox."""
    workload: Workload
    identity: Identity
    policy: SandboxPolicy
    """The current one: `Outbound.set_policy` puts another in its place."""
    pod: Pod | None = None
    """Where its connections are made; None: in our own network namespace."""
    proxy: Proxy | None = None
    """Where they go in place of their destinations; None: nowhere else."""
    meshed: bool = False
    """Whether this process speaks HBONE for it."""

    def dial(self, address: SocketAddress) -> Dial | Ring:
        """How the engine reaches an address for it."""
        return (
            self.proxy.dial(address, self.netns)
            if self.proxy
            else Dial(address, self.netns)
        )

    @property
    def netns(self) -> int:
        """What `Dial.netns` is for it."""
        return self.pod.netns if self.pod else 0

    def own_address(self, version: int) -> IpAddress:
        """The pod IP that it has for destinations of an IP version."""
        ips = self.workload.workload_ips
        return next((ip for ip in ips if ip.version == version), ips[0])


class LocalWorkloads:
    """All workloads that may come to us.

    Args:
        config: checked (`config.check`).
        policies: what policy files say, by sandbox.
        ports: ztunnel's own; looked at whenever a policy is asked.
    """

    def __init__(
        self,
        config: Config,
        policies: Mapping[str, SandboxPolicy] | None = None,
        *,
        ports: Collection[int] = ISTIO_PORTS,
    ) -> None:
        self._ports = ports
        self._policies = policies or {}
        self._sandboxes: dict[str, LocalWorkload] = {}
        self._captured: dict[str, LocalWorkload] = {}
        """Those that are no sandbox's; by uid, or namespace and name."""
        self._addresses: dict[IpAddress, LocalWorkload] = {}
        self.set_mesh(config)

    def set_mesh(self, config: Config) -> None:
        """Know the workloads of another mesh; who was there stays the same object."""
        before, self._captured = self._captured, {}
        self._addresses = {}
        sandboxes = {
            config.workload(sandbox.workload): sandbox
            for sandbox in config.fastpath.sandboxes
        }
        for workload in config.workloads:
            sandbox = sandboxes.get(workload)
            key = workload.uid or workload.key
            name = sandbox.name if sandbox else ""
            client = self._sandboxes.get(name) if sandbox else before.get(key)
            if client is None:
                client = self._new(config, workload, sandbox)
            client.workload, client.identity = workload, workload.identity
            if sandbox:
                self._sandboxes[name] = client
            else:
                self._captured[key] = client
            if sandbox and (sandbox.netns or sandbox.handoff):
                continue  # what leaves its pod is caught there, or handed over
            for address in config.addresses_here(workload):
                self._addresses[address] = client

    def _new(
        self, config: Config, workload: Workload, sandbox: Sandbox | None
    ) -> LocalWorkload:
        egress = (sandbox.egress if sandbox else None) or Egress()
        name = sandbox.name if sandbox else ""
        policy = self._policies.get(name) or SandboxPolicy(egress=egress.policy())
        client = LocalWorkload(name, workload, workload.identity, policy)
        client.policy = self.for_client(client, policy)
        client.meshed = (
            config.meshed(sandbox) if sandbox else bool(config.fastpath.certificates)
        )
        return client

    def sandbox(self, name: str) -> LocalWorkload:
        """The sandbox with this name; the caller got it from the same config."""
        return self._sandboxes[name]

    def for_client(self, client: LocalWorkload, policy: SandboxPolicy) -> SandboxPolicy:
        """A policy that also denies what no policy file can know of.

        A captured connection left its pod, so it is to no address of that.
        """
        own = client.workload.workload_ips if client.name else ()
        around = Surroundings(self._ports, frozenset(own))
        if pod := client.pod:
            gone = f"{pod.namespace} is gone" if pod.gone else ""
            place = f"{pod.namespace}"
            around = replace(around, unreachable=gone, own=pod.owns, place=place)
        return replace(policy, egress=policy.egress.within(around))

    def at(self, address: IpAddress) -> LocalWorkload | None:
        """The workload that has this IP on our network; None: unknown."""
        return self._addresses.get(address)
