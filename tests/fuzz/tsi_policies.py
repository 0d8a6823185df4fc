"""The policies that `fuzz_tsi.py` changes between, and an oracle of what they deny."""

from __future__ import annotations

import functools
import ipaddress

ECHO = ("198.18.0.1", 7)
POLICIES = [
    "published: [80]",
    "egress: {allow: ['192.0.2.0/24', '127.0.0.1:9090', '198.18.0.0/15']}\nudp: true",
    "egress: {deny: ['192.0.2.1:80', '2001:db8::/32', '198.18.0.1:7'], errno: EACCES}",
    "egress: {allow: ['0.0.0.0/0', '::/0']}\nudp: true\npublished: [80, 8000-8001]",
]
WITH_UDP = (1, 3)
PUBLISHED: tuple[tuple[int, ...], ...] = ((80,), (), (), (80, 8000, 8001))
DESTINATIONS = [
    ("192.0.2.1", 80),
    ("192.0.2.1", 81),
    ("2001:db8::1", 443),
    ECHO,
    ("198.18.0.1", 9),
    ("127.0.0.1", 9090),
    ("127.0.0.1", 22),
    ("0.0.0.0", 80),
    ("169.254.169.254", 80),
    ("64:ff9b::7f00:1", 22),
    ("fe80::1", 1),
    ("224.0.0.1", 1),
]
PEERS = [*DESTINATIONS, ("192.0.2.1", 53), ("fe80::1", 53)]


@functools.cache
def denied(policy, destination):
    """Whether a policy denies a destination: said again, in another way."""
    ip, port = ipaddress.ip_address(destination[0]), destination[1]
    if ip in ipaddress.ip_network("64:ff9b::/96"):
        ip = ipaddress.ip_address(ip.packed[12:])
    special = ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified
    if special and not (policy == 1 and (str(ip), port) == ("127.0.0.1", 9090)):
        return True
    if policy == 1:
        within = [ipaddress.ip_network(n) for n in ("192.0.2.0/24", "198.18.0.0/15")]
        return not special and not any(
            ip in net for net in within if net.version == ip.version
        )
    if policy == 2:
        ruled = (str(ip), port) in (("192.0.2.1", 80), ECHO)
        return ruled or (ip.version == 6 and ip.packed[:4] == b"\x20\x01\x0d\xb8")
    return False
