"""The tunnels of an engine to other nodes: a pool for each thing that may share them.

    Pools          all of an engine
      pool         tunnels with one identity to one peer (`PoolKey`), made when a
                   connection first needs it
      headers      what CONNECT says, by client: its destinations are its own to name

A pool whose tunnels are carried by streams of another one (`Connect.via`) goes by that:
it has what CONNECT says there itself, and is made anew when the other one was.

The engine has pools and headers in its routes, by ids: so before one is closed, the
clients that have it are told to forget their routes. A pool that nobody has asked for
in a while, and that has no tunnel, is closed. A client with more headers than
`MAX_HEADERS` begins anew. One that has pools to as many peers as it may (`PoolLimits`)
loses that which it asked for least lately, of those without a stream; others lose none.

C makes tunnels and picks streams without us. We hear of a tunnel that failed, or was
lost, and log that; lines are bounded for each identity of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.throttle import Throttle
from fastpath.ztunnel.connect import Behind, stands
from fastpath.ztunnel.hbone_metrics import NONE, add
from fastpath.ztunnel.istio import headers as words
from fastpath.ztunnel.istio.outbound import RouteRefusal
from fastpath.ztunnel.shares import MAX_CARRIED
from vhost_user.errors import StateError
from vhost_user.hbone import Headers, Pool, Reason, answer
from vhost_user.targets import Hbone, Reset

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastpath.identity import Identity
    from fastpath.ztunnel.certificates import Certificates
    from fastpath.ztunnel.connect import Connect
    from fastpath.ztunnel.istio.model import Service, Workload
    from fastpath.ztunnel.istio.outbound import PoolKey
    from fastpath.ztunnel.istio.state import MeshState
    from fastpath.ztunnel.routing import Decision
    from fastpath.ztunnel.shares import PoolLimits
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.engine import Engine, Event, SocketAddress
    from vhost_user.hbone import HboneStats

    _Key = tuple[PoolKey, int, Connect | None]

MAX_HEADERS: Final = 1024
"""Of a client."""
UNUSED_S: Final = 600.0
"""A pool that nobody has asked for in so long, and that has no tunnel, is closed."""
LOOK_S: Final = 60.0
CARRIED_S: Final = 20.0
"""A tunnel to another network is there in so long: its gateway's has to be before."""
UNTAKEN_S: Final = 10.0
"""One whose connection did not wait for it ends after so long."""
_ORDINARY: Final = frozenset({Reason.NONE, Reason.IDLE, Reason.DRAINED, Reason.GOAWAY})
"""Why tunnels end that were not lost."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pooled:
    """A pool, and who has it in its routes."""

    pool: Pool
    owner: str
    """The sandbox; empty: the captured, all together."""
    connect: Connect
    """The first that it was for."""
    workload: Workload
    """The next hop's."""
    service: Service | None
    """What was asked for."""
    carrier: Pool | None
    """Whose streams carry its tunnels."""
    headers: Headers | None
    """What CONNECT says there."""
    stop: Callable[[], None]
    asked_at: float
    clients: set[LocalWorkload] = field(default_factory=set)


class Pools:
    """All of an engine.

    Args:
        engine: whose tunnels they are.
        certificates: of the clients' identities.
        forget: has a client's routes forgotten, by the engine and by Python.
        limits: of each sandbox.
    """

    def __init__(
        self,
        engine: Engine,
        certificates: Certificates,
        forget: Callable[[LocalWorkload], None],
        limits: PoolLimits,
    ) -> None:
        self._engine = engine
        self._certificates = certificates
        self._forget = forget
        self._limits = limits
        self.revoked: Callable[[], None] = lambda: None
        """Called when a tunnel's peer is."""
        self._pools: dict[_Key, _Pooled] = {}
        self._headers: dict[LocalWorkload, dict[Connect, Headers]] = {}
        self._known = words.Known()
        self._closed: dict[Identity, HboneStats] = {}
        """What those that are closed had counted."""
        self._throttles: dict[Identity, Throttle] = {}
        self._timer: asyncio.TimerHandle | None = None

    def join(self, client: LocalWorkload, decision: Decision) -> Decision:
        """The decision, with the target that takes it through a tunnel."""
        connect = decision.connect
        if connect is None:
            return decision
        try:
            pool = self._pool(client, connect, decision)
            headers = self._headers_of(client, connect)
        except (StateError, OSError, FastpathError) as exc:
            text = f"no tunnel to {_format(connect.pool.address)}: {exc}"
            refusal = RouteRefusal("hbone", text, errno.ENOBUFS)
            return decision._replace(
                target=Reset(refusal.errno),
                address=None,
                refusal=refusal,
                cacheable=False,
            )
        return decision._replace(target=Hbone(pool.id, headers.id))

    def behind(self, number: int) -> Behind | None:
        """Who gave an answer of an event; None: it is not known any more."""
        found = answer(self._engine, number)
        if found is None:
            return None
        said = self._known.admit(words.said(found.baggage))
        return Behind(said or words.Said(), found.peer)

    def lacks(self, decision: Decision) -> Identity | None:
        """Whose certificate has to be had first; None: nobody's."""
        if decision.connect is None:
            return None
        source = decision.connect.pool.source
        return None if self._certificates.has(source) else source

    async def add(self, identity: Identity) -> None:
        """Have a certificate; what is wrong with it, the log says."""
        try:
            await self._certificates.add(identity)
        except FastpathError as exc:
            if self._lines_of(identity).admits():
                _log.warning("%s: there is no certificate: %s", identity, exc)

    def set_mesh(self, state: MeshState) -> None:
        """Close what another mesh does not have, and begin headers anew.

        All routes have been forgotten.
        """
        for of_client in self._headers.values():
            for headers in of_client.values():
                headers.close()
        self._headers.clear()
        for key, pooled in list(self._pools.items()):
            pooled.clients.clear()
            asked, service = pooled.connect, pooled.service
            if not stands(asked, pooled.workload, service, state):
                self._close(key)

    def drain(self, limit_s: float) -> None:
        """Tell peers that no more streams come; what is left then is cut."""
        for pooled in self._pools.values():
            pooled.pool.drain(limit_s)

    def stats(self) -> Mapping[Identity, HboneStats]:
        """Counters by our identity; callable on any thread."""
        found = dict(self._closed)
        for (key, *_), pooled in list(self._pools.items()):
            with contextlib.suppress(StateError):  # it has just been closed
                found[key.source] = add(
                    found.get(key.source, NONE), pooled.pool.stats()
                )
        return found

    def close(self) -> None:
        """Say what has not been said; the engine is about to end."""
        if self._timer is not None:
            self._timer.cancel()
        for pooled in self._pools.values():
            pooled.stop()
        for throttle in self._throttles.values():
            throttle.flush()

    def _pool(
        self, client: LocalWorkload, connect: Connect, decision: Decision
    ) -> Pool:
        """The pool of a connection.

        Raises:
            StateError: there is no room for it, or no certificate.
            OSError: the engine can't have it.
        """
        via = connect.via
        carrier = self._pool(client, via, decision) if via else None
        key = _key(connect)
        pooled = self._pools.get(key)
        now = asyncio.get_running_loop().time()
        if pooled is not None and pooled.carrier is not carrier:
            self._forget_pool(key)
            pooled = None
        if pooled is None:
            self._make_room(client, _key(via) if via else None)
            pooled = self._make(client, connect, decision, carrier)
            self._pools[key] = pooled
        pooled.asked_at = now
        pooled.clients.add(client)
        return pooled.pool

    def _make_room(self, client: LocalWorkload, spared: _Key | None) -> None:
        """Have a client's pools be one less than there may be, if it has them all.

        Args:
            client: who.
            spared: of them, one that isn't closed.

        Raises:
            StateError: all of them have streams.
        """
        own = [(key, it) for key, it in self._pools.items() if it.owner == client.name]
        if len(own) < self._limits.pools:
            return
        for key, pooled in sorted(own, key=lambda item: item[1].asked_at):
            idle = key != spared and not pooled.pool.stats().streams
            if idle and self._close_if(key, "streams"):
                return
        raise StateError(f"it has connections to {len(own)} peers already")

    def _make(
        self,
        client: LocalWorkload,
        connect: Connect,
        decision: Decision,
        carrier: Pool | None,
    ) -> _Pooled:
        key, via = connect.pool, connect.via
        assert decision.workload
        tls = self._certificates.tls(self._engine, key.source)
        names = [str(each) for each in key.sans]
        headers = self._say(via) if via else None
        if carrier and headers:
            pool = Pool(
                self._engine,
                tls,
                Hbone(carrier.id, headers.id),
                names,
                on_event=lambda event: self._hear(connect, pool, event),
                max_tunnels=MAX_CARRIED,
                connect_s=CARRIED_S,
                idle_s=UNTAKEN_S,
            )
        else:  # in a network namespace tunnels come from the pod's IP, else from ours
            pool = Pool(
                self._engine,
                tls,
                key.address,
                names,
                on_event=lambda event: self._hear(connect, pool, event),
                netns=connect.netns,
                max_tunnels=self._limits.tunnels,
            )
        stop = self._certificates.subscribe(
            key.source,
            lambda: pool.renew(self._certificates.tls(self._engine, key.source)),
        )
        if self._timer is None:
            self._look_later()
        return _Pooled(
            pool,
            client.name,
            connect,
            decision.workload,
            decision.service,
            carrier,
            headers,
            stop,
            asyncio.get_running_loop().time(),
        )

    def _headers_of(self, client: LocalWorkload, connect: Connect) -> Headers:
        """What CONNECT says.

        Raises:
            StateError: the engine can't have it.
        """
        of_client = self._headers.setdefault(client, {})
        found = of_client.get(connect)
        if found is None:
            if len(of_client) >= MAX_HEADERS:
                self._forget_headers(client)
            found = of_client[connect] = self._say(connect)
        return found

    def _say(self, connect: Connect) -> Headers:
        return Headers(
            self._engine,
            authority=connect.authority,
            baggage=connect.baggage,
            forwarded=connect.forwarded,
            network=connect.network,
        )

    def _forget_headers(self, client: LocalWorkload) -> None:
        self._forget(client)
        of_client = self._headers.get(client, {})
        for headers in of_client.values():
            headers.close()
        of_client.clear()

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._close_unused(asyncio.get_running_loop().time() - UNUSED_S)
        self._timer = None
        if self._pools:
            self._look_later()

    def _close_unused(self, before: float) -> None:
        """Close pools that nobody has asked for since then, without tunnels."""
        for key, pooled in list(self._pools.items()):
            if pooled.asked_at <= before and not pooled.pool.stats().tunnels:
                self._close_if(key, "tunnels")

    def _close_if(self, key: _Key, none: str) -> bool:
        """Close a pool, if it has still none of these once all routes are forgotten."""
        pooled = self._pools[key]
        self._forget_clients(pooled)
        if getattr(pooled.pool.stats(), none):
            return False
        self._close(key)
        return True

    def _forget_pool(self, key: _Key) -> None:
        """Close a pool, once all routes are forgotten."""
        self._forget_clients(self._pools[key])
        self._close(key)

    def _forget_clients(self, pooled: _Pooled) -> None:
        for client in tuple(pooled.clients):
            self._forget_headers(client)
        pooled.clients.clear()

    def _close(self, key: _Key) -> None:
        pooled = self._pools.pop(key)
        source = key[0].source
        counted = replace(pooled.pool.stats(), tunnels=0, streams=0, shakes=0)
        self._closed[source] = add(self._closed.get(source, NONE), counted)
        pooled.stop()
        pooled.pool.close()
        if pooled.headers:
            pooled.headers.close()

    def _hear(self, connect: Connect, pool: Pool, event: Event) -> None:
        """A tunnel is there, failed or has ended."""
        reason, key = Reason(event.reason), connect.pool
        if reason is Reason.REVOKED:
            self.revoked()
        if reason not in _ORDINARY and self._lines_of(key.source).admits():
            text = _why(key, pool, event)
            where = _format(key.address)
            where = f"{connect.authority} by {where}" if connect.via else where
            _log.warning("%s: tunnel to %s: %s", key.source, where, text)

    def _lines_of(self, source: Identity) -> Throttle:
        if source not in self._throttles:
            self._throttles[source] = Throttle(
                lambda count: _log.warning(
                    "%s: %d more tunnels failed or were lost", source, count
                )
            )
        return self._throttles[source]


def _key(connect: Connect) -> _Key:
    return connect.pool, connect.netns, connect.via


def _why(key: PoolKey, pool: Pool, event: Event) -> str:
    """Why a tunnel failed or ended, for the log."""
    reason = Reason(event.reason)
    text = reason.text
    if event.error:
        text += f": {os.strerror(event.error)}"
    if not event.tag and (peer := pool.failed_peer()):
        text += f": it is {peer}"
    if reason is Reason.NAME:
        text += f", not {' or '.join(map(str, key.sans))}"
    return text


def _format(address: SocketAddress) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
