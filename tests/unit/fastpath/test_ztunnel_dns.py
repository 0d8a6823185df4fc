"""ztunnel's DNS: whose names it knows, and what it does with the others.

Queries and answers are read and written by dnspython, or by hand where they are bad.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from fastpath.ztunnel import dns as module
from fastpath.ztunnel.dns import Dns, Names
from fastpath.ztunnel.model import (
    Config,
    Fastpath,
    HealthStatus,
    ListenAddress,
    NamespacedHostname,
    NetworkAddress,
    Service,
    Workload,
)
from tests.support.limits import LIMIT_S

VIP4, VIP6 = ip_address("10.96.0.10"), ip_address("fd00:96::10")
POD = ip_address("10.0.0.7")
WEB = "web.shop.svc.cluster.local"


def service(hostname, *vips, namespace="shop"):
    return Service(
        name=hostname.partition(".")[0],
        namespace=namespace,
        hostname=hostname,
        vips=vips,
        ports={80: 8080},
    )


def config(*resolvers):
    headless = NamespacedHostname("shop", "db.shop.svc.cluster.local")
    workloads = tuple(
        Workload(
            workload_ips=(POD + i,),
            namespace="shop",
            name=f"db-{i}",
            status=status,
            network=network,
            services={headless: {80: 0}},
        )
        for i, (status, network) in enumerate(
            (
                (HealthStatus.HEALTHY, ""),
                (HealthStatus.UNHEALTHY, ""),
                (HealthStatus.HEALTHY, "elsewhere"),
                (HealthStatus.HEALTHY, ""),
            )
        )
    )
    return Config(
        workloads=workloads,
        services=(
            service(WEB, NetworkAddress("", VIP4), NetworkAddress("", VIP6)),
            service(headless.hostname),
            service("*.wild.example", NetworkAddress("", VIP4)),
            service("far.example", NetworkAddress("elsewhere", VIP4)),
            service("api.example", NetworkAddress("", VIP4 + 1)),
        ),
        fastpath=Fastpath(resolvers=resolvers),
    )


@pytest.mark.parametrize(
    ("name", "namespace", "found"),
    [
        (WEB, "other", (VIP4, VIP6)),
        (WEB.upper(), "other", (VIP4, VIP6)),
        ("web", "shop", (VIP4, VIP6)),
        ("web", "other", None),
        ("web.shop", "other", (VIP4, VIP6)),
        ("web.shop.svc", "other", (VIP4, VIP6)),
        ("web.shop.svc.cluster", "shop", None),
        ("api.example", "shop", (VIP4 + 1,)),
        ("api", "shop", None),
        ("a.wild.example", "shop", (VIP4,)),
        ("a.b.wild.example", "shop", (VIP4,)),
        ("wild.example", "shop", None),
        ("far.example", "shop", ()),
        ("db.shop", "other", (POD, POD + 3)),
        ("nobody.example", "shop", None),
        ("", "shop", None),
    ],
)
def test_names_of_services(name, namespace, found):
    assert Names(config()).find(name, namespace) == found


class Upstream:
    """A resolver on loopback that answers by `respond(query, tcp)`; None: nothing."""

    def __init__(self, respond):
        self._respond = respond
        self.heard = []

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        address = self._server.sockets[0].getsockname()
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(address)
        loop.add_reader(self._udp, self._read)
        self.address = ListenAddress(ip_address(address[0]), address[1])
        return self

    async def __aexit__(self, *exc):
        asyncio.get_running_loop().remove_reader(self._udp)
        self._udp.close()
        self._server.close()

    def _answer(self, wire, tcp):
        query = dns.message.from_wire(wire)
        self.heard.append((query.id, tcp))
        answer = self._respond(query, tcp)
        return answer if isinstance(answer, bytes | None) else answer.to_wire()

    def _read(self):
        wire, peer = self._udp.recvfrom(65536)
        answer = self._answer(wire, False)
        if answer is not None:
            self._udp.sendto(answer, peer)

    async def _serve(self, reader, writer):
        size = int.from_bytes(await reader.readexactly(2))
        answer = self._answer(await reader.readexactly(size), True)
        writer.write(len(answer).to_bytes(2) + answer)
        writer.close()


def records(query, tcp, count=1):
    answer = dns.message.make_response(query, recursion_available=True)
    texts = [f"192.0.2.{i}" for i in range(count)]
    name = query.question[0].name
    answer.answer.append(dns.rrset.from_text_list(name, 60, "IN", "A", texts))
    return answer


def run(work, respond=records):
    async def bounded():
        async with asyncio.timeout(LIMIT_S), Upstream(respond) as upstream:
            resolver = Dns(config(upstream.address))
            try:
                return await work(resolver, upstream)
            finally:
                await resolver.close()

    return asyncio.run(bounded())


async def ask(resolver, query, *, tcp=False):
    wire = await resolver.resolve(query.to_wire(), namespace="shop", tcp=tcp)
    answer = dns.message.from_wire(wire)
    assert query.is_response(answer)
    return answer


def texts(answer):
    return [str(record) for rrset in answer.answer for record in rrset]


@pytest.mark.parametrize(
    ("kind", "found"), [("A", [str(VIP4)]), ("AAAA", [str(VIP6)]), ("MX", [])]
)
def test_a_services_name_is_answered_here(kind, found):
    async def work(resolver, upstream):
        answer = await ask(resolver, dns.message.make_query(WEB, kind))
        assert answer.rcode() == dns.rcode.NOERROR
        assert answer.flags & dns.flags.AA
        assert answer.flags & dns.flags.RA
        assert texts(answer) == found
        assert upstream.heard == []
        assert resolver.stats().local == 1

    run(work)


@pytest.mark.parametrize("tcp", [False, True])
def test_other_names_are_forwarded_the_way_they_came(tcp, monkeypatch):
    monkeypatch.setattr(secrets, "randbelow", lambda limit: limit - 1)

    async def work(resolver, upstream):
        query = dns.message.make_query("other.example", "A")
        query.id = 7
        assert texts(await ask(resolver, query, tcp=tcp)) == ["192.0.2.0"]
        ((number, over_tcp),) = upstream.heard
        assert number == 65535
        assert over_tcp is tcp
        assert resolver.stats().forwarded == 1

    run(work)


def test_a_resolvers_error_is_the_guests():
    def respond(query, tcp):
        answer = dns.message.make_response(query)
        answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer

    async def work(resolver, upstream):
        answer = await ask(resolver, dns.message.make_query("no.example", "A"))
        assert answer.rcode() == dns.rcode.NXDOMAIN

    run(work, respond)


def test_a_large_answer_is_cut_for_udp_as_the_guest_says():
    async def work(resolver, upstream):
        query = dns.message.make_query("big.example", "A")
        short = await ask(resolver, query)
        assert short.flags & dns.flags.TC
        assert texts(short) == []
        query.use_edns(payload=4096)
        assert len(texts(await ask(resolver, query))) == 100
        other = dns.message.make_query("huge.example", "A")
        other.use_edns(payload=65535)
        assert (await ask(resolver, other)).flags & dns.flags.TC

    def respond(query, tcp):
        huge = query.question[0].name.to_text() == "huge.example."
        return records(query, tcp, 255 if huge else 100)

    run(work, respond)


def test_a_resolver_that_talks_nonsense_is_passed_over():
    async def work(resolver, upstream):
        answer = await ask(resolver, dns.message.make_query("x.example", "A"))
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert resolver.stats().failed == 1

    run(work, lambda query, tcp: query.to_wire()[:2] + b"nonsense")


def test_a_resolver_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)

    async def work(resolver, upstream):
        answer = await ask(resolver, dns.message.make_query("x.example", "A"))
        assert answer.rcode() == dns.rcode.SERVFAIL

    run(work, lambda query, tcp: None)


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\0" * 11,
        dns.message.make_response(dns.message.make_query("a.", "A")).to_wire(),
        struct.pack("!6H", 1, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
        struct.pack("!6H", 1, 0, 65535, 0, 0, 0),
        b"\xff" * 512,
    ],
    ids=["empty", "short", "response", "loop", "no questions", "ones"],
)
def test_what_is_no_query_has_no_answer(wire):
    async def work(resolver, upstream):
        assert await resolver.resolve(wire, namespace="shop", tcp=False) is None
        assert resolver.stats().malformed == 1
        assert upstream.heard == []

    run(work)


def test_only_queries_are_served():
    async def work(resolver, upstream):
        query = dns.message.make_query("a.example", "A")
        query.flags |= 4 << 11  # NOTIFY
        wire = await resolver.resolve(query.to_wire(), namespace="shop", tcp=False)
        assert wire is not None
        assert wire[3] & 15 == dns.rcode.NOTIMP

    run(work)


def test_the_hosts_resolvers_are_read_anew(tmp_path):
    path = tmp_path / "resolv.conf"

    async def work():
        resolver = Dns(config(), resolv_conf=path)
        assert list(resolver._upstream()) == []
        path.write_text("# x\nsearch a\nnameserver\nnameserver 192.0.2.1\n")
        assert list(resolver._upstream()) == [("192.0.2.1", 53)]
        path.write_text("nameserver ::1\nnameserver 1.1.1.1\n" * 3)
        assert len(resolver._upstream()) == 3

    asyncio.run(work())


def test_a_tcp_connection_is_served_until_it_ends():
    async def work(resolver, upstream):
        ours, theirs = socket.socketpair()
        resolver.serve(theirs, sandbox="a", namespace="shop")
        reader, writer = await asyncio.open_connection(sock=ours)
        queries = [dns.message.make_query(name, "A") for name in ("web", "x.example")]
        for query in queries:  # both at once, as glibc does
            wire = query.to_wire()
            writer.write(len(wire).to_bytes(2) + wire)
        for query in queries:
            size = int.from_bytes(await reader.readexactly(2))
            answer = dns.message.from_wire(await reader.readexactly(size))
            assert query.is_response(answer)
        writer.write(b"\0\3abc")  # no query
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert resolver.stats().streams == 0

    run(work)


def test_tcp_connections_of_a_sandbox_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_STREAMS", 1)

    async def work(resolver, upstream):
        pairs = [socket.socketpair() for _ in range(3)]
        for (_, theirs), sandbox in zip(pairs, "aab", strict=True):
            resolver.serve(theirs, sandbox=sandbox, namespace="shop")
        assert pairs[1][0].recv(1) == b""
        assert resolver.stats().streams == 2
        assert resolver.stats().limit_streams == 1
        await resolver.close()
        for ours, _ in pairs:
            ours.close()

    run(work)
