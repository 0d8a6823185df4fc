"""Inputs that `fuzz_tsi.py` begins with."""

from __future__ import annotations

from tests.fuzz.tsi_guest import hello, route
from tests.fuzz.tsi_policies import DESTINATIONS, ECHO, POLICIES


def seeds(steps):
    """Yield inputs that reach each stage of a connection's life.

    Args:
        steps: the functions that a program's bytes name by number.
    """
    step = {each.__name__: number for number, each in enumerate(steps)}

    def program(*steps):
        return bytes([1]) + b"".join(
            bytes([step[name], *arguments]) for name, *arguments in steps
        )

    begin = [("open_stream",), ("greet", 0, 0)]
    connect = [("register", 0, 0, 0), ("request", 1, 0, 0, 1, 0)]
    for number in range(len(DESTINATIONS)):
        there = [("register", 0, number, 0), ("request", 1, 0, 0, 1, 0)]
        for policy in range(len(POLICIES)):
            ends = [("settle", 0, 1), ("new_policy", policy), ("settle", 0, 0, 0)]
            yield program(*begin, ("new_policy", policy), *there, *ends)
    yield program(*begin, *connect, ("request", 1, 0, 0, 1, 0), ("new_policy", 2))
    yield program(*begin, *connect, ("close_stream", 0), ("wait", 5), ("settle", 0, 1))
    yield program(*begin, ("register_many", 0, 255), ("wait", 5), ("bystander",))
    yield program(*begin, ("any_message", 0, 9, 9), ("read", 0), ("bystander",))
    there = [
        ("listen", 0, 0, 3, 0, 0),
        ("turn",),
        ("turn",),
        ("client", 0, 0, 0, 0),
        ("turn",),
        ("introduced", 0, 0),
        ("turn",),
    ]
    for policy in range(len(POLICIES)):
        taken = [
            ("settle", 0, 1),
            ("new_policy", policy),
            ("read", 0),
            ("settle", 0, 0),
        ]
        yield program(*begin, *there, *taken, ("unlisten", 0, 0), ("turn",))
    full = [("settle", 0, 0, 1), ("wait", 2)]
    yield program(*begin, *there, *full, *full, ("listen", 0, 0, 3, 1, 0), ("wait", 5))
    yield program(*begin, *there, *full, ("close_stream", 0), ("turn",), *begin, *there)
    again = [
        ("new_policy", 1),
        ("listen", 0, 0, 3, 0, 0),
        ("turn",),
        ("unlisten", 0, 0),
    ]
    yield program(*begin, *there, *again, ("new_policy", 0), ("host_fails", 1), *there)
    udp = [("new_policy", 1), ("datagram_stream", 1, 0), ("peer", 0, 1, 0, 0)]
    send = [("datagram", 0, 1, 0, 1, 0, 0), ("turn",)]
    answer = [("network", 0, 0, 1), ("datagram_read", 0)]
    for policy in range(len(POLICIES)):
        again = [("new_policy", policy), *send, *answer]
        yield program(*udp, *send, *answer, *again, ("datagram_close", 0))
    many = [("datagram", 0, 1, flow, 1, 0, 255) for flow in range(5)]
    yield program(*udp, *many, ("wait", 2), *answer, ("bystander",))
    other = [("peer", 0, 2, 1, 0), *send, ("network", 0, 1, 1), ("datagram_read", 0)]
    yield program(*udp, *other, ("peer", 0, 1, 1, 0), ("network", 0, 1, 1), *other)
    yield program(*udp, *send, ("query", 0, 0, 0, 7), ("wait", 1), *answer)
    tcp = [("register", 0, len(DESTINATIONS), 0), ("request", 1, 0, 0, 1, 0)]
    yield program(*begin, *tcp, ("query", 0, 1, 0), ("new_policy", 2), ("wait", 4))
    for kind in range(1, 6):
        yield bytes([0, kind]) + hello() + route(0x100000, ECHO) + bytes([kind, 0, 8])
