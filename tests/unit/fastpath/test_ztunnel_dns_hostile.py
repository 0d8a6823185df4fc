"""DNS: guests and resolvers that say anything, silent ones, and what each may take."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pathlib
import socket
import struct
import sys

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from fastpath.ztunnel import dns as module
from fastpath.ztunnel import upstream as upstream_module
from fastpath.ztunnel.dns import Dns
from tests.support.limits import LIMIT_S
from tests.unit.fastpath.dns_peers import (
    WEB,
    Upstream,
    ask,
    config,
    failing,
    records,
    run,
    texts,
)

HEAD = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0)
NAME = b"\1a\7example\0"
QUESTION = NAME + b"\0\1\0\1"
OPT = b"\0\0\x29\x10\0\0\0\0\0\0\0"


def head(*counts):
    return struct.pack("!6H", 7, 0x0100, *counts)


@pytest.mark.parametrize(
    ("wire", "rcode"),
    [
        (head(1, 1, 0, 0) + QUESTION, dns.rcode.FORMERR),
        (head(1, 0, 1, 0) + QUESTION, dns.rcode.FORMERR),
        (head(1, 0, 0, 2) + QUESTION + OPT + OPT, dns.rcode.FORMERR),
        (head(1, 0, 0, 1) + QUESTION, dns.rcode.FORMERR),
        (head(1, 0, 0, 1) + QUESTION + OPT[:-1], dns.rcode.FORMERR),
        (head(1, 0, 0, 1) + QUESTION + OPT + b"x", dns.rcode.FORMERR),
        (head(1, 0, 0, 1) + QUESTION + b"\1x" + OPT, dns.rcode.FORMERR),
        (head(1, 0, 0, 0) + QUESTION + b"x", dns.rcode.FORMERR),
        (head(1, 0, 0, 0) + NAME + b"\0\xfc\0\1", dns.rcode.REFUSED),
        (head(1, 0, 0, 0) + NAME + b"\0\1\0\3", dns.rcode.REFUSED),
        (head(1, 0, 0, 1) + QUESTION + OPT.replace(b"\x10\0\0\0", b"\x10\0\0\1"), 16),
    ],
    ids=[
        *("answer", "authority", "two-more", "none-more", "cut-opt", "behind-opt"),
        *("named-opt", "behind", "axfr", "chaos", "badvers"),
    ],
)
def test_what_has_more_than_a_question_is_refused_unread(wire, rcode):
    async def work(resolver, upstream):
        answer = await resolver.resolve(wire, namespace="shop", tcp=False)
        parsed = dns.message.from_wire(answer)
        assert parsed.id == 7
        assert parsed.rcode() == rcode
        assert upstream.heard == []
        assert resolver.stats().unserved == 1

    run(work)


async def lines_run(awaitable):
    """Await, and return how many lines of Python that took."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        await awaitable
    finally:
        sys.settrace(before)
    return count


def bomb(count, labels, kind, rdata):
    """The message that took the loop seconds: records that point to one long name."""
    name = b"\1a" * labels + b"\0"
    record = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 1, len(rdata)) + rdata
    return head(1, count, 0, 0) + name + b"\0\1\0\1" + record * count


@pytest.mark.parametrize(
    "wire",
    [
        bomb(4000, 126, 1, b"\1\2\3\4"),
        bomb(2900, 126, 33, b"\0\0\0\0\0\0\xc0\x0c"),
        bomb(200, 126, 1, b"\1\2\3\4"),
        bomb(0, 127, 1, b""),
        bomb(0, 4000, 1, b""),
        head(65535, 65535, 65535, 65535) + QUESTION,
        HEAD + b"\xc0\x0c\0\1\0\1",
        HEAD + b"\x3f" + b"a" * 4000,
        head(1, 0, 0, 1) + QUESTION + OPT[:-2] + b"\x0f\0" + b"\0" * 3840,
        b"\xff" * 65535,
        b"",
    ],
    ids=[
        *("a", "srv", "some", "longest-name", "endless-name", "counts", "loop"),
        *("label", "options", "ones", "empty"),
    ],
)
def test_no_query_costs_more_than_a_name_has_labels(wire):
    async def work():
        resolver = Dns(config(), resolv_conf=pathlib.Path("/nonexistent"))
        assert await lines_run(ask_wire(resolver, HEAD + QUESTION)) < 400
        assert await lines_run(ask_wire(resolver, wire)) < 2000

    asyncio.run(work())


async def ask_wire(resolver, wire, **options):
    return await resolver.resolve(wire, namespace="shop", tcp=False, **options)


def test_an_answer_of_any_shape_costs_no_more_than_its_bytes():
    """A guest chooses whose answers are asked for: its records are not read here."""
    wires = [
        bomb(4000, 126, 1, b"\1\2\3\4"),
        b"xx\x81\x80" + b"\xff" * 60000,
        bomb(3000, 100, 33, b"\xc0\x0c" * 4),
        b"xx" + QUESTION,
        b"xx",
    ]
    left = list(wires)

    async def work(resolver, upstream):
        for _ in wires:
            query = dns.message.make_query("x.example", "A")
            assert (await ask(resolver, query)).rcode() == dns.rcode.SERVFAIL
        assert resolver.stats().failed == len(wires)

    run(work, lambda query, tcp: query.to_wire()[:2] + left.pop()[2:60000])


@pytest.mark.parametrize(
    "question",
    [
        b"\1x\7example\0\0\x61\0\1",  # type 97: 65 in small letters
        b"\1x\7example\0\0\x41\0\2",
        b"\1y\7example\0\0\x41\0\1",
        b"\1x\7example\0\0\x41",
    ],
    ids=["type", "class", "name", "cut-off"],
)
def test_an_answer_to_another_question_is_none(question):
    def respond(query, tcp):
        return query.to_wire()[:2] + b"\x81\x80\0\1\0\0\0\0\0\0" + question

    async def work(resolver, upstream):
        query = dns.message.make_query("X.example", "HTTPS")
        assert (await ask(resolver, query)).rcode() == dns.rcode.SERVFAIL

    run(work, respond)


def test_an_answer_goes_to_the_guest_as_it_came():
    """But for its id and the question, which are the guest's own."""
    junk = b"\xc0\x0c" + b"\xff" * 400

    async def work(resolver, upstream):
        query = dns.message.make_query("X.example", "A").to_wire()
        answer = await ask_wire(resolver, query)
        assert answer == query[:2] + b"\x81\x80\0\1\0\5\0\6\0\7" + query[12:] + junk

    def respond(query, tcp):
        wire = query.to_wire()
        return wire[:2] + b"\x81\x80\0\1\0\5\0\6\0\7" + wire[12:].lower() + junk

    run(work, respond)


@pytest.mark.parametrize("tcp", [False, True])
def test_queries_a_second_are_bounded_for_each_sandbox(monkeypatch, tcp):
    monkeypatch.setattr(module, "BURST", 3)
    monkeypatch.setattr(module, "QUERIES_A_SECOND", 0)

    async def work(resolver, upstream):
        wire = dns.message.make_query(WEB, "A").to_wire()
        answers = [await ask_wire(resolver, wire, sandbox="a") for _ in range(5)]
        assert [bool(answer) for answer in answers] == [True] * 3 + [False] * 2
        assert resolver.stats().limit_rate == 2
        assert await ask_wire(resolver, wire, sandbox="b")

    run(work)


def test_queries_under_way_are_bounded_for_each_sandbox(monkeypatch):
    monkeypatch.setattr(module, "MAX_SOCKETS", 2)

    async def work(resolver, upstream):
        wire = dns.message.make_query("x.example", "A").to_wire()
        first = [
            asyncio.create_task(ask_wire(resolver, wire, sandbox="a")) for _ in range(2)
        ]
        await upstream.has_heard(2)
        refused = dns.message.from_wire(await ask_wire(resolver, wire, sandbox="a"))
        assert refused.rcode() == dns.rcode.SERVFAIL
        assert resolver.stats().limit_queries == 1
        other = asyncio.create_task(ask_wire(resolver, wire, sandbox="b"))
        await upstream.has_heard(3)
        for task in (*first, other):
            task.cancel()
        await asyncio.gather(*first, other, return_exceptions=True)
        local = dns.message.make_query(WEB, "A").to_wire()
        assert await ask_wire(resolver, local, sandbox="a")

    run(work, lambda query, tcp: None)


def test_a_guest_does_not_fill_the_log(caplog, monkeypatch):
    """Each query here once made a traceback, and each failure a line."""
    monkeypatch.setattr("fastpath.throttle.LINES_A_SECOND", 0)
    monkeypatch.setattr("fastpath.throttle.TELL_S", LIMIT_S)
    caplog.set_level(logging.INFO)
    odd = (
        struct.pack("!6H", 7, 0x0100, 1, 260, 0, 0) + bomb(260, 120, 33, b"\0" * 6)[12:]
    )

    async def work(resolver, upstream):
        query = dns.message.make_query("x.example", "A").to_wire()
        for _ in range(200):
            await ask_wire(resolver, query, sandbox="a")
            await ask_wire(resolver, odd, sandbox="a")

    run(work, lambda query, tcp: query.to_wire()[:2])
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    lines = [r for r in caplog.records if r.name == module.log.name]
    assert len(lines) == 101
    assert lines[-1].getMessage() == "a: 100 more lines about names"


def ask_two(first, second, *, tcp=False):
    """Ask for a name where there are two resolvers; return answer and who heard."""

    async def main():
        async with (
            asyncio.timeout(LIMIT_S),
            Upstream(first) as a,
            Upstream(second) as b,
        ):
            resolver = Dns(config(a.address, b.address))
            query = dns.message.make_query("x.example", "A")
            answer = await ask(resolver, query, tcp=tcp)
            await resolver.close()
            return answer, len(a.heard), len(b.heard)

    return asyncio.run(main())


@pytest.mark.parametrize("tcp", [False, True])
def test_a_silent_resolver_is_not_the_only_one_asked(monkeypatch, tcp):
    monkeypatch.setattr(upstream_module, "STAGGER_S", 0.01)
    answer, *heard = ask_two(lambda query, tcp: b"" if tcp else None, records, tcp=tcp)
    assert texts(answer) == ["192.0.2.0"]
    assert heard == [1, 1]


def test_a_slow_resolver_is_waited_for_when_the_next_is_silent(monkeypatch):
    monkeypatch.setattr(upstream_module, "STAGGER_S", 0.01)
    asked = []

    async def main():
        loop = asyncio.get_running_loop()
        async with (
            asyncio.timeout(LIMIT_S),
            Upstream(lambda q, t: asked.append(q)) as slow,
            Upstream(lambda q, t: None) as silent,
        ):
            resolver = Dns(config(slow.address, silent.address))
            query = dns.message.make_query("x.example", "A")
            answering = loop.create_task(ask(resolver, query))
            await silent.has_heard(1)
            (peer,) = slow.peers
            slow.send(records(asked[0], False).to_wire(), peer)
            return texts(await answering)

    assert asyncio.run(main()) == ["192.0.2.0"]


@pytest.mark.parametrize("code", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_a_resolver_that_fails_is_not_the_last_word(code):
    answer, *heard = ask_two(failing(code), records)
    assert texts(answer) == ["192.0.2.0"]
    assert heard == [1, 1]
    answer, *_ = ask_two(failing(code), failing(code))
    assert answer.rcode() == code


def test_what_does_not_exist_is_the_first_resolvers_to_say():
    answer, *heard = ask_two(failing(dns.rcode.NXDOMAIN), records)
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert heard == [1, 0]


def test_other_datagrams_than_the_answer_are_passed_over(monkeypatch):
    async def work(resolver, upstream):
        query = dns.message.make_query("x.example", "A")
        answering = asyncio.create_task(ask(resolver, query))
        await upstream.has_heard(1)
        ((number, _),) = upstream.heard
        (peer,) = upstream.peers
        right = query.to_wire()
        for _ in range(upstream_module.MAX_STRAYS - 1):
            upstream.send((number ^ 1).to_bytes(2) + right[2:], peer)
        upstream.send(b"", peer)  # the last one that may be
        assert (await answering).rcode() == dns.rcode.SERVFAIL

    run(work, lambda query, tcp: None)


def test_the_hosts_resolvers_are_read_anew(tmp_path):
    path = tmp_path / "resolv.conf"

    async def work():
        resolver = Dns(config(), resolv_conf=path)
        assert list(resolver.resolvers()) == []
        path.write_text("# x\nsearch a\nnameserver\nnameserver 192.0.2.1\n")
        assert list(resolver.resolvers()) == [("192.0.2.1", 53)]
        path.write_text("nameserver ::1\nnameserver 1.1.1.1\n" * 3)
        assert len(resolver.resolvers()) == 3

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


def test_queries_on_a_tcp_connection_take_turns_with_all_else():
    """What has been read of it never waits: local names are answered at once."""

    async def work(resolver, upstream):
        ours, theirs = socket.socketpair()
        wire = dns.message.make_query(WEB, "A").to_wire()
        ours.send((len(wire).to_bytes(2) + wire) * 300)
        resolver.serve(theirs, sandbox="a", namespace="shop")
        seen = [0]
        while seen[-1] < 300:
            await asyncio.sleep(0)
            seen.append(resolver.stats().local)
        assert max(b - a for a, b in itertools.pairwise(seen)) <= 1
        ours.close()

    run(work)


def test_a_tcp_query_longer_than_any_is_not_waited_for():
    async def work(resolver, upstream):
        ours, theirs = socket.socketpair()
        resolver.serve(theirs, sandbox="a", namespace="shop")
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(b"\xff\xff")
        assert await reader.read() == b""
        assert resolver.stats().malformed == 1
        writer.close()
        await writer.wait_closed()

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
