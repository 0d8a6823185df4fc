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
and `capture.Capture` are those two differences. An error in the handling of one
connection is logged and ends that connection only.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
from typing import TYPE_CHECKING

from fastpath.throttle import Throttle
from fastpath.tsi.policy import NETNS_GONE
from fastpath.ztunnel import flags
from fastpath.ztunnel.access_log import Party, Record, party
from fastpath.ztunnel.configdump import LiveConnection
from fastpath.ztunnel.istio.outbound import RouteRefusal
from fastpath.ztunnel.routing import Decision, format_address
from vhost_user.engine import Reset
from vhost_user.hbone import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from fastpath.identity import Identity
    from fastpath.tsi.policy import Denial, SandboxPolicy
    from fastpath.ztunnel.access_log import AccessLog
    from fastpath.ztunnel.configdump import Live
    from fastpath.ztunnel.istio.state import MeshState
    from fastpath.ztunnel.metrics import Metrics
    from fastpath.ztunnel.pools import Pools
    from fastpath.ztunnel.routing import Routes
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.engine import Event, SocketAddress
    from vhost_user.hbone import HboneStats
    from vhost_user.schema import IpAddress

CHECKED_AT_ONCE = 512
"""Connections that a new policy is asked about before the loop goes on."""

_CAUSES = {NETNS_GONE: "", "mesh": " by a new mesh"}
"""By the reason of a refusal, if it is no policy's."""

_log = logging.getLogger(__name__)


class Outbound:
    """Decides, remembers, counts and logs.

    Args:
        routes: where connections go.
        access_log: gets one line a connection.
        metrics: get the counts.
        end: ends a connection, with the errno that says why.
        pools: tunnels of the engine; None: it has none, and no client is `meshed`.
    """

    def __init__(
        self,
        routes: Routes,
        access_log: AccessLog,
        metrics: Metrics,
        end: Callable[[int, int], object],
        pools: Pools | None = None,
    ) -> None:
        self._routes = routes
        self._access_log = access_log
        self._metrics = metrics
        self._end = end
        self._pools = pools
        if pools:
            pools.revoked = lambda: metrics.revoked("source")
        self._lookups: set[asyncio.Task[None]] = set()
        """Connections that wait for one."""
        self.idle = asyncio.Event()
        """Set while no connection is live."""
        self.idle.set()
        self._draining = False
        self._decisions: dict[int, tuple[LocalWorkload, Decision]] = {}
        """By connection; an entry lives as long as the engine knows it."""
        self._open: dict[int, SocketAddress] = {}
        """Of these, those that are established, and the programs' ends."""
        self._throttles: dict[LocalWorkload | None, Throttle] = {}
        """None: clients that we do not know."""
        self._bugs = Throttle(
            lambda count: _log.error("%d more errors of our own", count)
        )

    @property
    def live(self) -> Sequence[int]:
        """The connections that we know of and that have not ended."""
        return tuple(self._decisions)

    def connections(self) -> Sequence[Live]:
        """Those that are open; callable on any thread."""
        known = ((self._decisions.get(conn), at) for conn, at in [*self._open.items()])
        return [
            LiveConnection(
                found[0].name,
                source,
                found[1].destination,
                found[1].address,
                found[1].transport,
            )
            for found, source in known
            if found
        ]

    def decide(
        self,
        client: LocalWorkload,
        destination: SocketAddress,
        conn: int,
        source_ip: IpAddress | None = None,
    ) -> Decision:
        """Decide on a request, and remember the decision until `conn` ends."""
        decision = self._decide(client, destination, source_ip)
        if decision.names:
            before = self._decisions.get(conn)  # it waited for a name, perhaps
            known = before[1].names if before else ()
            for name in decision.names:
                if name not in known:
                    self._metrics.resolved(client, name)
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

    def set_mesh(self, state: MeshState) -> None:
        """End what another mesh does not have; `set_policy` did so for sandboxes."""
        owners = {client for client, _ in self._decisions.values() if not client.name}
        for client in owners:
            self._recheck(client, iter(self.live))
        if self._pools:
            self._pools.set_mesh(state)

    def lacks(self, decision: Decision) -> Identity | None:
        """Whose certificate has to be had first; None: nobody's."""
        return self._pools.lacks(decision) if self._pools else None

    async def certify(self, identity: Identity) -> None:
        """Have it, if it can be had."""
        if self._pools:
            await self._pools.add(identity)

    async def look_up(self, decision: Decision) -> None:
        """Know the IPs of the name that a decision waits for, if there are some."""
        if names := self._routes.hostnames:
            await names.learn(decision.lookup)

    def after_lookup(self, decision: Decision, then: Callable[[], object]) -> None:
        """Call back once the name is known that a decision waits for."""

        async def wait() -> None:
            await self.look_up(decision)
            then()

        task = asyncio.create_task(wait())
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)

    def tunnels(self) -> Mapping[Identity, HboneStats]:
        """Counters of tunnels to other nodes, by our identity; on any thread."""
        return self._pools.stats() if self._pools else {}

    def drain(self) -> None:
        """Refuse all connections from now on."""
        self._draining = True

    def drain_tunnels(self, limit_s: float) -> None:
        """Tell other nodes so; no route leads into a tunnel any more."""
        if self._pools:
            self._pools.drain(limit_s)

    def close(self) -> None:
        """Have nobody wait any more; say what has not been said."""
        for task in self._lookups:
            task.cancel()
        for throttle in (*self._throttles.values(), self._bugs):
            throttle.flush()

    def opened(
        self,
        client: LocalWorkload,
        event: Event,
        source: SocketAddress,
        destination: SocketAddress,
    ) -> None:
        """The connection is established at both ends."""
        with self.contained(event.conn):
            self._open[event.conn] = source
            known = self._decisions.get(event.conn)
            # None: the engine had the answer cached, so nobody asked us.
            decision = (
                known[1] if known else self.decide(client, destination, event.conn)
            )
            if event.answer and self._pools:
                behind = self._pools.behind(event.answer)
                decision = decision._replace(behind=behind)
                self._decisions[event.conn] = client, decision
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
                self._metrics.failed(client, decision, flags.of_failure(event))
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
                flag="DENY" if decision.refusal else flags.of_end(event),
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
                src=party(("", 0), client.workload, client.identity)._replace(
                    addr=source
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

    def contained(self, conn: int) -> _Contained:
        """Log whatever goes wrong in the handling of one connection."""
        return _Contained(self._bugs, conn)

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
                self._decisions[conn] = client, decision._replace(refusal=refusal)
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

    def _decide(
        self,
        client: LocalWorkload,
        destination: SocketAddress,
        source_ip: IpAddress | None = None,
    ) -> Decision:
        if self._draining:
            refusal = RouteRefusal("draining", "ztunnel is about to end")
            return Decision(destination, Reset(refusal.errno), refusal=refusal)
        try:
            decision = self._routes.decide(client, destination, source_ip)
            return self._pools.join(client, decision) if self._pools else decision
        except Exception:
            if self._bugs.admits():
                _log.exception("%s: no decision", client.identity)
            refusal = RouteRefusal("internal", "internal error", errno.ECONNABORTED)
            return Decision(destination, Reset(refusal.errno), refusal=refusal)

    def _forget(
        self, client: LocalWorkload, event: Event, destination: SocketAddress
    ) -> Decision:
        self._open.pop(event.conn, None)
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
        error = refusal.text if refusal else _error_text(event)
        if error and client.proxy and not established and not refusal:
            error = f"hand-off to {client.proxy.name}: {error}"
        if refusal and established:
            cause = _CAUSES.get(refusal.reason, " by a new policy")
            error = f"ended{cause}: {error}"
        tried = established or not refusal
        service, workload = decision.service, decision.workload
        tunnel = decision.connect
        identity = tunnel.peer(workload) if tunnel else None
        there = party(decision.address or decision.destination, workload, identity)
        if behind := decision.behind:
            there = Party(
                addr=there.addr,
                workload=behind.said.workload,
                namespace=behind.said.namespace,
                identity=behind.identity,
                cluster=behind.said.cluster,
            )
        self._access_log.write(
            Record(
                level="warn" if refusal else "error" if error else "info",
                message="connection complete" if tried else "connection failed",
                src=party(source, client.workload, client.identity),
                dst=there,
                hbone_addr=tunnel.authority if tunnel else "",
                service=service.hostname if service else "",
                bytes_sent=event.up_bytes if tried else None,
                bytes_recv=event.down_bytes if tried else None,
                duration_ms=event.duration_us // 1000 if tried else None,
                error=error,
            )
        )


class _Contained:
    """Logs an error, and lets no caller see it; a generator would cost more."""

    __slots__ = ("_bugs", "_conn")

    def __init__(self, bugs: Throttle, conn: int) -> None:
        self._bugs = bugs
        self._conn = conn

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        ours = isinstance(exc, Exception)
        if ours and self._bugs.admits():
            _log.error("connection %d: its handling failed", self._conn, exc_info=exc)
        return ours


def _error_text(event: Event) -> str:
    """Why it failed or was reset: what the tunnel says, and the errno."""
    number = event.error
    if not number and not event.reason:
        return ""
    text = f"{os.strerror(number)} (os error {number})" if number else ""
    return ": ".join(filter(None, (Reason(event.reason).text, text)))
