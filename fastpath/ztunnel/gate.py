"""The gate of a sandbox: peers of the mesh reach its programs by HBONE.

    peer === mutual TLS ===> POD_IP:15008     the engine: tunnels, CONNECTs
                               | REQUEST
                               v
                             SandboxGate ---> istio.inbound   400, 401, 503, where to
                               | client
                               v
                             tsi.inbound  --- offer ---> the guest; 200 once it took it

Who a peer is, its certificate says, and its IP the tunnel's socket. Headers say what is
asked for, and are believed in little else: a port in `forwarded` is shown to the
program if the IP before it is the tunnel's, and one whose IP is no workload's has in
the log and the metrics the names that `baggage` says.

A port is reachable so if the sandbox's policy publishes it, as at the pod's IPs
(`inbound.SandboxPublisher`). What a sandbox's policy and the mesh's let in is judged
again when either changes.

Spec: istio/ztunnel, inbound; docs/hbone.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import itertools
import logging
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

from fastpath import proxy_protocol
from fastpath.errors import FastpathError
from fastpath.identity import Identity
from fastpath.throttle import Throttle
from fastpath.tsi.clients import DECIDED
from fastpath.ztunnel import listener
from fastpath.ztunnel.gateclient import GateClient
from fastpath.ztunnel.istio import headers
from fastpath.ztunnel.istio.inbound import (
    BAD_REQUEST,
    UNAUTHORIZED,
    Accepted,
    Rejected,
    Request,
    inbound,
)
from fastpath.ztunnel.model import ListenAddress
from fastpath.ztunnel.routing import unmap
from vhost_user.engine import EventKind, Reset
from vhost_user.errors import StateError
from vhost_user.hbone import Gate, Guest, HboneStats, Headers, Reason

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fastpath.tsi.inbound import Inbound
    from fastpath.ztunnel.authorization import Authorizer
    from fastpath.ztunnel.inbound import SandboxPublisher
    from fastpath.ztunnel.workloads import LocalWorkload
    from vhost_user.engine import DeviceHandle, Engine, Event, SocketAddress
    from vhost_user.hbone import Request as Said
    from vhost_user.hbone import Tls
    from vhost_user.schema import IpAddress

PORT: Final = 15008

_ERRNOS: Final = {BAD_REQUEST: errno.EINVAL, UNAUTHORIZED: errno.EACCES}
"""By which the engine answers with a status; any other: 503."""
_MISDEEDS: Final = frozenset(
    {Reason.FLOOD, Reason.HTTP2, Reason.PING, Reason.REVOKED, Reason.SHORT}
)
"""Ends of tunnels that were there which the log tells of."""
_HINTS: Final = {
    errno.EADDRINUSE: "end what listens there: an Istio ztunnel is the sandbox's mesh"
    " endpoint already? then `hbone: false`",
    errno.EADDRNOTAVAIL: "enable that IP version there, or take the IP out of the"
    " workload's workloadIps",
}

log = logging.getLogger(__name__)


class Certificates(Protocol):
    """Gives each identity its certificates, always the newest."""

    def tls(self, engine: Engine, identity: Identity) -> Tls:
        """Those of an identity in an engine."""
        ...

    def subscribe(
        self, identity: Identity, changed: Callable[[], None]
    ) -> Callable[[], None]:
        """Call `changed` when there are others; returns what ends that."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the gates of all sandboxes share."""

    certificates: Certificates
    authorizer: Authorizer
    max_tunnels: int


class SandboxGate:
    """Listens at each of a sandbox's IPs.

    Args:
        server: the sandbox.
        engine: its engine.
        publisher: says which ports are reachable so, and hears what becomes of clients.
        around: shared by all gates.
    """

    def __init__(
        self,
        server: LocalWorkload,
        engine: Engine,
        publisher: SandboxPublisher,
        around: Surroundings,
    ) -> None:
        self._server = server
        self._engine = engine
        self._publisher = publisher
        self._around = around
        self._inbound: Inbound
        self._gates: list[Gate] = []
        """In the order that they were opened; events of old ones still come."""
        self._first = 0
        """Of those that are open now."""
        self._waiting: dict[int, GateClient] = {}  # by the gate's connection
        self._decided: dict[int, GateClient] = {}
        """By tag: the first of those that the engine offers by itself."""
        self._tags = itertools.count()
        self._told = False
        """The engine was told of some since all were forgotten."""
        self._headers: Headers | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self._open = False
        self._lines = Throttle(
            lambda count: log.warning(
                "%s: %d more lines about HBONE", server.name, count
            )
        )

    def open(self, inbound_: Inbound) -> None:
        """Listen at each IP, or at none; again after `close` or `drain`.

        Args:
            inbound_: takes the clients over.

        Raises:
            FastpathError: at one it can't.
        """
        self._inbound = inbound_
        inbound_.decider = self
        self._open = True
        self._first = len(self._gates)
        try:
            for ip in self._server.workload.workload_ips:
                self._gates.append(self._listen(ip, len(self._gates)))
        except BaseException:
            self.close()
            raise
        certificates, identity = self._around.certificates, self._server.identity
        self._unsubscribe = certificates.subscribe(identity, self._renew)
        self.set_mesh()
        self._publisher.gate_is_open = True

    @property
    def is_open(self) -> bool:
        """Whether it takes tunnels."""
        return self._open

    @property
    def _those_open(self) -> list[Gate]:
        return self._gates[self._first :]

    def set_mesh(self) -> None:
        """Answer as another content of Istio's file has it."""
        if not self._open:
            return
        self.forget_all()
        old, says = self._headers, headers.baggage(self._server.workload)
        self._headers = Headers(self._engine, baggage=says) if says else None
        if old:
            old.close()

    def drain(self, limit_s: float) -> None:
        """Tell peers to open no more streams; what is left by then is cut.

        Clients that are in are still reachable so, and stay.
        """
        if self._open:
            for gate in self._those_open:
                gate.drain(limit_s)
            self._stop()

    def close(self) -> None:
        """Take no more tunnels; those that there are go on. Again: nothing."""
        if self._open:
            self._publisher.gate_is_open = False
            self._stop()

    def _stop(self) -> None:
        self._open = False
        self._unsubscribe()
        for gate in self._those_open:
            gate.close()
        if self._headers:
            self._headers.close()
            self._headers = None
        self._lines.flush()

    def stats(self) -> HboneStats | None:
        """The counters of all its gates; None: they are closed. On any thread."""
        if not self._open:
            return None
        try:
            each = [gate.stats() for gate in self._those_open]
        except StateError:
            return None
        names = HboneStats.__slots__
        return HboneStats(*(sum(getattr(it, name) for it in each) for name in names))

    # What the engine does by itself (`tsi.clients.Decider`)

    def client(self, event: Event) -> GateClient:
        """The client that an event with one of our tags is about."""
        first = self._decided[event.tag]
        assert event.src is not None
        source = unmap(event.src)
        return dataclasses.replace(
            first,
            address=(source[0], event.port & 0xFFFF),
            source=source,
            conn=event.conn,
            range=None,
            shown=None,
            taker=None,
            ended=False,
            denial="",
            gone=False,
        )

    def forget_all(self) -> None:
        """Have the engine ask us of all."""
        if self._told and self._open:
            self._told = False
            for gate in self._those_open:
                gate.forget()

    def forgot(self, tag: int) -> None:
        """No event has that tag any more."""
        self._decided.pop(tag, None)

    def decide(
        self, client: GateClient, guest: DeviceHandle, listener_: int, first_port: int
    ) -> None:
        """Have the engine offer others that say the same by itself."""
        if not self._open:
            return
        where = Guest(guest, listener_, first_port)
        tag = DECIDED | next(self._tags) % DECIDED
        self._decided[tag] = client
        self._told = True
        gate, says = self._gates[0], self._headers
        if not gate.decide(client.conn, where, tag=tag, headers=says):
            del self._decided[tag]

    # What clients ask of it (`gateclient.Holder`)

    def offer(
        self, client: GateClient, guest: DeviceHandle, listener_: int, port: int
    ) -> int | None:
        """Offer it to a guest; None: it is gone."""
        return self._gates[0].offer(client.conn, guest, listener_, port=port)

    def refuse(self, client: GateClient, error: int) -> None:
        """Answer it by the status for an errno, which a 503 tells, too."""
        self._waiting.pop(client.conn, None)
        with contextlib.suppress(StateError):  # it is on offer, and ends by that
            self._engine.answer(client.conn, Reset(error))

    def let_go(self, client: GateClient) -> None:
        """The guest has it."""
        self._waiting.pop(client.conn, None)

    # Events

    def _listen(self, ip: IpAddress, index: int) -> Gate:
        """Open the gate at an IP.

        Raises:
            FastpathError: it can't be.
        """
        server, address = self._server, ListenAddress(ip, PORT)
        sock: socket.socket | None = None
        try:
            sock = self._publisher.listen(address, listener.BACKLOG)
            return Gate(
                self._engine,
                sock,
                self._around.certificates.tls(self._engine, server.identity),
                server.identity.trust_domain,
                on_event=functools.partial(self._handle_event, index),
                want=frozenset({EventKind.FAILED}),
                max_tunnels=self._around.max_tunnels,
            )
        except (OSError, StateError) as error:
            listener.close(sock)
            if isinstance(error, StateError):
                raise
            where = f" in {server.pod.namespace}" if server.pod else ""
            raise FastpathError(
                f"{server.name}: cannot listen for HBONE on {address}{where}",
                error.strerror or str(error),
                _HINTS.get(error.errno or 0),
            ) from error

    def _renew(self) -> None:
        """There are other certificates."""
        server = self._server
        tls = self._around.certificates.tls(self._engine, server.identity)
        for gate in self._those_open:
            gate.renew(tls)

    def _handle_event(self, index: int, event: Event) -> None:
        if event.kind is EventKind.TUNNEL:
            self._tunnel(self._gates[index], event)
        elif event.kind is EventKind.REQUEST:
            try:
                self._request(self._gates[index], event)
            except Exception:
                self._engine.answer(event.conn, Reset(errno.ENETDOWN))
                raise
        else:
            client = self._waiting.pop(event.conn, None)
            if client is not None:
                client.gone = True

    def _tunnel(self, gate: Gate, event: Event) -> None:
        """A tunnel is there, never was, or has ended."""
        reason, was_there = Reason(event.reason), bool(event.tag)
        if reason is Reason.NONE or event.src is None or event.dst is None:
            return
        if reason is Reason.REVOKED:
            self._publisher.revoked()
        if not was_there:
            source, reached = unmap(event.src), unmap(event.dst)
            self._publisher.tunnel_failed(source, reached, _who(gate), reason.text)
        elif reason in _MISDEEDS and self._lines.admits():
            host = event.src[0]
            name = self._server.name
            log.warning("%s: the tunnel of %s ended: %s", name, host, reason.text)

    def _request(self, gate: Gate, event: Event) -> None:
        """A CONNECT: decide, and hand it over."""
        if event.error:  # the guest has no room: nobody overtakes
            self.forget_all()
        said = gate.request(event.conn) if event.src and event.dst else None
        if said is None:  # or the peer has left
            self._engine.answer(event.conn, Reset(errno.ECONNABORTED))
            return
        assert event.src is not None
        assert event.dst is not None
        source, reached = unmap(event.src), unmap(event.dst)
        decision = self._decide(source, reached, said)
        if isinstance(decision, Rejected) and decision.denied is None:
            error = _ERRNOS.get(decision.status, errno.ENETDOWN)
            self._engine.answer(event.conn, Reset(error))
            self._publisher.rejected(source, reached, said.peer, decision)
            return
        accepted = decision.denied if isinstance(decision, Rejected) else decision
        assert accepted is not None
        client = self._client(event.conn, source, reached, said, accepted)
        self._around.authorizer.note(self._server, client, accepted.verdict)
        if not accepted.verdict.allowed:
            client.denial = accepted.verdict.text
            client.reset(errno.EACCES)
            self._publisher.failed(client, errno.EACCES)
            return
        if self._headers:
            gate.respond(event.conn, self._headers)
        if client.preface:
            gate.preface(event.conn, client.preface)
        self._waiting[event.conn] = client
        self._inbound.take_in(client)

    def _decide(
        self, source: SocketAddress, reached: SocketAddress, said: Said
    ) -> Accepted | Rejected:
        try:
            identity = Identity.parse(said.peer)
        except ValueError as error:
            return Rejected(status=UNAUTHORIZED, text=f"the peer's identity {error}")
        request = Request(
            authority=said.authority,
            source=ip_address(source[0]),
            reached=ip_address(reached[0]),
            identity=identity,
            forwarded_host=headers.forwarded_host(said.forwarded),
        )
        return inbound(self._around.authorizer.state, self._server.workload, request)

    def _client(
        self,
        conn: int,
        source: SocketAddress,
        reached: SocketAddress,
        said: Said,
        accepted: Accepted,
    ) -> GateClient:
        preface, tunnel = b"", accepted.tunnel
        if tunnel:
            ip, port = tunnel.destination
            preface = proxy_protocol.header(source, (f"{ip}", port), said.peer)
        told = headers.forwarded_port(said.forwarded, ip_address(source[0]))
        alike = not preface and not accepted.verdict.dry_run
        return GateClient(
            (source[0], told or source[1]),
            reached,
            accepted.port,
            identity=said.peer,
            tunnelled=True,
            holder=self,
            conn=conn,
            source=source,
            authority=said.authority,
            accepted=accepted,
            host=headers.forwarded_host(said.forwarded),
            far=headers.is_foreign(said.network, self._around.authorizer.state.network),
            said=headers.said(said.baggage),
            preface=preface,
            alike=alike and bool(told or not said.forwarded),
        )


def _who(gate: Gate) -> str:
    """The peer of the last tunnel that failed; empty: it showed no certificate."""
    try:
        return gate.failed_peer()
    except StateError:  # the gate is closed
        return ""
