"""The gates of all sandboxes that this process is the mesh endpoint of.

A sandbox has gates if its workload is `protocol: HBONE`, there are certificates, and
neither another proxy nor `hbone: false` says otherwise (`Config.meshed`); and if the
pod's IPs are for its listeners at all (`podListeners`). The first of these may change
while the process runs, and a pod's network namespace may go: gates close then, or open.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
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

STAY_S: Final = 86400.0
"""Of a workload that takes no more clients by HBONE, those that are in may stay."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A sandbox that may have a gate."""

    gate: SandboxGate
    server: LocalWorkload
    inbound: Inbound

    @property
    def takes(self) -> bool:
        """Whether peers may come by HBONE now."""
        return self.server.workload.protocol is Protocol.HBONE and not self.is_gone

    @property
    def is_gone(self) -> bool:
        """Whether the pod's network namespace is."""
        return self.server.pod is not None and self.server.pod.gone

    def open(self) -> None:
        """Open the gate.

        Raises:
            FastpathError: it can't be opened.
        """
        self.gate.open(self.inbound)
        ips = ", ".join(map(str, self.server.workload.workload_ips))
        log.info("%s: HBONE at %s, as %s", self.server.name, ips, self.server.identity)


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
        self._draining = False
        self._kept: dict[str, _Kept] = {}  # by the sandbox's name
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
        """Open a sandbox's, if it is to have some now; it may later.

        Raises:
            FastpathError: one can't be opened.
        """
        if not (server.meshed and sandbox.pod_listeners and inbound):
            return
        most = max_tunnels(self._config, sandbox)
        around = Surroundings(self._certificates, self._authorizer, most)
        gate = SandboxGate(server, engine, publisher, around)
        kept = self._kept[sandbox.name] = _Kept(gate, server, inbound)
        if kept.takes:
            kept.open()

    def judge_again(self, name: str) -> None:
        """A sandbox's network namespace may be gone, or its mesh have changed."""
        kept = self._kept.get(name)
        if kept is None:
            return
        gate = kept.gate
        if kept.is_gone:
            gate.close()
        elif gate.is_open and not kept.takes:
            log.info("%s: no HBONE any more, by the mesh", name)
            gate.drain(STAY_S)
        elif kept.takes and not gate.is_open and not self._draining:
            try:
                kept.open()
            except FastpathError as error:
                log.warning("%s; there is no HBONE for it", error)
        gate.set_mesh()

    def drain(self, limit_s: float) -> None:
        """Have all peers open no more streams; what is left by then is cut."""
        self._draining = True
        for kept in self._kept.values():
            kept.gate.drain(limit_s)

    def close(self) -> None:
        """Take no more tunnels; again: nothing."""
        self._draining = True
        for kept in self._kept.values():
            kept.gate.close()

    def stats(self) -> Mapping[str, HboneStats]:
        """The counters, by sandbox; on any thread."""
        every = [(name, it.gate.stats()) for name, it in list(self._kept.items())]
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
