"""A resolver to ask, and resolvers that answer as a test says."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from fastpath.ztunnel.dns import Dns
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
from tests.support.limits import LIMIT_S, until

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


class Upstream:
    """A resolver on loopback that answers by `respond(query, tcp)`; None: nothing."""

    def __init__(self, respond):
        self._respond = respond
        self.heard = []
        self.peers = []

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

    def send(self, wire, peer):
        self._udp.sendto(wire, peer)

    async def has_heard(self, count):
        await until(lambda: len(self.heard) >= count, what=f"{count} queries")

    def _answer(self, wire, tcp):
        query = dns.message.from_wire(wire)
        self.heard.append((query.id, tcp))
        answer = self._respond(query, tcp)
        if isinstance(answer, bytes | None):
            return answer
        return answer.to_wire(max_size=65535)  # whatever size we ask for

    def _read(self):
        wire, peer = self._udp.recvfrom(65536)
        self.peers.append(peer)
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


def failing(rcode):
    def respond(query, tcp):
        answer = dns.message.make_response(query)
        answer.set_rcode(rcode)
        return answer

    return respond
