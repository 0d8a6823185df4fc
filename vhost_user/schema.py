"""What dataclasses say of the values that a user writes, in a file or as an option.

    @dataclass(frozen=True)
    class Limits:
        max_conns: Annotated[int, Between(1, 1024)] = 64

What reads a value raises ValueError for a wrong one. `decode.py` reads YAML by these.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpPrefix = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_ip(text: str) -> IpAddress:
    """Read an IP without a scope (`%eth0`), or raise `ValueError`."""
    if "%" in text:
        raise ValueError(f"must be an IP without a scope, not {text!r}")
    return ipaddress.ip_address(text)


def parse_prefix(text: str) -> IpPrefix:
    """Read `IP/LENGTH`, or raise `ValueError`; host bits may be set."""
    return ipaddress.ip_network(text, strict=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Between:
    """Bounds of an integer, both included."""

    low: int
    high: int

    def parse(self, text: str) -> int:
        """Read a decimal number, or raise `ValueError`."""
        if text.isascii() and text.isdecimal() and len(text) < 20:
            value = int(text)
            if self.low <= value <= self.high:
                return value
        raise ValueError(f"must be a number from {self.low} to {self.high}, not {text}")


@dataclasses.dataclass(frozen=True, slots=True)
class PowerOfTwo(Between):
    """One of these within bounds, both included."""

    def parse(self, text: str) -> int:
        """Read a decimal number, or raise `ValueError`."""
        value = Between.parse(self, text)
        if value & (value - 1):
            raise ValueError(f"must be a power of two, as 65536 is, not {text}")
        return value


@dataclasses.dataclass(frozen=True, slots=True)
class Matches:
    """What all of a string must match, and what to call that."""

    pattern: str
    what: str

    def parse(self, text: str) -> str:
        """Return `text`, or raise `ValueError`."""
        if not re.fullmatch(self.pattern, text, re.ASCII):
            raise ValueError(f"must be {self.what}, not {text!r}")
        return text


@dataclasses.dataclass(frozen=True, slots=True)
class Parsed:
    """What reads a value and raises `ValueError` for a wrong one."""

    parse: Callable[[str], object]


def parsers(schema: type[Any]) -> Mapping[str, Callable[[str], Any]]:
    """Return what reads each field; all are `Annotated[T, constraint]`."""
    hints = get_type_hints(schema, include_extras=True)
    return {
        field.name: hints[field.name].__metadata__[0].parse
        for field in dataclasses.fields(schema)
    }
