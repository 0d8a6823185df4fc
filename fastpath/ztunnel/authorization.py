"""Istio's policies for clients of sandboxes, as they are now.

Of those that come by HBONE (`gate`) the identity is proved. The others come in plain
text, so nobody's identity is known: what policies say of IPs and ports counts, and what
they want of identities none has. Of a sandbox whose connections are made in its pod's
network namespace (`netns`), and that another proxy is the mesh endpoint of, that one
has decided already, and knows more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from fastpath.throttle import Throttle
from fastpath.ztunnel.gateclient import GateClient
from fastpath.ztunnel.istio.authorize import Connection, judge
from fastpath.ztunnel.istio.headers import Known
from fastpath.ztunnel.istio.inbound import guess

if TYPE_CHECKING:
    from fastpath.tsi.clients import Client
    from fastpath.ztunnel.istio.authorize import Verdict
    from fastpath.ztunnel.istio.headers import Said
    from fastpath.ztunnel.istio.state import MeshState
    from fastpath.ztunnel.model import Config, Service, Workload
    from fastpath.ztunnel.workloads import LocalWorkload

_log = logging.getLogger(__name__)


def announce(config: Config, state: MeshState) -> None:
    """Say once which policies are for no sandbox of ours."""
    ours = {
        policy.key
        for sandbox in config.fastpath.sandboxes
        if not sandbox.netns or config.meshed(sandbox)
        for policy in state.policies_of(config.workload(sandbox.workload))
    }
    keys = (policy.key for policy in config.policies)
    names = ", ".join(key for key in keys if key not in ours)
    if names:
        _log.warning(
            "authorization policies take effect at the destination's proxy,"
            " not here: %s",
            names,
        )


@dataclass(frozen=True, slots=True)
class Whose:
    """What the mesh knows of a client: what its IP and port say, and who it is."""

    workload: Workload | None = None
    service: Service | None = None
    principal: str = ""
    """Its SPIFFE ID, proved by mutual TLS; empty: plain text."""
    said: Said | None = None
    """What it says of itself, if its IP is no workload's."""


class Authorizer:
    """Asks the policies, and who is who.

    Args:
        state: has them; another one takes its place.
    """

    def __init__(self, state: MeshState) -> None:
        self.state = state
        self._throttles: dict[LocalWorkload, Throttle] = {}
        self._known = Known()

    def denial(self, server: LocalWorkload, client: Client) -> str:
        """Why a client may not connect to a sandbox; empty: it may."""
        if server.pod is not None and not server.meshed:
            return ""
        policies = self.state.policies_of(server.workload)
        if not policies:
            return ""
        verdict = judge(policies, _connection(server, client))
        self.note(server, client, verdict)
        return verdict.text

    def note(self, server: LocalWorkload, client: Client, verdict: Verdict) -> None:
        """Say once of a client what policies would do that are only tried."""
        if verdict.dry_run and not client.told:
            client.told = True
            self._tell(server, client, verdict.dry_run)

    def whose(self, server: LocalWorkload, client: Client) -> Whose:
        """Who a client is, and which service it probably wants."""
        source = self.state.workload_at(self.state.network, client.ip)
        if isinstance(client, GateClient):
            source = None if client.far else source
            said = None if source else self._known.admit(client.said)
            return Whose(source, client.accepted.service, client.identity, said)
        service = guess(self.state, server.workload, client.port)
        return Whose(source, service)

    def close(self) -> None:
        """Say what has not been said."""
        for throttle in self._throttles.values():
            throttle.flush()

    def _tell(
        self, server: LocalWorkload, client: Client, notes: tuple[str, ...]
    ) -> None:
        if server not in self._throttles:
            name = server.name
            self._throttles[server] = Throttle(
                lambda count: _log.info("%s: %d more lines of dry runs", name, count)
            )
        if self._throttles[server].admits():
            who = f"{client.identity or client.ip} to port {client.port}"
            _log.info("%s: %s: %s", server.name, who, "; ".join(notes))


def _connection(server: LocalWorkload, client: Client) -> Connection:
    """What policies are asked about: an address of the host stands for the pod's."""
    if isinstance(client, GateClient):
        return client.accepted.connection
    ips = server.workload.workload_ips
    reached = ip_address(client.reached[0].partition("%")[0])
    if reached not in ips:
        same = (ip for ip in ips if ip.version == reached.version)
        reached = next(same, reached)
    return Connection(client.ip, reached, client.port)
