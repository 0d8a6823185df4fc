"""A sandbox's policy: what it may reach, what reaches it, and how much of it all.

`SandboxPolicy` is one value that never changes: whoever holds the current one asks
it, and a reload puts another in its place. `policyfile.py` reads it from a file.

Egress is decided on the host, for the address that is then dialled; nothing the guest
says but the destination enters. In this order:

1. A deny rule that covers the destination denies it.
2. Some destinations are denied unless an allow rule names them in particular: the
   host's loopback, link-local and metadata addresses, multicast and the like, and
   ztunnel's own ports on the host's own addresses. "In particular" is a prefix
   within the denied one: `127.0.0.1/32:8080` opens that port, `0.0.0.0/0` does not
   open loopback.
3. If there are allow rules, one has to cover the destination.

An IPv4 address inside an IPv6 one (v4-mapped, and NAT64's well-known prefix) is
judged as the IPv4 address that it reaches.

Spec: design.md section 6; RFC 6890 for the special prefixes; RFC 6052 for NAT64.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TYPE_CHECKING, Annotated, Final, Self

from fastpath.decode import Between
from vhost_user.engine import (
    DEFAULT_MAX_CONNS,
    DEFAULT_MAX_QUEUED_BYTES,
    MIN_WINDOW,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vhost_user.engine import SocketAddress

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

ANY_PORT: Final = ((0, 65535),)
ZTUNNEL_PORTS: Final = frozenset({15000, 15001, 15006, 15008, 15020, 15021, 15053})
"""Admin, outbound, inbound plaintext, HBONE, metrics, readiness, DNS."""

_NAT64: Final = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Rule:
    """A prefix, and the ports of it that are meant."""

    network: Network
    ports: tuple[tuple[int, int], ...] = ANY_PORT
    """First and last port of each range."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `PREFIX[:PORTS]`.

        PREFIX is an address or a prefix without host bits; an IPv6 one that is
        followed by ports stands in brackets. PORTS is a comma-separated list of
        ports and ranges: `10.0.0.0/8`, `192.0.2.1:80,443`, `[2001:db8::]/32:1-1023`.

        Raises:
            ValueError: it says which part of `text` is wrong, and how.
        """
        prefix, ports = _split(text)
        try:
            network = ip_network(prefix)
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None
        return cls(network, ANY_PORT if ports is None else _ports(ports, text))

    def __str__(self) -> str:
        prefix = str(self.network)
        if self.ports == ANY_PORT:
            return prefix
        if self.network.version == 6:
            host, _, length = prefix.partition("/")
            prefix = f"[{host}]/{length}"
        ranges = (str(a) if a == b else f"{a}-{b}" for a, b in self.ports)
        return f"{prefix}:{','.join(ranges)}"

    def covers(self, address: Address, port: int) -> bool:
        """Whether it names this destination."""
        return address in self.network and any(a <= port <= b for a, b in self.ports)


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a destination is denied."""

    reason: str
    """One of a few words, for counters."""
    text: str
    """For people: the rule that denied it."""
    error: int = errno.ECONNREFUSED
    """What the program's connect() fails with."""


_SPECIAL: Final = tuple(
    (ip_network(prefix), reason)
    for prefix, reason in (
        ("0.0.0.0/8", "unspecified"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link_local"),  # 169.254.169.254: metadata services
        ("100.100.100.200/32", "metadata"),  # Alibaba Cloud
        ("168.63.129.16/32", "metadata"),  # Azure
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),  # and the broadcast address
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("fe80::/10", "link_local"),
        ("fd00:ec2::254/128", "metadata"),  # Amazon
        ("ff00::/8", "multicast"),
    )
)


def is_own_address(address: Address) -> bool:
    """Whether `address` is one of this host's, in this network namespace.

    The kernel is asked, so that an address that came a moment ago counts: a
    socket can be bound to the host's own addresses and to no others.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


class EgressPolicy:
    """Decides for one sandbox.

    Args:
        allow: what it may reach; empty: whatever is not denied.
        deny: what it may not, whatever `allow` says.
        error: errno that a denied connect() fails with, ECONNREFUSED or EACCES.
        own: tells the host's own addresses, on which ztunnel's ports are denied.
    """

    def __init__(
        self,
        *,
        allow: Iterable[Rule] = (),
        deny: Iterable[Rule] = (),
        error: int = errno.ECONNREFUSED,
        own: Callable[[Address], bool] = is_own_address,
    ) -> None:
        self._allow = tuple(allow)
        self._deny = tuple(deny)
        self._error = error
        self._own = own

    @property
    def error(self) -> int:
        """Errno of a denial."""
        return self._error

    def check(self, destination: SocketAddress) -> Denial | None:
        """Return why `destination` is denied; None: it is allowed.

        Raises:
            ValueError: its host is not an IP address.
        """
        address = _reached(ip_address(destination[0]))
        port = destination[1]
        for rule in self._deny:
            if rule.covers(address, port):
                return Denial("deny_rule", f"denied by {rule}", self._error)
        special = self._special(address, port)
        if special is not None:
            return special
        if self._allow and not any(rule.covers(address, port) for rule in self._allow):
            return Denial("not_allowed", "no allow rule covers it", self._error)
        return None

    def _special(self, address: Address, port: int) -> Denial | None:
        for network, reason in _SPECIAL:
            if address in network and not self._opened(network, address, port):
                text = f"{reason.replace('_', '-')} addresses are denied ({network})"
                return Denial(reason, text, self._error)
        if port in ZTUNNEL_PORTS and self._own(address):
            host = ip_network(address)
            if not self._opened(host, address, port):
                text = f"port {port} of the host is ztunnel's own"
                return Denial("ztunnel_port", text, self._error)
        return None

    def _opened(self, within: Network, address: Address, port: int) -> bool:
        """Whether an allow rule names the destination within a denied prefix."""
        return any(
            rule.covers(address, port) and _is_within(rule.network, within)
            for rule in self._allow
        )


@dataclass(frozen=True, slots=True)
class Ports:
    """A set of ports, as ranges: 1 to 65535."""

    ranges: tuple[tuple[int, int], ...] = ()
    """First and last port of each."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `80,443,8000-8099`.

        Raises:
            ValueError: names the part that is wrong.
        """
        ranges = _ports(text, text)
        if any(low == 0 for low, _ in ranges):
            raise ValueError(f"{text!r}: port 0 is none")
        return cls(ranges)

    @classmethod
    def join(cls, parts: Iterable[Ports]) -> Self:
        """All ports that one of `parts` has."""
        return cls(tuple(span for part in parts for span in part.ranges))

    def covers(self, port: int) -> bool:
        """Whether `port` is one of them."""
        return any(low <= port <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a sandbox may take of the process.

    The first three are the device's (docs/limits.md).
    """

    max_conns: Annotated[int, Between(1, 1 << 24)] = DEFAULT_MAX_CONNS
    """Connections, both ways."""
    max_queued_bytes: Annotated[int, Between(MIN_WINDOW, 1 << 40)] = (
        DEFAULT_MAX_QUEUED_BYTES
    )
    """Bytes from the guest that the process may hold; at least `MIN_WINDOW` for each
    of `max_conns`."""
    accept_rate: Annotated[int, Between(0, 1 << 24)] = 0
    """Requests a second from the guest, and as many from the host; 0: any number."""
    max_listeners: Annotated[int, Between(0, 65535)] = 256
    """Published listeners at a time."""
    max_udp_sockets: Annotated[int, Between(1, 65535)] = 512
    """UDP sockets on the host at a time: one for each of the guest's that sends, and
    for each family of the peers it sends to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPolicy:
    """All that is decided about one sandbox."""

    egress: EgressPolicy = field(default_factory=EgressPolicy)
    published: Ports = Ports()
    """Ports of the guest's listeners that are reachable from outside."""
    udp: bool = False
    """Whether it may use UDP other than DNS, where `egress` allows."""
    limits: Limits = Limits()


def _reached(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one leads to, if it does."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _is_within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network) and isinstance(outer, IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, IPv6Network) and isinstance(outer, IPv6Network):
        return inner.subnet_of(outer)
    return False


def _split(text: str) -> tuple[str, str | None]:
    """Cut `PREFIX[:PORTS]` in two; brackets are dropped.

    Raises:
        ValueError: the brackets do not match.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise ValueError(f"{text!r}: ']' is missing")
        length, colon, ports = rest.partition(":")
        if length and not length.startswith("/"):
            raise ValueError(f"{text!r}: {length!r} after ']'")
        return host + length, ports if colon else None
    if text.count(":") > 1:  # IPv6 without ports
        return text, None
    prefix, colon, ports = text.partition(":")
    return prefix, ports if colon else None


def _ports(ports: str, text: str) -> tuple[tuple[int, int], ...]:
    """Read `80,443,8000-8099`.

    Raises:
        ValueError: names the part that is wrong.
    """
    ranges = []
    for part in ports.split(","):
        first, dash, last = part.partition("-")
        try:
            low, high = _port(first), _port(last if dash else first)
        except ValueError:
            raise ValueError(f"{text!r}: {part!r} is not a port or a range") from None
        if low > high:
            raise ValueError(f"{text!r}: range {part!r} is upside down")
        ranges.append((low, high))
    return tuple(ranges)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(text)
    return int(text)
