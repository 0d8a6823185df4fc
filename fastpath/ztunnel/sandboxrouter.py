"""What the TSI service of one sandbox asks and tells: how its connections are known.

A program's end is a pod IP and a TCP port, as getsockname() in the guest says. Port 53
is answered here, whatever the address.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from fastpath.tsi.protocol import source_port
from fastpath.tsi.router import Here, Later, Routed
from fastpath.ztunnel import dns

if TYPE_CHECKING:
    import socket

    from fastpath.tsi.policy import Denial, SandboxPolicy
    from fastpath.ztunnel.dns import Dns
    from fastpath.ztunnel.outbound import Outbound
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.engine import Event, SocketAddress


class SandboxRouter:
    """What the TSI service of one sandbox asks and tells (`tsi.router.Router`).

    Args:
        outbound: does the work.
        client: the sandbox.
        resolver: answers its DNS queries.
    """

    def __init__(
        self, outbound: Outbound, client: LocalWorkload, resolver: Dns
    ) -> None:
        self._outbound = outbound
        self._client = client
        self._dns = resolver
        self._own = {version: str(client.own_address(version)) for version in (4, 6)}

    def set_policy(self, policy: SandboxPolicy) -> None:
        """Decide by `policy` from now on, and end what it denies."""
        self._outbound.set_policy(self._client, policy)

    def route(self, destination: SocketAddress, conn: int) -> Routed:
        """Decide on a request of the guest."""
        gone = self._client.pod is not None and self._client.pod.gone
        if destination[1] == dns.PORT and not gone:
            self._outbound.answered_here(self._client, destination, conn)
            return Routed(Here(self._serve_dns), cacheable=False)
        decision = self._outbound.decide(self._client, destination, conn)
        if decision.lookup:
            again = functools.partial(self._outbound.after_lookup, decision)
            return Routed(Later(again), cacheable=False)
        return Routed(decision.target, cacheable=decision.cacheable)

    def opened(self, event: Event, destination: SocketAddress) -> None:
        """The connection is established at both ends."""
        source = self._source(event, destination)
        self._outbound.opened(self._client, event, source, destination)

    def failed(self, event: Event, destination: SocketAddress) -> None:
        """It never was established."""
        source = self._source(event, destination)
        self._outbound.failed(self._client, event, source, destination)

    def closed(self, event: Event, destination: SocketAddress) -> None:
        """It was established and has ended."""
        source = self._source(event, destination)
        self._outbound.closed(self._client, event, source, destination)

    async def resolve(self, query: bytes, *, tcp: bool) -> bytes | None:
        """Answer a DNS query of the guest's."""
        client = self._client
        namespace = client.workload.namespace
        return await self._dns.resolve(
            query,
            namespace=namespace,
            tcp=tcp,
            sandbox=client.name,
            pod=client.pod,
        )

    def datagram_denied(self, peer: SocketAddress, denial: Denial) -> None:
        """The guest's datagrams to a peer are not carried."""
        source = self._own_address(peer)
        self._outbound.datagram_denied(self._client, source, peer, denial)

    def _serve_dns(self, sock: socket.socket) -> None:
        client = self._client
        namespace = client.workload.namespace
        self._dns.serve(sock, sandbox=client.name, namespace=namespace, pod=client.pod)

    def _source(self, event: Event, destination: SocketAddress) -> SocketAddress:
        """What getsockname() in the guest says: a pod IP and a TCP port."""
        return (self._own_address(destination), source_port(event.peer_port))

    def _own_address(self, destination: SocketAddress) -> str:
        return self._own[6 if ":" in destination[0] else 4]
