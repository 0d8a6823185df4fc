"""ztunnel's DNS: whose names it knows, and what it does with the others.

Queries and answers are read and written by dnspython, or by hand where they are bad.
"""

from __future__ import annotations

import asyncio
import os
import struct

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from fastpath.ztunnel import dns as module
from fastpath.ztunnel.dns import Dns, Names
from fastpath.ztunnel.istio import file
from fastpath.ztunnel.model import (
    Config,
    NetworkAddress,
)
from tests.unit.fastpath.dns_peers import (
    POD,
    VIP4,
    VIP6,
    WEB,
    ask,
    config,
    failing,
    records,
    run,
    service,
    texts,
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


@pytest.mark.parametrize(("kind", "found"), [("A", [str(VIP4)]), ("AAAA", [str(VIP6)])])
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
    monkeypatch.setattr(os, "urandom", lambda size: b"\xff" * size)

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


@pytest.mark.parametrize("kind", ["MX", "SRV", "HTTPS", "TXT"])
@pytest.mark.parametrize("name", [WEB, "a.wild.example"])
def test_other_types_of_a_services_name_are_a_resolvers_to_answer(kind, name):
    async def work(resolver, upstream):
        answer = await ask(resolver, dns.message.make_query(name, kind))
        assert texts(answer) == ["192.0.2.0"]  # whatever it is, it is the resolver's
        assert resolver.stats().forwarded == 1

    run(work)


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL])
def test_a_services_name_exists_whatever_a_resolver_says_of_it(rcode):
    async def work(resolver, upstream):
        answer = await ask(resolver, dns.message.make_query(WEB, "MX"))
        assert answer.rcode() == dns.rcode.NOERROR
        assert texts(answer) == []
        assert len(upstream.heard) == 1

    run(work, failing(rcode))


@pytest.mark.parametrize(
    ("respond", "found"),
    [
        (records, ["192.0.2.0"]),
        (failing(dns.rcode.NOERROR), []),
        (failing(dns.rcode.NXDOMAIN), [str(VIP4)]),
        (failing(dns.rcode.SERVFAIL), [str(VIP4)]),
    ],
    ids=["exists", "other-family", "exists-not", "fails"],
)
def test_a_wildcard_service_does_not_hide_names_below_it(respond, found):
    async def work(resolver, upstream):
        answer = await ask(resolver, dns.message.make_query("a.wild.example", "A"))
        assert answer.rcode() == dns.rcode.NOERROR
        assert texts(answer) == found

    run(work, respond)


def test_a_wildcards_names_do_not_wait_for_a_silent_resolver(monkeypatch):
    monkeypatch.setattr(module, "WILDCARD_S", 0.01)

    async def work(resolver, upstream):
        answer = await ask(resolver, dns.message.make_query("a.wild.example", "A"))
        assert texts(answer) == [str(VIP4)]

    run(work, lambda query, tcp: None)


def test_a_service_with_more_addresses_than_fit_is_cut(monkeypatch):
    many = tuple(NetworkAddress("", VIP4 + i) for i in range(2000))
    there = Config(services=(service("many.example", *many),))

    async def work():
        resolver = Dns(there)
        query = dns.message.make_query("many.example", "A")
        assert (await ask(resolver, query)).flags & dns.flags.TC
        query.use_edns(payload=65535)
        assert (await ask(resolver, query)).flags & dns.flags.TC
        assert len(texts(await ask(resolver, query, tcp=True))) == 1000

    asyncio.run(work())


def test_what_goes_to_a_resolver_is_written_anew():
    heard = []

    def respond(query, tcp):
        heard.append(query)
        return records(query, tcp)

    async def work(resolver, upstream):
        query = dns.message.make_query("Other.EXAMPLE", "A", want_dnssec=True)
        query.use_edns(
            payload=65000,
            ednsflags=0x8123,
            options=[dns.edns.GenericOption(dns.edns.COOKIE, b"cookie!!")],
        )
        query.flags |= 0x0240  # TC and a reserved bit
        answer = await ask(resolver, query)
        assert answer.question == query.question
        (sent,) = heard
        assert sent.question == query.question
        assert (sent.edns, sent.payload, sent.ednsflags) == (0, 4096, 0x8000)
        assert sent.options == ()
        assert sent.flags == dns.flags.RD
        assert [*sent.answer, *sent.authority, *sent.additional] == []

    run(work, respond)


def test_a_name_of_several_namespaces_is_the_clients_or_the_canonical_one():
    """As a VIP of several is; one that a namespace doesn't see it doesn't find."""
    text = "services:\n"
    for namespace, vip, more in (
        ("a", 1, ""),
        ("b", 2, ", canonical: true"),
        ("c", 3, ", visibility: Namespace"),
    ):
        text += f"- {{name: n, namespace: {namespace}, hostname: n.example,"
        text += f" vips: [/10.96.0.{vip}], ports: {{}}{more}}}\n"
    loaded, _ = file.parse(text.encode(), "mesh.yaml")
    names = Names(Config(services=loaded.services))
    found = {it: names.find("n.example", it) for it in ("a", "b", "c", "d")}
    last = {it: str(ips[0])[-1] for it, ips in found.items() if ips}
    assert last == {"a": "1", "b": "2", "c": "3", "d": "2"}
    hidden = Config(services=loaded.services[2:])
    assert Names(hidden).find("n.example", "d") is None
