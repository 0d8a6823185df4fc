"""Connections that were captured (TPROXY, REDIRECT): the client is known by its IP.

A client whose certificate isn't there yet, since no sandbox has its identity, waits
until it is, or is not to be had.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from fastpath.ztunnel.routing import unmap
from vhost_user.engine import EventKind, Reset

if TYPE_CHECKING:
    from fastpath.ztunnel.outbound import Outbound
    from fastpath.ztunnel.routing import Decision
    from fastpath.ztunnel.workloads import LocalWorkload, LocalWorkloads
    from vhost_user.engine import Engine, Event, SocketAddress


@dataclass(frozen=True, slots=True)
class _Captured:
    """What a request said; later events may come when the socket has no peer."""

    client: LocalWorkload
    source: SocketAddress
    destination: SocketAddress


class Capture:
    """The events of the listener of captured connections.

    Args:
        engine: takes the answers.
        outbound: does the work.
        clients: who has which IP.
    """

    def __init__(
        self, engine: Engine, outbound: Outbound, clients: LocalWorkloads
    ) -> None:
        self._engine = engine
        self._outbound = outbound
        self._clients = clients
        self._captured: dict[int, _Captured] = {}
        self._waiting: set[asyncio.Task[None]] = set()

    def handle_event(self, event: Event) -> None:
        """Handle one event of the listener; never raises."""
        with self._outbound.contained(event.conn):
            if event.kind is EventKind.REQUEST:
                self._request(event)
                return
            captured = self._captured.get(event.conn)
            if captured is None:  # refused before we knew whose it was
                return
            client, there = captured.client, captured.destination
            if event.kind is EventKind.OPENED:
                self._outbound.opened(client, event, captured.source, there)
                return
            del self._captured[event.conn]
            if event.kind is EventKind.FAILED:
                self._outbound.failed(client, event, captured.source, there)
            elif event.kind is EventKind.CLOSED:
                self._outbound.closed(client, event, captured.source, there)

    def close(self) -> None:
        """Have nobody wait any more."""
        for task in self._waiting:
            task.cancel()

    def _request(self, event: Event) -> None:
        conn = event.conn
        if event.src is None or event.dst is None:  # the client has gone again
            self._engine.answer(conn, Reset(errno.ECONNABORTED))
            return
        source, destination = unmap(event.src), unmap(event.dst)
        client = self._clients.at(ip_address(source[0]))
        if client is None:
            self._outbound.unknown(source, destination)
            self._engine.answer(conn, Reset())
            return
        captured = self._captured[conn] = _Captured(client, source, destination)
        decision = self._decide(captured, conn)
        if not decision.lookup and self._outbound.lacks(decision) is None:
            self._engine.answer(conn, decision.target)
            return
        task = asyncio.create_task(self._wait(captured, conn, decision))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _wait(self, captured: _Captured, conn: int, decision: Decision) -> None:
        """Answer once names and a certificate are there, or not to be had."""
        with self._outbound.contained(conn):
            while decision.lookup:
                await self._outbound.look_up(decision)
                if self._captured.get(conn) is not captured:
                    return  # it has ended meanwhile
                decision = self._decide(captured, conn)
            if (lacking := self._outbound.lacks(decision)) is not None:
                await self._outbound.certify(lacking)
                if self._captured.get(conn) is not captured:
                    return
                decision = self._decide(captured, conn)
            self._engine.answer(conn, decision.target)

    def _decide(self, captured: _Captured, conn: int) -> Decision:
        source_ip = ip_address(captured.source[0])
        return self._outbound.decide(
            captured.client, captured.destination, conn, source_ip
        )
