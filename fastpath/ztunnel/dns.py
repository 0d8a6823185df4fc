"""DNS for the sandboxes: names of the mesh's services, and all others.

    query --> a service's name?  --> its VIPs, or its endpoints' IPs if it has none
              anything else      --> a resolver of the host's; its answer, as it is

A name is looked up as a Kubernetes resolver would that searches the client's
namespace: `web`, `web.default`, `web.default.svc` and `web.default.svc.cluster.local`
are one service to a client in `default`. So it does not matter which search list the
guest has. A service's hostname may start with `*.`.

Nothing is cached. A query is forwarded once to each resolver until one answers; then
the answer is SERVFAIL, and the guest asks again as it sees fit. A forwarded query has
an id and a port of its own, so guests cannot tell what others ask, or spoof it.

Spec: RFC 1035; RFC 6891 for the size of an answer; RFC 7766 for TCP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.ztunnel.model import HealthStatus

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from dns.message import Message

    from fastpath.decode import IpAddress
    from fastpath.ztunnel.model import Config, Service, Workload
    from vhost_user.engine import SocketAddress

log = logging.getLogger(__name__)

PORT: Final = 53
TTL_S: Final = 30
"""Of a service's addresses."""
TIMEOUT_S: Final = 3.0
"""For one resolver to answer; the guest's own resolvers wait 5 s."""
RESOLV_CONF: Final = Path("/etc/resolv.conf")
CLUSTER_DOMAIN: Final = "cluster.local"
MAX_STREAMS: Final = 32
"""TCP connections of one sandbox that are served at a time."""
IDLE_S: Final = 30.0
"""A TCP connection without a query is closed after so long."""

_PLAIN_SIZE: Final = 512
"""Most bytes of an answer over UDP to one who does not say otherwise."""
_LARGEST_SIZE: Final = 4096
"""Most bytes of one over UDP, whatever they say."""
_LENGTH: Final = struct.Struct("!H")
_MAX_RESOLVERS: Final = 3


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
    streams: int = 0
    limit_streams: int = 0
    """TCP connections closed at once: too many."""


class Names:
    """Names of services.

    Args:
        config: checked.
    """

    def __init__(self, config: Config) -> None:
        self._exact: dict[str, Service] = {}
        self._wildcards: dict[str, Service] = {}
        for service in config.services:
            hostname = service.hostname.lower()
            if hostname.startswith("*."):
                self._wildcards[hostname[2:]] = service
            else:
                self._exact[hostname] = service
        self._members: dict[str, list[Workload]] = {
            hostname: [w for w in config.workloads if service.key in w.services]
            for hostname, service in self._exact.items()
        }
        self._network = config.fastpath.network

    def find(self, name: str, namespace: str) -> tuple[IpAddress, ...] | None:
        """Return the addresses behind a name; None: it is no service's.

        Args:
            name: without the last dot.
            namespace: the client's.
        """
        name = name.lower()
        for alias in _aliases(name, namespace):
            if service := self._exact.get(alias):
                return self._addresses(service)
        parent = name
        while parent:
            parent = parent.partition(".")[2]
            if service := self._wildcards.get(parent):
                return self._addresses(service)
        return None

    def _addresses(self, service: Service) -> tuple[IpAddress, ...]:
        vips = tuple(v.address for v in service.vips if v.network == self._network)
        return vips or tuple(
            address
            for workload in self._members.get(service.hostname.lower(), ())
            if workload.status is HealthStatus.HEALTHY
            and workload.network == self._network
            for address in workload.workload_ips
        )


class Dns:
    """Answers queries.

    Args:
        config: checked; names its services, and the resolvers if they are not the
            host's.
        resolv_conf: names the host's; read anew for each query that is forwarded.
    """

    def __init__(self, config: Config, *, resolv_conf: Path = RESOLV_CONF) -> None:
        self._names = Names(config)
        self._resolvers = tuple(
            (str(resolver.host), resolver.port)
            for resolver in config.fastpath.resolvers
        )
        self._resolv_conf = resolv_conf
        self._stats = DnsStats()
        self._streams: dict[asyncio.Task[None], str] = {}
        """Whose each is."""

    def stats(self) -> DnsStats:
        """Return the counters; the object stays current."""
        self._stats.streams = len(self._streams)
        return self._stats

    async def resolve(self, query: bytes, *, namespace: str, tcp: bool) -> bytes | None:
        """Answer a query.

        Args:
            query: one message.
            namespace: the client's.
            tcp: it came over TCP: the answer may have any size.

        Returns:
            One message; None: `query` was none that can be answered.
        """
        try:
            return await self._resolve(query, namespace, tcp=tcp)
        except Exception:  # whatever a guest or a resolver can do to the parser
            log.exception("a DNS query failed")
            return None

    async def close(self) -> None:
        """End the TCP connections."""
        for task in self._streams:
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)

    def serve(self, sock: socket.socket, *, sandbox: str, namespace: str) -> None:
        """Answer the queries of a TCP connection until it ends.

        Args:
            sock: connected, taken over.
            sandbox: the client's name.
            namespace: the client's.
        """
        if sum(owner == sandbox for owner in self._streams.values()) >= MAX_STREAMS:
            self._stats.limit_streams += 1
            sock.close()
            return
        sock.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(sock, namespace))
        self._streams[task] = sandbox

        def ended(_task: asyncio.Task[None]) -> None:
            del self._streams[task]
            sock.close()  # if it was cancelled before it began

        task.add_done_callback(ended)

    async def _serve(self, sock: socket.socket, namespace: str) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        with contextlib.suppress(
            OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError
        ):
            while True:
                async with asyncio.timeout(IDLE_S):
                    head = await reader.readexactly(_LENGTH.size)
                    query = await reader.readexactly(_LENGTH.unpack(head)[0])
                answer = await self.resolve(query, namespace=namespace, tcp=True)
                if answer is None:
                    break
                writer.write(_LENGTH.pack(len(answer)) + answer)
                async with asyncio.timeout(IDLE_S):
                    await writer.drain()
        writer.close()

    async def _resolve(self, wire: bytes, namespace: str, *, tcp: bool) -> bytes | None:
        # imported late: it takes 0.1 s, and most runs ask for no name
        import dns.exception
        import dns.flags
        import dns.message
        import dns.opcode
        import dns.rcode

        try:
            query = dns.message.from_wire(wire)
        except (dns.exception.DNSException, ValueError):
            self._stats.malformed += 1
            return None
        if query.flags & dns.flags.QR:
            self._stats.malformed += 1
            return None
        if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
            self._stats.malformed += 1
            answer = dns.message.make_response(query, recursion_available=True)
            answer.set_rcode(dns.rcode.NOTIMP)
            return _fit(query, answer, tcp=tcp)
        local = self._local(query, namespace)
        if local is not None:
            self._stats.local += 1
            return _fit(query, local, tcp=tcp)
        forwarded = await self._forward(query, tcp=tcp)
        if forwarded is not None:
            self._stats.forwarded += 1
            return _fit(query, forwarded, tcp=tcp)
        self._stats.failed += 1
        answer = dns.message.make_response(query, recursion_available=True)
        answer.set_rcode(dns.rcode.SERVFAIL)
        return _fit(query, answer, tcp=tcp)

    def _local(self, query: Message, namespace: str) -> Message | None:
        """Answer for a service; None: the name is none's."""
        import dns.flags
        import dns.message
        import dns.rdataclass
        import dns.rdatatype
        import dns.rrset

        question = query.question[0]
        if question.rdclass != dns.rdataclass.IN:
            return None
        name = question.name.to_text(omit_final_dot=True)
        found = self._names.find(name, namespace)
        if found is None:
            return None
        answer = dns.message.make_response(query, recursion_available=True)
        answer.flags |= dns.flags.AA
        versions = {dns.rdatatype.A: 4, dns.rdatatype.AAAA: 6}
        texts = [
            str(address)
            for address in found
            if address.version == versions.get(question.rdtype)
        ]
        if texts:
            answer.answer.append(
                dns.rrset.from_text_list(
                    question.name, TTL_S, "IN", question.rdtype, texts
                )
            )
        return answer

    async def _forward(self, query: Message, *, tcp: bool) -> Message | None:
        """Ask the resolvers in turn; None: none has answered."""
        import dns.asyncquery
        import dns.exception
        import dns.message

        ask = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
        own = dns.message.from_wire(query.to_wire())
        own.id = secrets.randbelow(1 << 16)
        for host, port in self._upstream():
            try:
                answer = await ask(own, host, timeout=TIMEOUT_S, port=port)
            except (dns.exception.DNSException, OSError, EOFError, ValueError) as error:
                log.info("resolver %s: %s", host, str(error) or type(error).__name__)
                continue
            answer.id = query.id
            return answer
        return None

    def _upstream(self) -> Sequence[SocketAddress]:
        if self._resolvers:
            return self._resolvers
        try:
            lines = self._resolv_conf.read_text("ascii", "replace").splitlines()
        except OSError:
            return ()
        words = [line.split() for line in lines]
        found = [w[1] for w in words if len(w) > 1 and w[0] == "nameserver"]
        return [(host, PORT) for host in found[:_MAX_RESOLVERS]]


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


def _fit(query: Message, answer: Message, *, tcp: bool) -> bytes:
    """Return the answer's bytes; cut, and marked so, if they are too many for UDP."""
    import dns.exception
    import dns.flags
    import dns.message

    if tcp:
        return answer.to_wire(max_size=65535)
    asked = query.payload if query.edns >= 0 else 0
    size = min(max(asked, _PLAIN_SIZE), _LARGEST_SIZE)
    try:
        return answer.to_wire(max_size=size)
    except dns.exception.TooBig:
        short = dns.message.make_response(query, recursion_available=True)
        short.set_rcode(answer.rcode())
        short.flags |= dns.flags.TC
        return short.to_wire(max_size=size)
