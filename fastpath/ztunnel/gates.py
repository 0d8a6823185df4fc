"""The gates of all sandboxes that this process is the mesh endpoint of.

A sandbox has gates if its workload is `protocol: HBONE`, there are certificates, and
neither another proxy nor `hbone: false` says otherwise (`Config.meshed`); and if the
pod's IPs are for its listeners at all (`podListeners`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastpath.ztunnel.gate import SandboxGate, Surroundings
from fastpath.ztunnel.istio.model import Protocol
from fastpath.ztunnel.shares import max_tunnels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastpath.tsi.inbound import Inbound
    from fastpath.ztunnel.authorization import Authorizer
    from fastpath.ztunnel.certificates import Certificates
    from fastpath.ztunnel.inbound import SandboxPublisher
    from fastpath.ztunnel.model import Config, Sandbox
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.engine import Engine
    from vhost_user.hbone import HboneStats

log = logging.getLogger(__name__)


class Gates:
    """All of them.

    Args:
        config: checked.
        certificates: of the workloads.
        authorizer: asks the mesh's policies.
    """

    def __init__(
        self, config: Config, certificates: Certificates, authorizer: Authorizer
    ) -> None:
        self._config = config
        self._certificates = certificates
        self._authorizer = authorizer
        self._gates: dict[str, SandboxGate] = {}  # by the sandbox's name
        self._servers: dict[str, LocalWorkload] = {}
        if not certificates:
            self._say_plain()

    def open(
        self,
        sandbox: Sandbox,
        server: LocalWorkload,
        engine: Engine,
        publisher: SandboxPublisher,
        inbound: Inbound | None,
    ) -> None:
        """Open a sandbox's, if it is to have some.

        Raises:
            FastpathError: one can't be opened.
        """
        hbone = server.workload.protocol is Protocol.HBONE
        if not (server.meshed and hbone and sandbox.pod_listeners and inbound):
            return
        most = max_tunnels(self._config, sandbox)
        around = Surroundings(self._certificates, self._authorizer, most)
        gate = SandboxGate(server, engine, publisher, around)
        gate.open(inbound)
        self._gates[sandbox.name] = gate
        self._servers[sandbox.name] = server
        ips = ", ".join(map(str, server.workload.workload_ips))
        log.info("%s: HBONE at %s, as %s", sandbox.name, ips, server.identity)

    def judge_again(self, name: str) -> None:
        """A sandbox's network namespace may be gone, or its mesh have changed."""
        gate = self._gates.get(name)
        if gate is None:
            return
        pod = self._servers[name].pod
        if pod is not None and pod.gone:
            gate.close()
        gate.set_mesh()

    def drain(self, limit_s: float) -> None:
        """Have all peers open no more streams; what is left by then is cut."""
        for gate in self._gates.values():
            gate.drain(limit_s)

    def close(self) -> None:
        """Take no more tunnels; again: nothing."""
        for gate in self._gates.values():
            gate.close()

    def stats(self) -> Mapping[str, HboneStats]:
        """The counters, by sandbox; on any thread."""
        every = [(name, gate.stats()) for name, gate in list(self._gates.items())]
        return {name: stats for name, stats in every if stats is not None}

    def _say_plain(self) -> None:
        """Say who would speak HBONE, were there certificates."""
        names = [
            sandbox.name
            for sandbox in self._config.fastpath.sandboxes
            if self._config.workload(sandbox.workload).protocol is Protocol.HBONE
            and not (sandbox.netns or sandbox.handoff)
        ]
        if names:
            log.warning(
                "%s: HBONE by the mesh, but there are no certificates: clients reach"
                " what is published in plain text only; hint: configure `certificates`",
                ", ".join(names),
            )
