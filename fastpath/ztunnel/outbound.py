"""One outbound connection's life, the same for both ways it can arrive.

    asked    `decide`   routing and policy; remembered until the end
    opened   counted
    failed   refused by us: counted as a denial, one `connection failed` line;
             or the dial failed: counted, one `connection complete` line
    closed   counted with its bytes, one `connection complete` line

Policy is asked when a connection is asked for and when it is opened (the engine may
have had the answer ready), and of all there are when it changes: what it denies by
then is ended, as Istio's ztunnel does it. Lines about refused connections are
bounded for each client, so that one guest cannot fill the log of all.

A connection through the vsock device (TSI) and one that was captured (TPROXY)
differ in how the client is known and in what carries the request: `SandboxRouter`
and `Capture` are those two differences. An error in the handling of one
connection is logged and ends that connection only.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from fastpath.throttle import Throttle
from fastpath.tsi.policy import NETNS_GONE
from fastpath.tsi.protocol import source_port
from fastpath.tsi.router import Here, Routed
from fastpath.ztunnel import dns
from fastpath.ztunnel.access_log import Party, Record, party
from fastpath.ztunnel.configdump import LiveConnection
from fastpath.ztunnel.istio.outbound import RouteRefusal
from fastpath.ztunnel.routing import Decision, format_address, unmap
from vhost_user.engine import EventKind, Reset

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from fastpath.tsi.policy import Denial, SandboxPolicy
    from fastpath.ztunnel.access_log import AccessLog
    from fastpath.ztunnel.dns import Dns
    from fastpath.ztunnel.metrics import Metrics
    from fastpath.ztunnel.routing import Routes
    from fastpath.ztunnel.workloads import LocalWorkload, LocalWorkloads
    from vhost_user.engine import Engine, Event, SocketAddress, Target

CHECKED_AT_ONCE = 512
"""Connections that a new policy is asked about before the loop goes on."""

_log = logging.getLogger(__name__)


class Outbound:
    """Decides, remembers, counts and logs.

    Args:
        routes: where connections go.
        access_log: gets one line a connection.
        metrics: get the counts.
        end: ends a connection, with the errno that says why.
    """

    def __init__(
        self,
        routes: Routes,
        access_log: AccessLog,
        metrics: Metrics,
        end: Callable[[int, int], object],
    ) -> None:
        self._routes = routes
        self._access_log = access_log
        self._metrics = metrics
        self._end = end
        self.idle = asyncio.Event()
        """Set while no connection is live."""
        self.idle.set()
        self._draining = False
        self._decisions: dict[int, tuple[LocalWorkload, Decision]] = {}
        """By connection; an entry lives as long as the engine knows it."""
        self._throttles: dict[LocalWorkload | None, Throttle] = {}
        """None: clients that we do not know."""
        self._bugs = Throttle(
            lambda count: _log.error("%d more errors of our own", count)
        )

    @property
    def live(self) -> Sequence[int]:
        """The connections that we know of and that have not ended."""
        return tuple(self._decisions)

    def connections(self) -> Sequence[LiveConnection]:
        """Those that we know of and that have not ended; callable on any thread."""
        return [
            LiveConnection(client.name, decision.destination, decision.address)
            for client, decision in list(self._decisions.values())
        ]

    def decide(
        self, client: LocalWorkload, destination: SocketAddress, conn: int
    ) -> Decision:
        """Decide on a request, and remember the decision until `conn` ends."""
        decision = self._decide(client, destination)
        self._decisions[conn] = client, decision
        self.idle.clear()
        return decision

    def set_policy(self, client: LocalWorkload, policy: SandboxPolicy) -> None:
        """Decide by `policy` from now on, and end what it denies.

        Of connections that are being opened by an answer of the engine's own, `opened`
        tells; they are judged then.
        """
        client.policy = policy
        self._routes.forget(client)
        self._recheck(client, iter(self.live))

    def drain(self) -> None:
        """Refuse all connections from now on."""
        self._draining = True

    def close(self) -> None:
        """Say what has not been said."""
        for throttle in (*self._throttles.values(), self._bugs):
            throttle.flush()

    def opened(
        self, client: LocalWorkload, event: Event, destination: SocketAddress
    ) -> None:
        """The connection is established at both ends."""
        with self.contained(event.conn):
            known = self._decisions.get(event.conn)
            # None: the engine had the answer cached, so nobody asked us.
            decision = (
                known[1] if known else self.decide(client, destination, event.conn)
            )
            self._metrics.opened(client, decision)
            if decision.refusal:  # the policy changed meanwhile
                self._end(event.conn, decision.refusal.errno)

    def failed(
        self,
        client: LocalWorkload,
        event: Event,
        source: SocketAddress,
        destination: SocketAddress,
    ) -> None:
        """It never was established."""
        with self.contained(event.conn):
            decision = self._forget(client, event, destination)
            if decision.refusal:
                self._metrics.denied(client.name, decision.refusal.reason)
            else:
                self._metrics.failed(client, decision)
            if not decision.refusal or self._may_log(client):
                self._write(client, event, source, decision)

    def closed(
        self,
        client: LocalWorkload,
        event: Event,
        source: SocketAddress,
        destination: SocketAddress,
    ) -> None:
        """It was established and has ended."""
        with self.contained(event.conn):
            decision = self._forget(client, event, destination)
            self._metrics.closed(
                client,
                decision,
                received=event.up_bytes,
                sent=event.down_bytes,
                flag="DENY" if decision.refusal else "CONNECT" if event.error else "-",
            )
            if decision.refusal:
                self._metrics.ended(client.name, decision.refusal.reason)
            self._write(client, event, source, decision, established=True)

    def answered_here(
        self, client: LocalWorkload, destination: SocketAddress, conn: int
    ) -> None:
        """A connection that this process is the other end of, whatever its address."""
        self._decisions[conn] = client, Decision(destination, Reset())
        self.idle.clear()

    def datagram_denied(
        self,
        client: LocalWorkload,
        source: str,
        destination: SocketAddress,
        denial: Denial,
    ) -> None:
        """The client's datagrams to a peer are not carried.

        Args:
            client: who asked.
            source: its IP; which of its sockets it was is not known.
            destination: the peer.
            denial: why.
        """
        self._metrics.denied(client.name, denial.reason)
        if not self._may_log(client):
            return
        self._access_log.write(
            Record(
                level="warn",
                message="datagrams denied",
                src=replace(
                    party(("", 0), client.workload, client.identity), addr=source
                ),
                dst=Party(addr=format_address(destination)),
                error=f"{format_address(destination)}: {denial.text}",
            )
        )

    def unknown(self, source: SocketAddress, destination: SocketAddress) -> None:
        """A connection whose client we do not know was refused."""
        self._metrics.denied("", "unknown_source")
        if not self._may_log(None):
            return
        self._access_log.write(
            Record(
                level="warn",
                message="connection failed",
                src=Party(addr=format_address(source)),
                dst=Party(addr=format_address(destination)),
                error=f"unknown source: {source[0]}",
            )
        )

    @contextlib.contextmanager
    def contained(self, conn: int) -> Iterator[None]:
        """Log whatever goes wrong in the handling of one connection."""
        try:
            yield
        except Exception:
            if self._bugs.admits():
                _log.exception("connection %d: its handling failed", conn)

    def _recheck(self, client: LocalWorkload, conns: Iterator[int]) -> None:
        """Ask the new policy about some connections, and later about the rest."""
        asked = client.policy
        some = list(itertools.islice(conns, CHECKED_AT_ONCE))
        for conn in some:
            owner, decision = self._decisions.get(conn, (None, None))
            if owner is not client or decision is None or decision.refusal:
                continue
            refusal = self._routes.denied(client, decision)
            if refusal:
                self._decisions[conn] = client, replace(decision, refusal=refusal)
                self._end(conn, refusal.errno)
        if len(some) == CHECKED_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._go_on, client, asked, conns)

    def _go_on(
        self, client: LocalWorkload, asked: SandboxPolicy, conns: Iterator[int]
    ) -> None:
        if client.policy is asked:  # or else all are asked about again
            self._recheck(client, conns)

    def _may_log(self, client: LocalWorkload | None) -> bool:
        """Whether a refusal gets its line; if not, that is counted."""
        if client not in self._throttles:
            whose = f"{client.identity}" if client else "unknown sources"
            self._throttles[client] = Throttle(
                lambda count: _log.warning(
                    "%s: %d denials are not in the access log", whose, count
                )
            )
        if self._throttles[client].admits():
            return True
        self._metrics.unlogged(client.name if client else "")
        return False

    def _decide(self, client: LocalWorkload, destination: SocketAddress) -> Decision:
        if self._draining:
            refusal = RouteRefusal("draining", "ztunnel is about to end")
            return Decision(destination, Reset(refusal.errno), refusal=refusal)
        try:
            return self._routes.decide(client, destination)
        except Exception:
            if self._bugs.admits():
                _log.exception("%s: no decision", client.identity)
            refusal = RouteRefusal("internal", "internal error", errno.ECONNABORTED)
            return Decision(destination, Reset(refusal.errno), refusal=refusal)

    def _forget(
        self, client: LocalWorkload, event: Event, destination: SocketAddress
    ) -> Decision:
        known = self._decisions.pop(event.conn, None)
        if not self._decisions:
            self.idle.set()
        return known[1] if known else self._decide(client, destination)

    def _write(
        self,
        client: LocalWorkload,
        event: Event,
        source: SocketAddress,
        decision: Decision,
        *,
        established: bool = False,
    ) -> None:
        refusal = decision.refusal
        error = refusal.text if refusal else _error_text(event.error)
        if error and client.proxy and not established and not refusal:
            error = f"hand-off to {client.proxy.name}: {error}"
        if refusal and established:
            cause = "" if refusal.reason == NETNS_GONE else " by a new policy"
            error = f"ended{cause}: {error}"
        tried = established or not refusal
        service, workload = decision.service, decision.workload
        self._access_log.write(
            Record(
                level="warn" if refusal else "error" if error else "info",
                message="connection complete" if tried else "connection failed",
                src=party(source, client.workload, client.identity),
                dst=party(decision.address or decision.destination, workload),
                service=service.hostname if service else "",
                bytes_sent=event.up_bytes if tried else None,
                bytes_recv=event.down_bytes if tried else None,
                duration_ms=event.duration_us // 1000 if tried else None,
                error=error,
            )
        )


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
        self._addresses = client.workload.workload_ips

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
        return Routed(decision.target, cacheable=decision.cacheable)

    def opened(self, event: Event, destination: SocketAddress) -> None:
        """The connection is established at both ends."""
        self._outbound.opened(self._client, event, destination)

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
        version = ip_address(destination[0]).version
        same = [ip for ip in self._addresses if ip.version == version]
        return str((same or self._addresses)[0])


@dataclass(frozen=True, slots=True)
class _Captured:
    """What a request said; later events may come when the socket has no peer."""

    client: LocalWorkload
    source: SocketAddress
    destination: SocketAddress


class Capture:
    """The TPROXY listener's events.

    Args:
        engine: takes the answers.
        outbound: does the work.
        clients: who has which IP.
    """

    def __init__(
        self, engine: Engine, outbound: Outbound, clients: LocalWorkloads
    ) -> None:
        self._engine = engine
        self._outbound = outbound
        self._clients = clients
        self._captured: dict[int, _Captured] = {}

    def handle_event(self, event: Event) -> None:
        """Handle one event of the listener; never raises."""
        with self._outbound.contained(event.conn):
            if event.kind is EventKind.REQUEST:
                self._engine.answer(event.conn, self._request(event))
                return
            captured = self._captured.get(event.conn)
            if captured is None:  # refused before we knew whose it was
                return
            client, there = captured.client, captured.destination
            if event.kind is EventKind.OPENED:
                self._outbound.opened(client, event, there)
                return
            del self._captured[event.conn]
            if event.kind is EventKind.FAILED:
                self._outbound.failed(client, event, captured.source, there)
            elif event.kind is EventKind.CLOSED:
                self._outbound.closed(client, event, captured.source, there)

    def _request(self, event: Event) -> Target:
        if event.src is None or event.dst is None:
            return Reset(errno.ECONNABORTED)  # the client has gone again
        source, destination = unmap(event.src), unmap(event.dst)
        client = self._clients.at(ip_address(source[0]))
        if client is None:
            self._outbound.unknown(source, destination)
            return Reset()
        self._captured[event.conn] = _Captured(client, source, destination)
        return self._outbound.decide(client, destination, event.conn).target


def _error_text(number: int) -> str:
    return f"{os.strerror(number)} (os error {number})" if number else ""
