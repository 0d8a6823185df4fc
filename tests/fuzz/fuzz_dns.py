"""Anything at all as a DNS query, and anything as a resolver's answer to it.

libFuzzer's bytes, through Atheris, are a query: as they are, or put together from parts
that fit (a name, counts, an OPT record), and the datagrams that come from the resolver.

What must hold: each costs a bounded CPU time; nothing raises or is logged as an error;
an answer has the query's id and question, and fits; what dnspython takes for a plain
query is answered; what goes to the resolver has that question and nothing of the rest.
dnspython is asked outside of the bound: it reads all records, which is the fault that
this code was written to be without.

`run.py` starts it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct

import atheris
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdatatype

with atheris.instrument_imports(include=["fastpath"]):
    from fastpath.ztunnel import dns as module
    from fastpath.ztunnel import dnswire, upstream
    from fastpath.ztunnel.model import (
        Config,
        Fastpath,
        ListenAddress,
        NetworkAddress,
        Service,
    )

from tests.fuzz.budget import Budget
from tests.fuzz.input import Input, fuzz
from tests.fuzz.log import Errors

NAMES = [b"\3web\4shop\0", b"\1a\4wild\0", b"\3web\0", b"\0", b"\7example\3com\0"]
LONGEST_QUESTION = 12 + 255 + 4 + 11


def bomb(kind, rdata):
    """Records that all point to one long name: seconds for who reads them."""
    name = b"\1a" * 126 + b"\0"
    record = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 1, len(rdata)) + rdata
    count = (4090 - 12 - len(name) - 4) // len(record)
    head = struct.pack("!6H", 7, 256, 1, count, 0, 0)
    return head + name + b"\0\1\0\1" + record * count


def query(data):
    """Put a query together; most of its parts are right."""
    shape = data.byte()
    name = data.pick(NAMES) if shape & 3 else any_name(data)
    counts = [1, 0, 0, shape >> 7]
    if shape & 4:
        counts[data.byte() % 4] = data.byte()
    flags = 0x0100 if shape & 8 else int.from_bytes(data.take(2))
    kind = (1, 28, 15, 65, 252, 255)[data.byte() % 6]
    wire = struct.pack("!6H", data.byte(), flags, *counts)
    wire += name + struct.pack("!2H", kind, 1 if shape & 16 else data.byte())
    if shape >> 7:
        options = data.take(data.byte()) if shape & 32 else b""
        length = data.byte() if shape & 64 else len(options)
        wire += struct.pack("!BHHIH", 0, 41, 1 << (data.byte() % 16), 0, length)
        wire += options
    return wire + data.take(data.byte() & 7)


def any_name(data):
    labels = [data.take(1 + data.byte() % 70) for _ in range(data.byte() % 140)]
    return b"".join(bytes([len(label) & 255]) + label for label in labels) + b"\0"


def plain(wire):
    """What dnspython reads of a plain query; None: it is none."""
    if len(wire) > 4096:
        return None
    try:
        read = dns.message.from_wire(wire)
    except Exception:  # it is not what is tried here
        return None
    if read.flags & dns.flags.QR or read.opcode() or len(read.question) != 1:
        return None
    others = read.answer or read.authority or read.additional
    return None if others or read.tsig or read.edns > 0 else read


class Target:
    """What is made once, for all inputs."""

    def __init__(self):
        self.errors = Errors()
        self.budget = Budget()
        self.loop = asyncio.new_event_loop()
        vip = NetworkAddress("", ipaddress.ip_address("10.96.0.10"))
        services = [
            Service(name="s", namespace="shop", hostname=host, vips=(vip,), ports={})
            for host in ("web.shop.svc.cluster.local", "*.wild")
        ]
        resolver = ListenAddress(ipaddress.ip_address("192.0.2.1"), 53)
        own = Fastpath(resolvers=(resolver,))
        self.config = Config(services=tuple(services), fastpath=own)
        vars(upstream)["_ask_udp"] = vars(upstream)["_ask_tcp"] = self.ask
        self.sent = []
        self.answers = []

    async def ask(self, asked, host, port, make):
        """Be the network: hand the query what is there, as the sockets' code does."""
        number = 7
        self.sent.append(dnswire.question_for(asked, number))
        for wire in self.answers:
            if dnswire.is_answer(asked, number, wire):
                return wire
        raise ConnectionRefusedError

    def __call__(self, data):
        """Run one query."""
        taken = Input(data)
        shape = taken.byte()
        tcp = bool(shape & 2)
        wire = query(taken) if shape & 1 else data[1:]
        echoed = b"\0\7\x81\x80" + wire[4:]
        self.answers = [
            echoed + taken.take(taken.byte()) if taken.byte() & 1 else data
            for _ in range(shape >> 6)
        ]
        self.sent.clear()
        with self.budget.measured():
            answer = self.loop.run_until_complete(self.resolve(wire, tcp=tcp))
        self.check(wire, answer, tcp=tcp)
        assert not self.errors.lines, self.errors.lines

    async def resolve(self, wire, *, tcp):
        resolver = module.Dns(self.config)
        answer = await resolver.resolve(wire, namespace="shop", tcp=tcp)
        await resolver.close()
        return answer

    def check(self, wire, answer, *, tcp):
        read = plain(wire)
        assert answer is not None or read is None, "a plain query has no answer"
        if answer is None:
            return
        number, flags, questions = struct.unpack_from("!3H", answer)
        assert number == int.from_bytes(wire[:2])
        assert flags & 0x8000
        assert questions == 1
        assert len(answer) <= (65535 if tcp else 4096)
        name, end = dns.name.from_wire(wire, 12)
        assert answer[12 : 16 + end] == wire[12 : 16 + end]
        for each in self.sent:
            assert len(each) <= LONGEST_QUESTION
            sent = plain(each)
            assert sent is not None
            assert sent.question[0].name == name
            # None: its options are not well formed; nobody here reads those
            assert read is None or sent.question == read.question


def seeds():
    """Yield questions as they are, shaped ones, and names that are long to decode."""
    for i, name in enumerate(NAMES):
        for shape in (0x1B, 0x9B, 0xFB):
            yield bytes([0xC1, shape, i, 0, 7]) + bytes(64)
        question = struct.pack("!6H", 7, 256, 1, 0, 0, 0) + name + b"\0\1\0\1"
        yield b"\xc0" + question
    for kind, rdata in ((1, b"aaaa"), (33, b"\0" * 6 + b"\xc0\x0c"), (65000, b"")):
        yield b"\xc0" + bomb(kind, rdata)


def main():
    fuzz(Target(), seeds())


if __name__ == "__main__":
    main()
