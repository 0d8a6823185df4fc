"""Where a sandbox's listeners are reachable, and what is said of their connections.

A port that the policy publishes is reachable at the pod's IPs, in plain text and by
HBONE (`gate`), and at addresses of the host that the configuration names; these need no
policy file. A port that is told of its clients by PROXY headers (`applicationTunnel`)
is not reachable at the pod's IPs in plain text: there, anyone could write them.
`fastpath.tsi.inbound` does the rest.
"""

from __future__ import annotations

import logging
import os
import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.throttle import Throttle
from fastpath.ztunnel import flags, listener
from fastpath.ztunnel.access_log import Party, Record, party
from fastpath.ztunnel.authorization import Whose
from fastpath.ztunnel.configdump import LiveClient
from fastpath.ztunnel.gateclient import GateClient
from fastpath.ztunnel.istio.outbound import Transport
from fastpath.ztunnel.model import ListenAddress, TunnelProtocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastpath.tsi.clients import Client
    from fastpath.ztunnel.access_log import AccessLog
    from fastpath.ztunnel.authorization import Authorizer
    from fastpath.ztunnel.configdump import Live
    from fastpath.ztunnel.istio.inbound import Rejected
    from fastpath.ztunnel.metrics import Metrics
    from fastpath.ztunnel.model import Sandbox, Workload
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.engine import Event, SocketAddress

NOBODY: Final = Whose()
MAX_PARTIES: Final = 4096
"""Of a sandbox, as log lines have it."""

_log = logging.getLogger(__name__)


class SandboxPublisher:
    """What the TSI service of one sandbox asks and tells (`tsi.clients.Publisher`).

    Args:
        sandbox: says what is published, and where.
        server: the same one; who it is.
        access_log: gets one line a connection.
        metrics: get the counts.
        authorizer: asks the policies; None: there are none.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        server: LocalWorkload,
        access_log: AccessLog,
        metrics: Metrics,
        authorizer: Authorizer | None = None,
    ) -> None:
        self._sandbox = sandbox
        self._server = server
        self._access_log = access_log
        self._metrics = metrics
        self._authorizer = authorizer
        self.gate_is_open = False
        """Clients may come by HBONE."""
        self._clients: dict[Client, Whose] = {}
        """Who those are that are connected: the mesh may change meanwhile."""
        self._parties: dict[tuple[int, bool, Workload], Party] = {}
        self._lines = Throttle(
            lambda count: _log.warning(
                "%s: %d denials are not in the access log", sandbox.name, count
            )
        )

    def addresses(
        self, port: int, version: int, *, covered: bool
    ) -> Sequence[ListenAddress]:
        """Where a port of the guest is reachable."""
        if self.gone:
            return []
        found = []
        if covered and self._sandbox.pod_listeners and not self._handed(port):
            ips = self._server.workload.workload_ips
            found += [ListenAddress(ip, port) for ip in ips]
        if covered or not self._sandbox.policy:
            found += [at for it in self._sandbox.publish if (at := it.of(port))]
        return [address for address in found if address.host.version == version]

    def publishes(self, port: int, *, covered: bool) -> bool:
        """Whether a port of the guest is reachable."""
        if covered and self._tunnel_port and not self.gone:
            return True
        if self.gated(covered=covered):
            return True
        return any(self.addresses(port, version, covered=covered) for version in (4, 6))

    def gated(self, *, covered: bool) -> bool:
        """Whether clients may come to a port of the guest by HBONE."""
        return covered and self.gate_is_open and not self.gone

    def _handed(self, port: int) -> bool:
        """Whether the gate writes PROXY headers to a port of the guest."""
        tunnel = self._server.workload.application_tunnel
        if not self._server.meshed or tunnel is None:
            return False
        return tunnel.protocol is TunnelProtocol.PROXY and tunnel.port in (None, port)

    def tunnel(self) -> socket.socket | None:
        """Open the listener of the application tunnel, in the pod's namespace.

        Raises:
            FastpathError: it cannot be opened.
        """
        pod, port = self._server.pod, self._tunnel_port
        if pod is None or not port:
            return None
        address = ListenAddress(IPv4Address("127.0.0.1"), port)
        try:
            sock = listener.published(address, listener.BACKLOG, pod.make)
        except OSError as error:
            raise FastpathError(
                f"{self._server.name}: cannot listen on {address} in {pod.namespace}",
                f"{error.strerror}",
                "name a port that is free there in the workload's applicationTunnel",
            ) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return sock

    def connections(self) -> Sequence[Live]:
        """Those that the guest has taken; callable on any thread."""
        return [self._live(client) for client in list(self._clients)]

    def _live(self, client: Client) -> LiveClient:
        there = self._pod_ip(":" in client.reached[0]), client.port
        source, host = client.address, ""
        if isinstance(client, GateClient):
            source, host = client.source, client.host
        kind = Transport.HBONE if client.identity else Transport.TCP
        return LiveClient(self._server.name, source, host, there, kind)

    def _pod_ip(self, ipv6: bool) -> str:
        """The sandbox's, of an IP version if it has one."""
        ips = self._server.workload.workload_ips
        version = 6 if ipv6 else 4
        return str(next((ip for ip in ips if ip.version == version), ips[0]))

    @property
    def _tunnel_port(self) -> int:
        """Of the pod's loopback, where its proxy hands clients over; 0: none."""
        if self._server.meshed:
            return 0  # that is us
        tunnel = self._server.workload.application_tunnel
        proxied = tunnel and tunnel.protocol is TunnelProtocol.PROXY
        return (tunnel.port or 0) if tunnel and proxied and self._server.pod else 0

    @property
    def gone(self) -> bool:
        """Whether the pod's namespace is."""
        return self._server.pod is not None and self._server.pod.gone

    def listen(self, address: ListenAddress, backlog: int) -> socket.socket:
        """Open a listener.

        Raises:
            OSError: it cannot be opened.
        """
        pod = self._server.pod
        return listener.published(address, backlog, pod.make if pod else socket.socket)

    def denial(self, client: Client) -> str:
        """Why a client may not connect; empty: it may."""
        if self._authorizer is None:
            return ""
        return self._authorizer.denial(self._server, client)

    def close(self) -> None:
        """Say what has not been said."""
        self._lines.flush()

    def opened(self, client: Client) -> None:
        """The guest took a client."""
        whose = self._clients[client] = self._whose(client)
        self._metrics.inbound_opened(self._server, whose)

    def failed(self, client: Client, error: int) -> None:
        """A client never got through."""
        if client.denial:
            self._denied(client)
            return
        self._metrics.denied(self._server.name, "inbound")
        if client.gated:
            self._metrics.inbound_failed(self._server, self._whose(client))
            if not self._may_log():
                return
        self._write(client, None, error)

    def rejected(
        self, source: SocketAddress, reached: SocketAddress, peer: str, why: Rejected
    ) -> None:
        """A CONNECT that leads nowhere was refused; the lines are bounded."""
        self._metrics.denied(self._server.name, f"connect_{why.status}")
        self._refused(source, reached, peer, why.text)

    def revoked(self) -> None:
        """A peer that comes by HBONE is revoked."""
        self._metrics.revoked("destination")

    def tunnel_failed(
        self, source: SocketAddress, reached: SocketAddress, peer: str, why: str
    ) -> None:
        """A peer's tunnel never was; the lines are bounded."""
        self._refused(source, reached, peer, why)

    def _refused(
        self, source: SocketAddress, reached: SocketAddress, peer: str, why: str
    ) -> None:
        if self._may_log():
            self._access_log.write(
                Record(
                    level="warn",
                    message="connection failed",
                    direction="inbound",
                    src=party(source)._replace(identity=peer),
                    dst=party(reached),
                    error=why,
                )
            )

    def ended(self, client: Client) -> None:
        """The policy ends an established connection."""
        reason = "authorization" if client.denial else "unpublished"
        self._metrics.ended(self._server.name, reason)

    def closed(self, client: Client, event: Event) -> None:
        """An established connection ended."""
        self._metrics.inbound_closed(
            self._server,
            self._whose(client),
            received=_received(client, event),
            sent=event.down_bytes,
            flag="DENY" if client.ended else flags.of_end(event),
        )
        self._write(client, event, event.error)
        self._clients.pop(client, None)

    def _denied(self, client: Client) -> None:
        """An authorization policy denied it; the lines are bounded."""
        self._metrics.denied(self._server.name, "authorization")
        self._metrics.inbound_denied(self._server, self._whose(client))
        if self._may_log():
            self._write(client, None, 0)

    def _may_log(self) -> bool:
        """Whether a refusal gets its line; if not, that is counted."""
        if self._lines.admits():
            return True
        self._metrics.unlogged(self._server.name)
        return False

    def _whose(self, client: Client) -> Whose:
        if self._authorizer is None:
            return NOBODY
        if client in self._clients:
            return self._clients[client]
        return self._authorizer.whose(self._server, client)

    def _write(self, client: Client, event: Event | None, error: int) -> None:
        what = f"{os.strerror(error)} (os error {error})" if error else ""
        if client.denial:
            what = f"connection closed due to policy rejection: {client.denial}"
            if event:
                what = "connection closed due to policy change"
        elif client.ended:
            what = f"ended by a new policy: port {client.port} is not published"
            if self._server.pod and self._server.pod.gone:
                what = f"ended: {self._server.pod.namespace} is gone"
        whose = self._whose(client)
        known = event or client.denial or client.gated
        source, authority = client.address, ""
        if isinstance(client, GateClient):
            source, authority = client.source, client.authority
        self._access_log.write(
            Record(
                level="error" if error or client.denial else "info",
                message="connection complete" if known else "connection failed",
                direction="inbound",
                src=_source(source, whose)._replace(identity=client.identity),
                dst=self._destination(client),
                hbone_addr=authority,
                service=whose.service.hostname if whose.service else "",
                bytes_sent=event.down_bytes if event else None,
                bytes_recv=_received(client, event) if event else None,
                duration_ms=event.duration_us // 1000 if event else None,
                error=what,
            )
        )

    def _destination(self, client: Client) -> Party:
        """The sandbox, as clients of an IP version reach it, or HBONE's."""
        workload = self._server.workload
        port = client.reached[1] if client.gated else client.port
        key = port, ":" in client.reached[0], workload
        found = self._parties.get(key)
        if found is None:
            if len(self._parties) >= MAX_PARTIES:
                self._parties.clear()
            there = (self._pod_ip(key[1]), port)
            found = self._parties[key] = party(there, workload, self._server.identity)
        return found


def _source(address: SocketAddress, whose: Whose) -> Party:
    """A client; as to itself, it says which service it is of."""
    there, said = party(address, whose.workload), whose.said
    if said is None:
        return there
    return there._replace(
        workload=said.service, namespace=said.namespace, cluster=said.cluster
    )


def _received(client: Client, event: Event) -> int:
    """Bytes of the client's that the guest got; the preface is none of them."""
    ours = len(client.preface) if isinstance(client, GateClient) else 0
    return max(event.up_bytes - ours, 0)
