"""DNS for the sandboxes: names of the mesh's services, and all others.

    query --> a service's name, A or AAAA  --> its VIPs, or its endpoints' IPs if none
              a wildcard's, A or AAAA      --> a resolver of the host's; the VIPs where
                                               that has no such name
              anything else                --> a resolver of the host's

A name is looked up as a Kubernetes resolver would that searches the client's
namespace: `web`, `web.default`, `web.default.svc` and `web.default.svc.cluster.local`
are one service to a client in `default`. So it does not matter which search list the
guest has. A service's hostname may start with `*.`: names below it that exist elsewhere
stay what they are there. Other types than A and AAAA go to a resolver, as in Istio's
ztunnel; where that knows no such name, the answer is that there are no such records:
the name exists here.

A query costs the event loop a bounded time, whatever is in it (`dnswire`). A sandbox
has so many answered in a second, so many sockets to resolvers, so many lines in the
log: what is beyond is counted in `DnsStats`. Nothing is cached. `upstream` is how the
resolvers are asked. When none answers within `TIMEOUT_S`, the answer is SERVFAIL: later
than the time-out of any client, which asks again as it sees fit.

Spec: RFC 1035; RFC 6891 for the size of an answer; RFC 7766 for TCP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath import resolvconf
from fastpath.throttle import Throttle
from fastpath.tsi.stream import Pace
from fastpath.ztunnel import dnswire
from fastpath.ztunnel.dnswire import (
    AA,
    CLASS_IN,
    MAX_QUERY,
    MalformedError,
    Query,
    Rcode,
    Type,
    UnservedError,
)
from fastpath.ztunnel.hostnames import Hostnames
from fastpath.ztunnel.istio.state import MeshState, best_of
from fastpath.ztunnel.upstream import Exchange

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastpath.ztunnel.model import Config, NamespacedHostname, Service
    from fastpath.ztunnel.pods import Pod
    from vhost_user.engine import SocketAddress
    from vhost_user.schema import IpAddress

log = logging.getLogger(__name__)

PORT: Final = 53
TTL_S: Final = 30
"""Of a service's addresses."""
TIMEOUT_S: Final = 15.0
"""For a resolver to answer. C libraries wait 5 s, and ask the same again."""
WILDCARD_S: Final = 2.5
"""For a resolver to say whether it has a name below a wildcard service's."""
CLUSTER_DOMAIN: Final = "cluster.local"
MAX_STREAMS: Final = 32
"""TCP connections of one sandbox that are served at a time."""
IDLE_S: Final = 30.0
"""A TCP connection without a query is closed after so long."""
MAX_ADDRESSES: Final = 1000
"""Of a service; as many as Kubernetes puts into one Endpoints object."""
MAX_SOCKETS: Final = 96
"""Sockets to resolvers for one sandbox at a time, by UDP and TCP: one for each query
that is under way; while there are some, one for each further resolver it goes to."""
QUERIES_A_SECOND: Final = 1000
"""Of one sandbox, in the long run. More by UDP are dropped, by TCP they wait."""
BURST: Final = 1000
"""Queries at once after a quiet time."""

_LENGTH: Final = struct.Struct("!H")
_PAUSE_S: Final = 0.02
_REFUSED_TYPES: Final = frozenset({Type.AXFR, Type.IXFR})
"""Not one message but many."""


@dataclass(slots=True)
class DnsStats:
    """Counters; `streams` is a current value."""

    local: int = 0
    """Queries for services."""
    forwarded: int = 0
    """Queries that a resolver of the host's answered."""
    failed: int = 0
    """Queries that none did."""
    malformed: int = 0
    """What was no query."""
    unserved: int = 0
    """Queries answered with an error, for their kind."""
    streams: int = 0
    limit_streams: int = 0
    """TCP connections closed at once: too many."""
    limit_queries: int = 0
    """Queries that no resolver was asked: too many are under way."""
    limit_rate: int = 0
    """Queries by UDP dropped, and pauses by TCP: too many a second."""


class _Client:
    """What is counted for one sandbox."""

    def __init__(self, name: str) -> None:
        self.pace = Pace(QUERIES_A_SECOND, BURST)
        self.lines = Throttle(
            lambda count: log.warning("%s: %d more lines about names", name, count)
        )
        self.exchanges: set[Exchange] = set()
        self.pod: Pod | None = None
        """Where resolvers are asked for it; None: in our own network namespace."""

    def may_ask(self) -> bool:
        """Whether it may have one more socket to a resolver."""
        return sum(each.sockets for each in self.exchanges) < MAX_SOCKETS


class Names:
    """Names of services.

    Args:
        config: checked.
        state: of its mesh.
    """

    def __init__(self, config: Config, state: MeshState | None = None) -> None:
        self._state = state or MeshState(config, config.fastpath.network)
        self._exact: defaultdict[str, list[Service]] = defaultdict(list)
        self._wildcards: defaultdict[str, list[Service]] = defaultdict(list)
        for service in config.services:
            hostname = service.hostname.lower()
            if hostname.startswith("*."):
                self._wildcards[hostname[2:]].append(service)
            else:
                self._exact[hostname].append(service)
        self._addresses: dict[NamespacedHostname, tuple[IpAddress, ...]] = {}

    def find(self, name: str, namespace: str) -> tuple[IpAddress, ...] | None:
        """Return the addresses behind a name; None: it is no service's.

        Args:
            name: without the last dot.
            namespace: the client's.
        """
        name = name.lower()
        service = self._named(name, namespace)
        parent = name
        while parent and service is None and self._wildcards:
            parent = parent.partition(".")[2]
            service = best_of(self._wildcards.get(parent, ()), namespace)
        if service is None:
            return None
        if service.key not in self._addresses:
            found = self._addresses_of(service)[:MAX_ADDRESSES]
            self._addresses[service.key] = found
        return self._addresses[service.key]

    def lists(self, name: str, namespace: str) -> bool:
        """Whether a service has this very name, not a wildcard above it."""
        return self._named(name.lower(), namespace) is not None

    def _named(self, name: str, namespace: str) -> Service | None:
        for alias in _aliases(name, namespace):
            service = best_of(self._exact.get(alias, ()), namespace)
            if service is not None:
                return service
        return None

    def _addresses_of(self, service: Service) -> tuple[IpAddress, ...]:
        network = self._state.network
        vips = tuple(v.address for v in service.vips if v.network == network)
        if vips or service.hostname.startswith("*."):
            return vips
        return tuple(
            address
            for member in self._state.members_of(service)
            if member.workload.network == network
            for address in member.workload.workload_ips
        )


class Dns:
    """Answers queries.

    Args:
        config: checked; names its services, and the resolvers if they are not the
            host's.
        resolv_conf: names the host's; read anew for each query that is forwarded.
    """

    def __init__(self, config: Config, *, resolv_conf: Path = resolvconf.PATH) -> None:
        self._names = Names(config)
        self._resolvers = tuple(
            (str(resolver.host), resolver.port)
            for resolver in config.fastpath.resolvers
        )
        self._resolv_conf = resolv_conf
        self.hostnames = Hostnames(self.resolvers)
        """Of workloads that are known only by one."""
        self._stats = DnsStats()
        self._streams: dict[asyncio.Task[None], str] = {}
        """Whose each is."""
        self._clients: dict[str, _Client] = {}
        """By sandbox."""

    def set_names(self, names: Names) -> None:
        """Answer by the names of another mesh from now on."""
        self._names = names
        self.hostnames.forget()

    def stats(self) -> DnsStats:
        """Return the counters; the object stays current."""
        self._stats.streams = len(self._streams)
        return self._stats

    async def resolve(
        self,
        query: bytes,
        *,
        namespace: str,
        tcp: bool,
        sandbox: str = "",
        pod: Pod | None = None,
    ) -> bytes | None:
        """Answer a query.

        Args:
            query: one message.
            namespace: the client's.
            tcp: it came over TCP: the answer may have any size.
            sandbox: the client's name.
            pod: where resolvers are asked; None: in our own network namespace.

        Returns:
            One message; None: `query` was none that can be answered, or one too many.
        """
        client = self._client(sandbox)
        client.pod = pod
        if not client.pace.admits():
            self._stats.limit_rate += 1
            return None
        client.pace.count()
        try:
            parsed = dnswire.parse_query(query)
            answer = await self._answer(parsed, client, namespace, tcp=tcp)
        except MalformedError:
            self._stats.malformed += 1
            return None
        except UnservedError as error:
            self._stats.unserved += 1
            return dnswire.respond(error.query, error.rcode)
        return dnswire.fit(parsed, answer, tcp=tcp)

    async def close(self) -> None:
        """End the TCP connections, and lookups."""
        await self.hostnames.close()
        for task in self._streams:
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        for client in self._clients.values():
            client.lines.flush()

    def serve(
        self,
        sock: socket.socket,
        *,
        sandbox: str,
        namespace: str,
        pod: Pod | None = None,
    ) -> None:
        """Answer the queries of a TCP connection until it ends.

        Args:
            sock: connected, taken over.
            sandbox: the client's name.
            namespace: the client's.
            pod: as of `resolve`.
        """
        if sum(owner == sandbox for owner in self._streams.values()) >= MAX_STREAMS:
            self._stats.limit_streams += 1
            sock.close()
            return
        sock.setblocking(False)
        serving = self._serve(sock, sandbox, namespace, pod)
        task = asyncio.get_running_loop().create_task(serving)
        self._streams[task] = sandbox

        def ended(_task: asyncio.Task[None]) -> None:
            del self._streams[task]
            sock.close()  # if it was cancelled before it began

        task.add_done_callback(ended)

    async def _serve(
        self, sock: socket.socket, sandbox: str, namespace: str, pod: Pod | None
    ) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        pace = self._client(sandbox).pace
        with contextlib.suppress(
            OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError
        ):
            while (query := await self._read(reader)) is not None:
                while not pace.admits():
                    self._stats.limit_rate += 1
                    await asyncio.sleep(_PAUSE_S)
                answer = await self.resolve(
                    query, namespace=namespace, tcp=True, sandbox=sandbox, pod=pod
                )
                if answer is None:
                    break
                writer.write(_LENGTH.pack(len(answer)) + answer)
                async with asyncio.timeout(IDLE_S):
                    await writer.drain()
                await asyncio.sleep(0)  # others' turn: so far perhaps nothing waited
        writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> bytes | None:
        """Read a query; None: it is too long to be one."""
        async with asyncio.timeout(IDLE_S):
            (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if size <= MAX_QUERY:
                return await reader.readexactly(size)
        self._stats.malformed += 1
        return None

    def _client(self, sandbox: str) -> _Client:
        if sandbox not in self._clients:
            self._clients[sandbox] = _Client(sandbox)
        return self._clients[sandbox]

    async def _answer(
        self, query: Query, client: _Client, namespace: str, *, tcp: bool
    ) -> bytes:
        """Answer for a service, or have a resolver do it.

        Raises:
            UnservedError: it is not of a kind that is served.
        """
        if query.rdclass != CLASS_IN or query.type in _REFUSED_TYPES:
            raise UnservedError(query, Rcode.REFUSED)
        name = query.name or ""
        found = self._names.find(name, namespace)
        if found is None:
            return await self._forward(query, client, TIMEOUT_S, tcp=tcp)
        addresses = query.type in (Type.A, Type.AAAA)
        if not (addresses and self._names.lists(name, namespace)):
            timeout_s = WILDCARD_S if addresses else TIMEOUT_S
            answer = await self._forward(query, client, timeout_s, tcp=tcp)
            if dnswire.rcode(answer) not in (Rcode.NXDOMAIN, Rcode.SERVFAIL):
                return answer
        self._stats.local += 1
        records: Sequence[bytes] = ()
        if addresses:
            records = dnswire.address_records(found, query.type, TTL_S)
        return dnswire.respond(query, records=records, flags=AA)

    async def _forward(
        self, query: Query, client: _Client, timeout_s: float, *, tcp: bool
    ) -> bytes:
        """Ask the resolvers; the answer is SERVFAIL when none has answered."""
        if not client.may_ask():
            self._stats.limit_queries += 1
            return dnswire.respond(query, Rcode.SERVFAIL)

        def failed(host: str, error: Exception) -> None:
            if client.lines.admits():
                log.info("resolver %s: %s", host, str(error) or type(error).__name__)

        exchange = Exchange(
            query,
            tcp=tcp,
            failed=failed,
            may_ask=client.may_ask,
            make=client.pod.client if client.pod else socket.socket,
        )
        client.exchanges.add(exchange)
        try:
            answer = await exchange.run(self.resolvers(client.pod), timeout_s)
        finally:
            client.exchanges.discard(exchange)
        if answer is None:
            self._stats.failed += 1
            return dnswire.respond(query, Rcode.SERVFAIL)
        self._stats.forwarded += 1
        return dnswire.hand_on(query, answer)

    def resolvers(self, pod: Pod | None = None) -> Sequence[SocketAddress]:
        """Whom to ask about names that are no service's.

        Args:
            pod: where; None: in our own network namespace.
        """
        if pod is not None and (found := pod.nameservers()):
            return [(host, PORT) for host in found]
        if self._resolvers:
            return self._resolvers
        found = resolvconf.read(self._resolv_conf).nameservers
        return [(host, PORT) for host in found]


def _aliases(name: str, namespace: str) -> tuple[str, ...]:
    """The full names that a name may stand for, for a client in `namespace`."""
    svc = f"svc.{CLUSTER_DOMAIN}"
    labels = name.split(".")
    if len(labels) == 1:
        return name, f"{name}.{namespace}.{svc}"
    if len(labels) == 2:
        return name, f"{name}.{svc}"
    if len(labels) == 3 and labels[2] == "svc":
        return name, f"{name}.{CLUSTER_DOMAIN}"
    return (name,)
