"""Workloads that are known only by a host name: lookups, and what they lead to.

Answers are written by hand (RFC 1035, section 4.1).
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import socket
import struct
import threading
from ipaddress import ip_address

import pytest

from fastpath.ztunnel import dnsanswer, hostnames
from fastpath.ztunnel.dnswire import MalformedError, Type
from fastpath.ztunnel.hostnames import Hostnames
from fastpath.ztunnel.model import ListenAddress, NetworkAddress
from tests.support.clock import run as run_by_the_clock
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath.hbone_world import HBONE_PORT, VIP, only, world
from tests.unit.fastpath.test_ztunnel_hbone_captured import Captured
from tests.unit.fastpath.tsi_guest import sample
from vhost_user.vsock.packet import Op

__all__ = ["world"]

NAME = "db.example"
LABELS = b"\x02db\x07example\0"
A, CNAME, AAAA = 1, 5, 28
ONE, TWO, SIX = bytes((192, 0, 2, 1)), bytes((192, 0, 2, 2)), bytes(15) + b"\1"


def record(kind, data, ttl_s=60, owner=b"\xc0\x0c"):
    return owner + struct.pack("!HHIH", kind, 1, ttl_s, len(data)) + data


def answer(kind, *records, rcode=0, flags=0x8180, count=None):
    count = len(records) if count is None else count
    head = struct.pack("!6H", 0, flags | rcode, 1, count, 0, 0)
    return head + LABELS + struct.pack("!HH", kind, 1) + b"".join(records)


NONE = {A: answer(A), AAAA: answer(AAAA)}


class Resolvers:
    """In place of the exchange with them: says what it is told to, and counts."""

    def __init__(self, monkeypatch, **answers):
        self.answers, self.asked = NONE | answers.pop("udp", {}), []
        self.by_tcp = answers.pop("tcp", {})
        self.delay_s = 0.0
        monkeypatch.setattr(hostnames, "Exchange", self._exchange)

    def _exchange(self, query, *, tcp, failed, may_ask, **_):
        assert may_ask()
        self._failed = failed
        self._next = (query, tcp)
        return self

    async def run(self, resolvers, timeout_s):
        query, tcp = self._next
        assert timeout_s == hostnames.TRY_S
        assert query.question == LABELS + struct.pack("!HH", query.type, 1)
        self.asked.append((query.type, tcp))
        await asyncio.sleep(self.delay_s)
        found = (self.by_tcp if tcp else self.answers)[query.type]
        if found is None:
            self._failed(resolvers[0][0], OSError(errno.ECONNREFUSED, "refused"))
        return found


def run(work):
    """Run `work(names)`, by a clock that passes when nothing happens."""

    async def main():
        names = Hostnames(lambda: [("192.0.2.53", 53)])
        await work(names)
        await names.close()

    run_by_the_clock(main())


def test_an_address_holds_for_as_long_as_it_says(monkeypatch):
    there = Resolvers(monkeypatch, udp={A: answer(A, record(A, ONE, 60))})

    async def work(names):
        assert names.find(NAME, 4) is None
        await names.learn(NAME)
        assert names.find(NAME, 4) == ip_address("192.0.2.1")
        assert names.find(NAME, 6) == ip_address("192.0.2.1")  # there is no other
        await asyncio.sleep(59)
        await names.learn(NAME)
        assert sorted(there.asked) == [(A, False), (AAAA, False)]
        await asyncio.sleep(2)
        assert names.find(NAME, 4) is None
        await names.learn(NAME)
        assert len(there.asked) == 4

    run(work)


def test_the_version_of_the_connection_goes_first(monkeypatch):
    Resolvers(
        monkeypatch,
        udp={
            A: answer(A, record(A, ONE), record(A, TWO)),
            AAAA: answer(AAAA, record(AAAA, SIX)),
        },
    )

    async def work(names):
        await names.learn(NAME)
        found = {str(names.find(NAME, 4)) for _ in range(100)}
        assert found == {"192.0.2.1", "192.0.2.2"}
        assert names.find(NAME, 6) == ip_address("::1")

    run(work)


def test_an_alias_leads_to_addresses(monkeypatch):
    """Letters of a name may stand in the record, or elsewhere, or both."""
    records = (
        record(CNAME, b"\x01x\xc0\x0c", ttl_s=7),
        record(A, ONE, owner=b"\x01x\xc0\x0c"),
        record(A, TWO, owner=LABELS),
    )
    Resolvers(monkeypatch, udp={A: answer(A, *records)})

    async def work(names):
        await names.learn(NAME)
        assert names.find(NAME, 4)
        await asyncio.sleep(8)
        assert names.find(NAME, 4) is None

    run(work)


def test_what_is_too_long_for_udp_is_asked_for_by_tcp(monkeypatch):
    there = Resolvers(
        monkeypatch,
        udp={A: answer(A, flags=0x8380)},
        tcp={A: answer(A, record(A, ONE))},
    )

    async def work(names):
        await names.learn(NAME)
        assert names.find(NAME, 4) == ip_address("192.0.2.1")
        assert (A, True) in there.asked

    run(work)


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (answer(A, rcode=3), "NXDOMAIN"),
        (answer(A, rcode=11), "rcode 11"),
        (answer(A), "no such records"),
        (None, "refused"),
        (answer(A, count=1), "a name can't be read"),
        (answer(A, b"\xc0\x0c\0\1"), "a record is cut off"),
        (answer(A, record(A, ONE)[:-1]), "a record is cut off"),
        (answer(A, record(A, SIX)), "an address of 16 bytes"),
        (answer(A, record(A, ONE, owner=b"\x80")), "a name can't be read"),
        (answer(A, record(A, ONE, owner=b"\x3fa")), "a name can't be read"),
        (answer(A, count=1025), "1025 records"),
    ],
)
def test_a_name_without_an_address_is_so_for_a_while(monkeypatch, caplog, wire, why):
    there = Resolvers(monkeypatch, udp={A: wire})

    async def work(names):
        await names.learn(NAME)
        assert names.find(NAME, 4) is None
        assert names.why_not(NAME).startswith(f"{NAME} has no address: ")
        assert why in names.why_not(NAME)
        asked = len(there.asked)
        await names.learn(NAME)
        assert len(there.asked) == asked
        await asyncio.sleep(hostnames.FAILED_S + 0.1)
        assert names.why_not(NAME) == ""
        there.answers[A] = answer(A, record(A, ONE))
        await names.learn(NAME)
        assert names.find(NAME, 4)

    with caplog.at_level(logging.WARNING):
        run(work)
    assert caplog.text.count(NAME) == 1


def test_all_who_wait_for_a_name_wait_for_one_lookup(monkeypatch):
    there = Resolvers(monkeypatch, udp={A: answer(A, record(A, ONE))})
    there.delay_s = 1.0

    async def work(names):
        waits = [asyncio.create_task(names.learn(NAME)) for _ in range(50)]
        await asyncio.sleep(0)
        waits[0].cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert len(there.asked) == 2
        assert names.find(NAME, 4)

    run(work)


@pytest.mark.parametrize("name", ["", "a..b", "a" * 64, "ä.example", "a." * 127 + "a"])
def test_what_no_host_has_for_a_name_is_not_asked_for(monkeypatch, name):
    there = Resolvers(monkeypatch)

    async def work(names):
        await names.learn(name)
        assert "is no host name" in names.why_not(name)
        assert there.asked == []

    run(work)
    with pytest.raises(MalformedError):
        dnsanswer.query_for(name, Type.A)


# ---- through the whole process ----


class NameServer:
    """Says one address to each question for A, or what `code` is; or nothing."""

    def __init__(self, ip, code=0, *, silent=False):
        self.ip, self.code, self.silent = ip, code, silent
        self.asked = 0
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.at = ListenAddress(ip_address("127.0.0.1"), self._sock.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while (got := self._sock.recvfrom(4096))[0]:
            query, peer = got
            end = query.index(b"\0", 12) + 5
            (kind,) = struct.unpack_from("!H", query, end - 4)
            self.asked += 1
            if self.silent:
                continue
            found = [record(A, socket.inet_aton(self.ip))] if kind == A else []
            counts = (0x8180 | self.code, 1, len(found) * (not self.code), 0, 0)
            said = query[:2] + struct.pack("!5H", *counts) + query[12:end]
            self._sock.sendto(said + b"".join(found * (not self.code)), peer)

    def close(self):
        self._sock.sendto(b"", self.at_address)
        self._thread.join(LIMIT_S)
        self._sock.close()

    @property
    def at_address(self):
        return str(self.at.host), self.at.port


@pytest.fixture
def names(world):
    made = NameServer(world.server.ip)
    yield made
    made.close()


def named(world, **fields):
    return world.web(workload_ips=(), hostname=NAME, **fields)


SOURCE = {
    "source_workload": "client",
    "source_canonical_service": "client-app",
    "source_canonical_revision": "v1",
    "source_workload_namespace": "default",
    "source_principal": "spiffe://cluster.local/ns/default/sa/client",
    "source_app": "client-app",
    "source_version": "v1",
    "source_cluster": "Kubernetes",
}


def counted(ztunnel, hostname=NAME, **source):
    """Istio's counter of on-demand DNS, with all of its labels."""
    labels = SOURCE | source | {"hostname": hostname}
    return sample(ztunnel, "istio_on_demand_dns_total", **labels)


def test_each_connection_that_takes_a_name_is_counted(world, names):
    """Whether the name was known or not, as Istio's ztunnel counts it."""

    def play(run):
        assert counted(run.ztunnel) == 0
        _, peer, _ = run.connect(VIP)
        assert counted(run.ztunnel) == 1
        run.again(peer, VIP)
        assert counted(run.ztunnel) == 2
        assert names.asked == 2  # A and AAAA, once

    world.run(play, web=named(world), resolvers=(names.at,))


def test_a_name_that_leads_nowhere_is_counted(world, names):
    names.code = 3

    def play(run):
        for count in (1, 2):
            run.guest.refused(VIP)
            assert counted(run.ztunnel) == count

    world.run(play, web=named(world), resolvers=(names.at,))


def test_a_connection_to_a_workload_with_an_ip_counts_no_name(world, names):
    def play(run):
        run.connect(VIP)
        assert counted(run.ztunnel) == counted(run.ztunnel, "unknown") == 0

    web = world.web(hostname=NAME)
    world.run(play, web=web, resolvers=(names.at,))


def test_a_service_is_reached_where_its_workloads_name_is(world, names):
    def play(run):
        conn, peer, stream = run.connect(VIP)
        assert run.headers[":authority"] == f"{world.server.ip}:8080"
        run.echoes(conn, peer, stream)
        run.again(peer, VIP)
        assert names.asked == 2

    first, _ = world.run(play, web=named(world), resolvers=(names.at,))
    assert f"dst.addr={world.server.ip}:{HBONE_PORT}" in first
    assert 'dst.workload="web-1"' in first


def test_a_new_mesh_that_has_the_name_lets_live_connections_go_on(world, names):
    def play(run):
        conn, peer, stream = run.connect(VIP)
        own = {"resolvers": (names.at,)}
        run.set_mesh(world.config(web=named(world, workload_name="x"), **own))
        run.echoes(conn, peer, stream)
        other = world.web(workload_ips=(), hostname="other.example")
        run.set_mesh(world.config(web=other, **own))
        conn.expect(Op.RST)

    assert "ended by a new mesh" in only(
        world.run(play, web=named(world), resolvers=(names.at,))
    )


def test_a_name_that_there_is_not_is_unreachable(world, names):
    names.code = 3

    def play(run):
        assert run.guest.refused(VIP) == errno.EHOSTUNREACH

    line = only(world.run(play, web=named(world), resolvers=(names.at,)))
    assert f"{NAME} has no address: the resolvers: NXDOMAIN" in line


def test_a_name_that_leads_where_policy_denies_is_denied(world, names):
    names.ip = "169.254.169.254"

    def play(run):
        assert run.guest.refused(VIP) == errno.ECONNREFUSED

    line = only(world.run(play, web=named(world), resolvers=(names.at,)))
    assert "169.254.169.254:8080: " in line


def test_a_program_that_does_not_wait_leaves_nothing(world, names, monkeypatch):
    monkeypatch.setattr(hostnames, "TRY_S", 1.0)
    names.silent = True

    def play(run):
        conn = run.guest.request(VIP)
        wait_until(lambda: names.asked)
        conn.say(Op.RST)
        names.silent = False
        conn, peer, stream = run.connect(VIP)
        run.echoes(conn, peer, stream)
        outbound = run.ztunnel._outbounds[0]
        wait_until(lambda: len(outbound.live) == 1)
        wait_until(lambda: not outbound._lookups)

    assert len(world.run(play, web=named(world), resolvers=(names.at,))) == 2


def test_captured_clients_wait_for_names_too(world, names):
    capture = Captured(world)
    ip, port = capture.there
    service = world.service(
        vips=(NetworkAddress("", ip_address(ip)),), ports={port: 8080}
    )
    pod = capture.config.workloads[-1]
    web = named(world, services={service.key: {port: 8080}})
    config = world.config(pod, web=web, service=service)
    own = dataclasses.replace(config.fastpath, sandboxes=(), resolvers=(names.at,))
    capture.config = dataclasses.replace(config, fastpath=own)

    def play(capture, ztunnel):
        with capture.connect() as sock:
            peer = world.server.accept()
            stream, _ = peer.request()
            peer.answer(stream)
            sock.sendall(b"ping")
            assert peer.read(stream, 4) == b"ping"
        source = dict.fromkeys(SOURCE, "unknown") | {
            "source_workload_namespace": "default",
            "source_principal": "spiffe://cluster.local/ns/default/sa/pod",
            "source_cluster": "Kubernetes",
        }
        # once, though it also waited for a certificate
        assert counted(ztunnel, **source) == 1

    assert f"dst.addr={world.server.ip}:{HBONE_PORT}" in only(capture.run(play))
