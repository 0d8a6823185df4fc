"""The host's /etc/resolv.conf, as far as it matters here.

It is the host's own file, so it is taken as it is; what is no address, no domain or no
number is left out, as resolvers do. The last `search` or `domain` line counts.

Spec: resolv.conf(5) of glibc 2.36, whose bounds these are.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH: Final = Path("/etc/resolv.conf")
MAX_NAMESERVERS: Final = 3
"""MAXNS: those after it are not asked."""
MAX_SEARCH: Final = 6
"""Domains; older C libraries take no more."""
MAX_SEARCH_CHARS: Final = 255
OPTIONS: Final = {"ndots": 15, "timeout": 30, "attempts": 5}
"""Those that a client of ours should have too, and their largest values."""

_DOMAIN: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """What the file says."""

    nameservers: tuple[str, ...] = ()
    """IP addresses, with a scope where it has one."""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """`name:value`, of `OPTIONS`."""


def parse(text: str) -> ResolvConf:
    """Read the content of a resolv.conf."""
    nameservers: list[str] = []
    search: tuple[str, ...] = ()
    options: dict[str, int] = {}
    for line in text.splitlines():
        key, *words = line.split() or ("",)
        if key == "nameserver" and words and _is_address(words[0]):
            nameservers.append(words[0])
        elif key in ("search", "domain"):
            search = tuple(_domains(words if key == "search" else words[:1]))
        elif key == "options":
            options |= dict(_options(words))
    return ResolvConf(
        tuple(nameservers[:MAX_NAMESERVERS]),
        search,
        tuple(f"{name}:{value}" for name, value in options.items()),
    )


def read(path: Path = PATH) -> ResolvConf:
    """Read a file; one that can't be read says nothing."""
    try:
        return parse(path.read_text("ascii", "replace"))
    except OSError:
        return ResolvConf()


def kernel_parameters(conf: ResolvConf) -> str:
    """What makes init write the same search list and options into a guest's file.

    The words have no other characters than `parse` lets through, so none of them ends
    a parameter.
    """
    lists = {"resolv_search": conf.search, "resolv_options": conf.options}
    return " ".join(f"{name}={','.join(it)}" for name, it in lists.items() if it)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _domains(words: list[str]) -> Iterator[str]:
    left = MAX_SEARCH_CHARS
    for word in words[:MAX_SEARCH]:
        left -= len(word) + 1
        if left >= 0 and _DOMAIN.fullmatch(word):
            yield word


def _options(words: list[str]) -> Iterator[tuple[str, int]]:
    for word in words:
        name, _, value = word.partition(":")
        if name in OPTIONS and value.isascii() and value.isdecimal():
            yield name, min(int(value[:9]), OPTIONS[name])
