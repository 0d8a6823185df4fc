"""The names of clients: a guest sees an IP by the vsock ports that it comes from.

Spec: docs/tsi-protocol.md, section 4 "Listeners".
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from fastpath.tsi.protocol import FIRST_PEER_PORT, PEER_RANGES, UNNAMED_RANGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastpath.tsi.addresses import Address

_RANGE_BITS: Final = 16
_TRIES: Final = 8
"""Ranges that the engine is asked about before a client goes without a name."""


class Peers:
    """Ranges of vsock ports: the upper half of a port names the client's IP.

    An IP has one range, and another for a client that comes back with the same TCP
    port while its last connection is not over yet. Ranges with connections stay; of the
    others the one unused for longest goes when all are taken.

    Args:
        ranges: how many there are.
        in_use: whether the engine may have connections from a range that nobody here
            holds; it offers none from it afterwards.
    """

    def __init__(
        self,
        ranges: int = PEER_RANGES,
        in_use: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._ranges = ranges
        self._in_use = in_use
        self._by_key: OrderedDict[tuple[Address, int], int] = OrderedDict()
        self._holds: dict[int, int] = {}
        self._owners: dict[int, int] = {}
        self._keys: dict[int, tuple[Address, int]] = {}

    def owner(self, number: int) -> int:
        """Which owner of a range it is: it had so many; 0: the range is nobody's."""
        return self._owners.get(number, 0)

    def range_of(self, ip: Address, alias: int) -> int:
        """The range of an IP; nobody's range if none is left."""
        key = (ip, alias)
        number = self._by_key.get(key)
        if number is None:
            number = self._take()
            if number == 0:
                return UNNAMED_RANGES[ip.version]
            self._by_key[key] = number
            self._keys[number] = key
            self._owners[number] = self.owner(number) + 1
        self._by_key.move_to_end(key)
        return number

    def ip_of(self, number: int) -> Address | None:
        """Whose a range is; None: nobody's."""
        key = self._keys.get(number)
        return None if key is None else key[0]

    def hold(self, number: int) -> None:
        """Keep a range for one more connection."""
        if (key := self._keys.get(number)) is not None:
            self._by_key.move_to_end(key)
        self._holds[number] = self._holds.get(number, 0) + 1

    def release(self, number: int) -> None:
        """One of its connections is over."""
        self._holds[number] -= 1
        if not self._holds[number]:
            del self._holds[number]

    def _take(self) -> int:
        """A range that is free, or that nobody needs any more."""
        if len(self._by_key) < self._ranges - len(UNNAMED_RANGES):
            return len(self._by_key) + 1
        unheld = (it for it in self._by_key.items() if it[1] not in self._holds)
        for key, number in itertools.islice(unheld, _TRIES):
            if not self._in_use(number):
                del self._by_key[key]
                return number
        return 0


def first_port(number: int) -> int:
    """The first vsock port of a range."""
    return FIRST_PEER_PORT | number << _RANGE_BITS


def range_number(port: int) -> int:
    """The range that a vsock port is of."""
    return port - FIRST_PEER_PORT >> _RANGE_BITS
