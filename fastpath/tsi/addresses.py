"""What an address is: one that is nobody's to dial, or an IPv4 one in IPv6's clothes.

Two tables, and no decisions: `SPECIAL` are the destinations that a policy denies by
default, `FORMS` the ways in which an IPv6 address carries an IPv4 one. Packets to such
an address leave for the IPv4 host, at the next translator or relay if not here, so a
policy has to judge that host as well.

An operator's own NAT64 prefix (RFC 6052 section 2.2) and 6rd (RFC 5969) can't be told
from other addresses; docs/tsi-policy.md says so.

Spec: RFC 6890 and the providers' pages for `SPECIAL`; each form names its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Special:
    """Destinations that are denied by default."""

    network: Network
    reason: str
    """One of a few words, for counters."""
    what: str
    """For people."""


SPECIAL: Final = tuple(
    Special(ip_network(prefix), reason, what)
    for prefix, reason, what in (
        ("0.0.0.0/8", "unspecified", "this host on this network (RFC 791)"),
        ("127.0.0.0/8", "loopback", "the host's own"),
        ("169.254.0.0/16", "link_local", "169.254.169.254: metadata of most clouds"),
        ("100.100.100.200/32", "metadata", "Alibaba Cloud"),
        ("168.63.129.16/32", "metadata", "Azure's WireServer"),
        ("192.0.0.192/32", "metadata", "Oracle Cloud, classic"),
        ("224.0.0.0/4", "multicast", "RFC 5771"),
        ("240.0.0.0/4", "reserved", "RFC 1112, and the broadcast address"),
        ("::/128", "unspecified", "RFC 4291"),
        ("::1/128", "loopback", "the host's own"),
        ("fe80::/10", "link_local", "fe80::a9fe:a9fe: metadata of OpenStack"),
        ("fd00:ec2::/32", "metadata", "Amazon: metadata, pod identity, DNS, time"),
        ("fd20:ce::254/128", "metadata", "Google Cloud"),
        ("fd00:c1::a9fe:a9fe/128", "metadata", "Oracle Cloud"),
        ("fd00:42::42/128", "metadata", "Scaleway"),
        ("fd00:a9fe:a9fe::1/128", "metadata", "Akamai (Linode)"),
        ("fd00:100::100:200/128", "metadata", "Alibaba Cloud"),
        ("ff00::/8", "multicast", "RFC 4291"),
    )
)

_RANGES: Final = {
    version: tuple(
        (int(it.network.network_address), int(it.network.broadcast_address), it)
        for it in SPECIAL
        if it.network.version == version
    )
    for version in (4, 6)
}
"""By version: first, last and what they are; this is asked for each connection."""

NAT64_LOCAL: Final = IPv6Network("64:ff9b:1::/48")
_RESERVED_OCTET: Final = 8
UNREADABLE: Final = Special(
    NAT64_LOCAL, "reserved", "where octet 8 is not 0: no form of RFC 6052 has that"
)
_THIS_NETWORK: Final = IPv4Network("0.0.0.0/8")
_ISATAP: Final = frozenset({bytes.fromhex("00005efe"), bytes.fromhex("02005efe")})
_LAST: Final = (12, 13, 14, 15)


@dataclass(frozen=True, slots=True)
class Form:
    """A way in which an IPv6 address carries an IPv4 one."""

    name: str
    network: IPv6Network
    octets: tuple[int, int, int, int]
    """Which of the 16 are the IPv4 address."""
    spec: str
    same_host: bool = False
    """Whether it is the IPv4 host under another name, for sure: a rule that allows the
    one allows the other. Not if it only relays, or if this is a guess."""
    inverted: bool = False

    def read(self, address: IPv6Address) -> IPv4Address | None:
        """Return the IPv4 address; None: it has none of this form."""
        if address not in self.network:
            return None
        packed = address.packed
        if self is ISATAP and packed[8:12] not in _ISATAP:
            return None
        flip = 0xFF if self.inverted else 0
        found = IPv4Address(bytes(packed[octet] ^ flip for octet in self.octets))
        unsure = self.network == NAT64_LOCAL and self.octets != _LAST
        return None if unsure and found in _THIS_NETWORK else found

    def fixed_by(self, bits: int) -> int:
        """Return how long a prefix of IPv6 is that fixes so many bits of the IPv4."""
        octet, rest = divmod(max(bits, 1) - 1, 8)
        return self.octets[octet] * 8 + rest + 1


def _form(
    name: str,
    prefix: str,
    octets: tuple[int, int, int, int],
    spec: str,
    *,
    same_host: bool = False,
    inverted: bool = False,
) -> Form:
    return Form(name, IPv6Network(prefix), octets, spec, same_host, inverted)


MAPPED: Final = _form(
    "IPv4-mapped", "::ffff:0:0/96", _LAST, "RFC 4291 section 2.5.5.2", same_host=True
)
ISATAP: Final = _form("ISATAP", "::/0", _LAST, "RFC 5214 section 6.1")
_RFC6052: Final = "RFC 8215, RFC 6052 section 2.2"
FORMS: Final = (
    MAPPED,
    _form("IPv4-compatible", "::/96", _LAST, "RFC 4291 section 2.5.5.1"),
    _form(
        "IPv4-translated",
        "::ffff:0:0:0/96",
        _LAST,
        "RFC 2765 section 2.1",
    ),
    _form("NAT64", "64:ff9b::/96", _LAST, "RFC 6052 section 2.1", same_host=True),
    *(
        _form(f"NAT64, /{length}", str(NAT64_LOCAL), octets, _RFC6052)
        for length, octets in (
            (48, (6, 7, 9, 10)),
            (56, (7, 9, 10, 11)),
            (64, (9, 10, 11, 12)),
            (96, _LAST),
        )
    ),
    _form("6to4", "2002::/16", (2, 3, 4, 5), "RFC 3056 section 2"),
    _form("Teredo, server", "2001::/32", (4, 5, 6, 7), "RFC 4380 section 4"),
    _form("Teredo, client", "2001::/32", _LAST, "RFC 4380 section 4", inverted=True),
    ISATAP,
)
"""All of them. NAT64's local-use prefix can be cut in four ways, and only its network
knows in which: an address is read in all of them, but for readings in 0.0.0.0/8, which
just say that it was another one."""


_PREFIXES: Final = tuple(
    (rest, int(form.network.network_address) >> rest, form)
    for form in FORMS
    for rest in (128 - form.network.prefixlen,)
)


def readings(address: IPv6Address) -> Iterator[tuple[Form, IPv4Address]]:
    """All IPv4 addresses that an IPv6 one carries, with how."""
    number = int(address)
    if number <= 1:  # :: and ::1 are no IPv4-compatible ones
        return
    for rest, prefix, form in _PREFIXES:
        found = form.read(address) if number >> rest == prefix else None
        if found is not None:
            yield form, found


def special(address: Address) -> Special | None:
    """What an address is, apart from the IPv4 one that it may carry."""
    number = int(address)
    for first, last, each in _RANGES[address.version]:
        if first <= number <= last:
            return each
    if address in NAT64_LOCAL and address.packed[_RESERVED_OCTET]:
        return UNREADABLE
    return None


def as_ipv4(network: Network) -> Network:
    """Return a prefix of IPv4-mapped addresses as the IPv4 one that it is."""
    if network.version == 6 and network.subnet_of(MAPPED.network):
        base = int(network.network_address) & 0xFFFF_FFFF
        return IPv4Network((base, network.prefixlen - MAPPED.network.prefixlen))
    return network


def carried(network: Network) -> Iterator[IPv4Network]:
    """The IPv4 prefixes that hold what all addresses of an IPv6 prefix carry."""
    if network.version == 4:
        return
    for form in FORMS:
        inner = form.read(network.network_address)
        if inner is None or not network.subnet_of(form.network):
            continue
        fixed = [n for n in range(1, 33) if form.fixed_by(n) <= network.prefixlen]
        if fixed and form is not ISATAP:
            yield IPv4Network((inner, fixed[-1]), strict=False)
