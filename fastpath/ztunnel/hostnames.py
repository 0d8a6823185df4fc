"""IPs of workloads that are known only by a host name.

    Hostnames.find    what is known now: a decision is made without waiting
    Hostnames.learn   asks this node's resolvers, by UDP, or by TCP where that is short

What a resolver says holds for as long as it says; that there is no address, or that no
resolver answers, for `FAILED_S`. Names are those of the mesh's file, so that they, and
what is kept, are as many. A name is asked for by one lookup at a time, whoever waits.

Spec: RFC 1035; as Istio's ztunnel one of the addresses is chosen by chance, of the IP
version that the connection has, if there is one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.throttle import Throttle
from fastpath.ztunnel import dnsanswer, dnswire
from fastpath.ztunnel.dnswire import MalformedError, Rcode, Type
from fastpath.ztunnel.upstream import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vhost_user.engine import SocketAddress
    from vhost_user.schema import IpAddress

TRIES: Final = 2
"""Of asking them all: a query or its answer may be lost."""
TRY_S: Final = 5.0
"""For one to answer; a connection waits no longer than 30 s for all."""
FAILED_S: Final = 5.0
LONGEST_S: Final = 86400
AT_ONCE: Final = 64
"""Lookups under way; others wait."""

_CODES: Final = {each.value: each.name for each in Rcode}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a name."""

    addresses: tuple[IpAddress, ...]
    until: float
    why: str = ""
    """There are none: why not."""


class Hostnames:
    """Names, and their IPs as far as they are known.

    Args:
        resolvers: whom to ask.
        rng: chooses among addresses.
    """

    def __init__(
        self,
        resolvers: Callable[[], Sequence[SocketAddress]],
        rng: random.Random | None = None,
    ) -> None:
        self._resolvers = resolvers
        self._rng = rng or random.Random()  # noqa: S311 - balances load, no secret
        self._known: dict[str, _Known] = {}
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)
        self._lines = Throttle(
            lambda count: _log.warning("%d more lines about host names", count)
        )

    def find(self, name: str, version: int) -> IpAddress | None:
        """One of a name's IPs, of this version if there is one; None: not known."""
        known = self._valid(name)
        addresses = known.addresses if known else ()
        same = [ip for ip in addresses if ip.version == version]
        return self._rng.choice(same or addresses) if addresses else None

    def why_not(self, name: str) -> str:
        """Why a name is known to have no IP; empty: that isn't known."""
        known = self._valid(name)
        return known.why if known else ""

    async def learn(self, name: str) -> None:
        """Look a name up, unless it is known; never raises."""
        if self._valid(name):
            return
        if name not in self._lookups:
            task = asyncio.create_task(self._look_up(name), name=f"lookup of {name}")
            self._lookups[name] = task
            task.add_done_callback(lambda _task: self._lookups.pop(name, None))
        await asyncio.shield(self._lookups[name])

    def forget(self) -> None:
        """Know nothing any more: the mesh has other names."""
        self._known.clear()

    async def close(self) -> None:
        """End what is under way."""
        tasks = [*self._lookups.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._lines.flush()

    def _valid(self, name: str) -> _Known | None:
        known = self._known.get(name)
        now = asyncio.get_running_loop().time()
        return known if known and known.until > now else None

    async def _look_up(self, name: str) -> None:
        why: dict[str, str] = {}
        async with self._room:
            kinds = (Type.A, Type.AAAA)
            answers = await asyncio.gather(*(self._ask(name, it, why) for it in kinds))
        found = [it for it in answers if it and it.addresses]
        now = asyncio.get_running_loop().time()
        if found:
            ttl_s = min(max(min(it.ttl_s for it in found), 1), LONGEST_S)
            addresses = tuple(ip for it in found for ip in it.addresses)
            self._known[name] = _Known(addresses, now + ttl_s)
            return
        text = "; ".join(f"{host}: {each}" for host, each in why.items())
        text = f"{name} has no address: {text or 'there is no resolver'}"
        self._known[name] = _Known((), now + FAILED_S, text)
        if self._lines.admits():
            _log.warning("%s", text)

    async def _ask(
        self, name: str, kind: Type, why: dict[str, str]
    ) -> dnsanswer.Answer | None:
        """Ask for one kind of address; None: nobody says."""

        def failed(host: str, error: Exception) -> None:
            why[host] = str(error) or type(error).__name__

        try:
            query = dnsanswer.query_for(name, kind)
            resolvers = self._resolvers()
            wire = await self._run(query, resolvers, failed, tcp=False)
            if wire and dnsanswer.is_cut(wire):
                wire = await self._run(query, resolvers, failed, tcp=True)
            if wire is None:
                why.setdefault("the resolvers", "no answer")
                return None
            code = dnswire.rcode(wire)
            if code != Rcode.NOERROR:
                why["the resolvers"] = _CODES.get(code, f"rcode {code}")
                return None
            answer = dnsanswer.parse(query, wire)
        except MalformedError as exc:
            why["the answer"] = f"{exc}"
            return None
        if not answer.addresses:
            why.setdefault("the resolvers", "no such records")
        return answer

    async def _run(
        self,
        query: dnswire.Query,
        resolvers: Sequence[SocketAddress],
        failed: Callable[[str, Exception], None],
        *,
        tcp: bool,
    ) -> bytes | None:
        wire = None
        for _ in range(TRIES):
            exchange = Exchange(query, tcp=tcp, failed=failed, may_ask=lambda: True)
            wire = wire or await exchange.run(resolvers, TRY_S)
        return wire
