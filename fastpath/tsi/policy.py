"""A sandbox's policy: what it may reach, what reaches it, and how much of it all.

`SandboxPolicy` is one value that never changes: whoever holds the current one asks
it, and a reload puts another in its place. `policyfile.py` reads it from a file.

Egress is decided on the host, for the address that is then dialled; nothing the guest
says but the destination enters. In this order:

1. A deny rule that covers the destination denies it.
2. Some destinations are denied unless an allow rule names them in particular: those of
   `addresses.SPECIAL` (the host's loopback, link-local and metadata addresses,
   multicast and the like), the sandbox's own addresses, which are the guest's business
   and anybody's on the host, and ztunnel's own ports on the host's own addresses. "In
   particular" is a prefix within the denied one: `127.0.0.1/32:8080` opens that port,
   `0.0.0.0/0` does not open loopback.
3. If there are allow rules, one has to cover the destination.

An IPv6 address that carries an IPv4 one (`addresses.FORMS`) is judged as both: each of
them has to pass 1 and 2. An allow rule for either is enough in 3 where the two are one
host (v4-mapped, NAT64); where the IPv4 host only relays (6to4, Teredo, ISATAP), the
rule has to cover the IPv6 address.

Spec: design.md section 6.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import TYPE_CHECKING, Annotated, Final, Self

from fastpath.tsi.addresses import (
    Address,
    Form,
    Network,
    as_ipv4,
    carried,
    readings,
    special,
)
from vhost_user.engine import (
    DEFAULT_MAX_CONNS,
    DEFAULT_MAX_QUEUED_BYTES,
    MIN_WINDOW,
)
from vhost_user.schema import Between

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from vhost_user.engine import SocketAddress

ANY_PORT: Final = ((0, 65535),)
ISTIO_PORTS: Final = frozenset({15000, 15001, 15006, 15008, 15020, 15021, 15053, 15080})
"""Any ztunnel's: admin, outbound, inbound plaintext, HBONE, metrics, readiness, DNS,
SOCKS5."""


NETNS_GONE: Final = "netns_gone"
"""The reason of a denial: the sandbox's network namespace is gone."""


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
        A prefix of IPv4-mapped addresses is the IPv4 one that it stands for.

        Raises:
            ValueError: it says which part of `text` is wrong, and how; a rule that no
                destination can match is wrong, too.
        """
        prefix, ports = _split(text)
        if "%" in prefix:
            raise ValueError(f"{text!r}: has a scope, and no destination has one")
        try:
            network = as_ipv4(ip_network(prefix))
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
        return address in self.network and self.covers_port(port)

    def covers_port(self, port: int) -> bool:
        """Whether it names this port."""
        return any(low <= port <= high for low, high in self.ports)


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a destination is denied."""

    reason: str
    """One of a few words, for counters."""
    text: str
    """For people: the rule that denied it."""
    error: int = errno.ECONNREFUSED
    """What the program's connect() fails with."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One of the addresses that a destination is judged as."""

    address: Address
    outer: Address
    """What the program named; the same unless there is a form."""
    form: Form | None = None
    """How `outer` carries it."""

    @property
    def how(self) -> str:
        """For the end of a sentence; empty if there is nothing to say."""
        if self.form is None:
            return ""
        return f"; {self.outer} leads to {self.address} ({self.form.name})"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is decided on a destination, and by what."""

    reading: Reading
    """The address that it was decided for."""
    denial: Denial | None = None
    """None: allowed."""
    rule: Rule | None = None
    """That decided; None: a default did."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a sandbox's policy goes by and no policy file says."""

    ports: Collection[int] = ISTIO_PORTS
    """ztunnel's own; looked at anew each time."""
    addresses: frozenset[Address] = frozenset()
    """The sandbox's own."""
    unreachable: str = ""
    """Why nothing can be reached; empty: it can."""
    own: Callable[[Address], bool] | None = None
    """Tells the addresses on which `ports` are ztunnel's; None: `EgressPolicy`'s."""
    place: str = "the host"
    """Whose those are, for people."""


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
        around: which ports and which addresses are denied besides.
    """

    def __init__(
        self,
        *,
        allow: Iterable[Rule] = (),
        deny: Iterable[Rule] = (),
        error: int = errno.ECONNREFUSED,
        own: Callable[[Address], bool] = is_own_address,
        around: Surroundings = Surroundings(),
    ) -> None:
        self._allow = tuple(allow)
        self._deny = tuple(deny)
        self._error = error
        self._own = own
        self._around = around

    @property
    def error(self) -> int:
        """Errno of a denial."""
        return self._error

    def within(self, around: Surroundings) -> EgressPolicy:
        """The same policy in other surroundings."""
        return EgressPolicy(
            allow=self._allow,
            deny=self._deny,
            error=self._error,
            own=self._own,
            around=around,
        )

    def may_change(self, port: int) -> bool:
        """Whether a decision on this port hangs on the addresses the host has now."""
        return port in self._around.ports

    def check(self, destination: SocketAddress) -> Denial | None:
        """Return why `destination` is denied; None: it is allowed.

        Raises:
            ValueError: its host is not an IP address.
        """
        return self.judge(destination).denial

    def judge(self, destination: SocketAddress) -> Judgement:
        """Decide, and say by what.

        Raises:
            ValueError: its host is not an IP address.
        """
        address, port = ip_address(destination[0]), destination[1]
        found = _readings(address)
        as_written = Reading(address, address)
        if why := self._around.unreachable:
            gone = Denial(NETNS_GONE, why, errno.ENETUNREACH)
            return Judgement(as_written, gone)
        for rule in self._deny:
            for each in (*found, as_written):
                if rule.covers(each.address, port):
                    text = f"denied by {rule}{each.how}"
                    return Judgement(each, self._denial("deny_rule", text), rule)
        for each in found:
            denial = self._special(each, port)
            if denial is not None:
                return Judgement(each, denial)
        return self._allowed(found, port)

    def _allowed(self, found: tuple[Reading, ...], port: int) -> Judgement:
        for rule in self._allow:
            for each in found:
                one_host = each.form is None or each.form.same_host
                if one_host and rule.covers(each.address, port):
                    return Judgement(each, rule=rule)
        if self._allow:
            text = "no allow rule covers it"
            return Judgement(found[0], self._denial("not_allowed", text))
        return Judgement(found[0])

    def _special(self, reading: Reading, port: int) -> Denial | None:
        """Why a destination is denied by default, unless a rule opens it."""
        address = reading.address
        known = special(address)
        if known is not None and not self._opened(known.network, reading, port):
            what = known.reason.replace("_", "-")
            text = f"{what} addresses are denied ({known.network}){reading.how}"
            return self._denial(known.reason, text)
        host = ip_network(address)
        ours = address in self._around.addresses
        if ours and not self._opened(host, reading, port):
            text = f"{address} is the sandbox's own address{reading.how}"
            return self._denial("own_address", text)
        own = self._around.own or self._own
        taken = self.may_change(port) and own(address)
        if taken and not self._opened(host, reading, port):
            place = self._around.place
            text = f"port {port} of {place} is ztunnel's own{reading.how}"
            return self._denial("ztunnel_port", text)
        return None

    def _opened(self, within: Network, reading: Reading, port: int) -> bool:
        """Whether an allow rule names the destination within a denied prefix."""
        for rule in self._allow:
            if rule.covers(reading.address, port) and _is_within(rule.network, within):
                return True
            # or within the IPv6 addresses that carry those of the prefix
            if reading.form is not None and rule.covers(reading.outer, port):
                fixed = reading.form.fixed_by(within.prefixlen)
                if rule.network.prefixlen >= fixed:
                    return True
        return False

    def _denial(self, reason: str, text: str) -> Denial:
        return Denial(reason, text, self._error)


def without_effect(
    allow: Iterable[Rule], deny: Iterable[Rule]
) -> Iterator[tuple[int, Rule]]:
    """The allow rules that deny rules cover in full, so that they never match.

    Yields:
        Its index, and one of the deny rules.
    """
    denied = tuple(deny)
    for index, rule in enumerate(allow):
        for network in (rule.network, *carried(rule.network)):
            by = _covering(network, rule.ports, denied)
            if by is not None:
                yield index, by
                break


def _covering(
    network: Network, ports: tuple[tuple[int, int], ...], rules: tuple[Rule, ...]
) -> Rule | None:
    """One of the rules, if together they cover all of a prefix on all of the ports."""
    near = [rule for rule in rules if rule.network.overlaps(network)]
    edges = {max(low, 1) for low, _ in ports}
    for low, high in (span for rule in near for span in rule.ports):
        edges |= {low, high + 1}
    for port in edges:
        if any(max(low, 1) <= port <= high for low, high in ports):
            there = [rule.network for rule in near if rule.covers_port(port)]
            if not _is_within_all(network, there):
                return None
    return near[0]


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
        return cls(_ports(text, text))

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


def _readings(address: Address) -> tuple[Reading, ...]:
    """What a destination is judged as; first what is dialled."""
    if isinstance(address, IPv4Address):
        return (Reading(address, address),)
    if address.ipv4_mapped is not None:
        return (Reading(address.ipv4_mapped, address.ipv4_mapped),)
    carried_too = (Reading(it, address, form) for form, it in readings(address))
    return (Reading(address, address), *carried_too)


def _is_within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network) and isinstance(outer, IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, IPv6Network) and isinstance(outer, IPv6Network):
        return inner.subnet_of(outer)
    return False


def _is_within_all(inner: Network, parts: list[Network]) -> bool:
    """Whether the parts together hold a prefix."""
    if isinstance(inner, IPv4Network):
        ipv4 = collapse_addresses(n for n in parts if isinstance(n, IPv4Network))
        return any(inner.subnet_of(each) for each in ipv4)
    ipv6 = collapse_addresses(n for n in parts if isinstance(n, IPv6Network))
    return any(inner.subnet_of(each) for each in ipv6)


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
        if low == 0:
            raise ValueError(f"{text!r}: port 0 is none")
        ranges.append((low, high))
    return tuple(ranges)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(text)
    return int(text)
