"""The TSI service of one sandbox: control streams, tokens, connection events.

    agent --- HELLO, ROUTE ---> ControlStream --> TsiService <-- events --- engine
          <-- WELCOME, FAILED --                      |  answers, routes -->
                                                      v
                                               Router: policy, routing, log

Listeners in the guest are `inbound.py`'s.

A guest's program connects a vsock socket to a token's port. The engine asks about
a port it has no route for; the token is looked up, the router decides, and if it
says that it will always decide so, the port becomes a route of the engine's: later
connects to the destination never come here before they are dialled.

The guest is hostile, and this is the code that reads what it writes. All that it
can make us keep is bounded: streams, tokens, held requests. It can break its own
connections and no others.

A token's destination never changes, which keeps the access log honest: whatever
an event refers to by port is what was decided on. Three rules see to that: each
stream gets tokens of its own range; a range is given out again only a while after
its stream ended; and tokens are registered no faster than `MESSAGES_A_SECOND`, so
that one is forgotten only after any dial to it has settled.

Spec: docs/tsi-protocol.md.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVarTuple, Unpack

from fastpath.throttle import Throttle
from fastpath.tsi import stream
from fastpath.tsi.agents import RANGE_SIZE, RANGES, Agent
from fastpath.tsi.inbound import Inbound
from fastpath.tsi.policy import SandboxPolicy
from fastpath.tsi.protocol import (
    DATAGRAM_PORT,
    FIRST_PEER_PORT,
    FIRST_TOKEN,
    LAST_PRIVILEGED_PORT,
    STREAMS,
    TSI_PORT,
    UNKNOWN_TOKEN,
    Failed,
    Hello,
    Listen,
    Listening,
    ProtocolError,
    Refusal,
    Refused,
    Route,
    Unlisten,
    Welcome,
)
from fastpath.tsi.router import Here, Later
from fastpath.tsi.stats import TsiStats
from fastpath.tsi.stream import ControlStream, Pace, far_end
from vhost_user.engine import FIRST_OPENED_PORT, Ask, EventKind, Reset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastpath.tsi.clients import Publisher
    from fastpath.tsi.datagram import DatagramService
    from fastpath.tsi.protocol import GuestMessage
    from fastpath.tsi.router import Router
    from vhost_user.engine import Engine, Event, SocketAddress, Target
    from vhost_user.vsock.device import VsockDevice

log = logging.getLogger(__name__)

Args = TypeVarTuple("Args")

WINDOW: Final = 8192
"""Tokens that an agent may use at a time, the latest it registered."""
MAX_TOKENS: Final = 98304
"""Tokens of all streams; one more and the oldest is forgotten. At the pace that they
are read at, together, that is no token younger than the longest dial."""
MAX_STREAMS: Final = 64
"""Control streams at a time: agents in the guest."""
MAX_HELD: Final = 1024
"""Connection requests that wait for their ROUTE."""
HOLD_S: Final = 5.0
"""For so long: the control stream may lag behind the request."""
RANGE_REST_S: Final = 60.0
"""A stream's tokens are kept for so long after its end, and its range is not given
out again: dials may be under way."""
CONNECT_TIMEOUT_S: Final = 35.0
"""What agents are told: more than the engine's dial timeout."""

_FORGOTTEN_AT_ONCE: Final = 256


class TsiService:
    """Serves the agents of one sandbox's guest.

    Gives the device its routes. The device's events go to `handle_event`, FAILED
    among those it wants; a router hears of the others if the device wants them.

    Args:
        engine: the device's.
        device: the sandbox's.
        router: decides.
        addresses: the pod's, for getsockname() in the guest.
        name: the sandbox's, for the log.
        policy: the first one, which the router, the device and `datagrams` have
            already.
        datagrams: the sandbox's UDP; None: it has none.
        other: where connections to ports go that are not TSI's.
        publisher: where the guest's listeners are reachable; None: nowhere.
        key: what agents have to show, from init; empty: nothing.
    """

    def __init__(
        self,
        engine: Engine,
        device: VsockDevice,
        router: Router,
        *,
        addresses: Sequence[str],
        name: str,
        policy: SandboxPolicy | None = None,
        datagrams: DatagramService | None = None,
        other: Target = Reset(),  # noqa: B008  frozen
        publisher: Publisher[Any] | None = None,
        key: bytes = b"",
    ) -> None:
        self._key = key
        self._engine = engine
        self._device = device
        self._router = router
        self._name = name
        self._policy = policy = policy or SandboxPolicy()
        self._datagrams = datagrams
        self._other = other
        self._stats = TsiStats()
        self._agents: dict[int, Agent] = {}  # by range
        self._range = 0  # given out last
        self._tokens: dict[int, SocketAddress] = {}  # oldest first
        self._routed: set[int] = set()
        self._held: dict[int, list[int]] = {}  # connections by token
        self._held_count = 0
        self._live: dict[int, SocketAddress] = {}  # by connection
        self._timers: set[asyncio.TimerHandle] = set()
        self._pace = Pace(stream.MESSAGES_A_SECOND, stream.BURST)
        self._lines = Throttle(
            lambda count: log.warning("%s: %d more lines about agents", name, count)
        )
        self._news = Throttle(
            lambda count: log.info("%s: %d more lines of agents' news", name, count)
        )
        ips = [ipaddress.ip_address(address) for address in addresses]
        self._ipv4 = next((ip for ip in ips if ip.version == 4), None)
        self._ipv6 = next((ip for ip in ips if ip.version == 6), None)
        self.inbound: Inbound | None = None
        if publisher:
            self.inbound = Inbound(engine, device, publisher, policy=policy, name=name)
        device.handle.route(TSI_PORT, Ask())
        device.handle.route(None, Ask())

    @property
    def policy(self) -> SandboxPolicy:
        """The one in force."""
        return self._policy

    def set_policy(self, policy: SandboxPolicy) -> None:
        """Put `policy` in force, for requests that wait and for all that come.

        The router and `datagrams` end what it denies of what there is.
        """
        self._policy = policy
        limits = policy.limits
        self._device.limit(
            max_conns=limits.max_conns,
            max_queued_bytes=limits.max_queued_bytes,
            accept_rate=limits.accept_rate,
        )
        self.forget_routes()
        self._router.set_policy(policy)
        if self.inbound:
            self.inbound.set_policy(policy)
        if self._datagrams is not None:
            self._datagrams.set_policy(policy)

    @property
    def clients(self) -> int:
        """How many connections to the guest's listeners there are."""
        return self.inbound.clients if self.inbound else 0

    def drain(self) -> None:
        """Let no more connections in or out by itself; the router is asked of each."""
        self.forget_routes()
        if self.inbound:
            self.inbound.drain()

    def forget_routes(self) -> None:
        """Have the router asked of each connection, until it says that it stays."""
        self._device.handle.unroute_from(FIRST_TOKEN)
        self._routed.clear()

    def stats(self) -> TsiStats:
        """Return the counters; the object stays current."""
        self._stats.streams = sum(a.stream is not None for a in self._agents.values())
        self._stats.tokens = len(self._tokens)
        if self.inbound:
            tunnel = self.inbound.tunnel
            self._stats.listeners = self.inbound.listeners
            self._stats.refused_headers = tunnel.refused if tunnel else 0
        self._stats.held = self._held_count
        return self._stats

    def handle_event(self, event: Event) -> None:
        """Handle an event of the device."""
        asked = event.kind is EventKind.REQUEST
        if event.kind is EventKind.FORGOT and self.inbound:
            self.inbound.forgot(event.tag)
        if event.kind in (EventKind.BROKEN, EventKind.FORGOT):
            return  # BROKEN: the back-end's business
        if event.port >= FIRST_OPENED_PORT and not asked:
            if self.inbound and event.port >= FIRST_PEER_PORT:
                self.inbound.handle_event(event)
            return  # the others are the hybrid socket's
        if event.port >= FIRST_TOKEN:
            self._handle_token(event)
        elif not asked:
            return
        elif event.port in STREAMS and event.peer_port > LAST_PRIVILEGED_PORT:
            self._stats.unprivileged += 1
            self._engine.answer(event.conn, Reset(errno.EACCES))
        elif event.port == TSI_PORT:
            self._accept(event)
        elif event.port == DATAGRAM_PORT and self._datagrams is not None:
            self._datagrams.accept(event)
        else:
            self._engine.answer(event.conn, self._other)

    def close(self) -> None:
        """End the streams and the listeners; the device keeps its routes."""
        if self.inbound:
            self.inbound.close()
        if self._datagrams is not None:
            self._datagrams.close()
        for open_one in filter(None, (it.stream for it in self._agents.values())):
            open_one.close()
        self._agents.clear()
        for timer in self._timers:
            timer.cancel()
        self._lines.flush()
        self._news.flush()

    # Connections

    def _handle_token(self, event: Event) -> None:
        agent = self._agents.get(event.port // RANGE_SIZE)
        if event.kind is EventKind.REQUEST and agent and agent.stream:
            owner, token = agent, event.port
            agent.stream.drain(lambda: token < owner.next_token)  # its ROUTE came first
        destination = self._live.get(event.conn) or self._tokens.get(event.port)
        if event.kind is EventKind.REQUEST:
            self._request(event.conn, event.port, destination)
        elif event.kind is EventKind.FAILED:
            self._tell_failed(event)
            self._unhold(event.port, event.conn)
            self._live.pop(event.conn, None)
            if destination is not None:
                self._router.failed(event, destination)
        elif destination is None:  # cannot be: it was known at the answer
            if self._lines.admits():
                log.error("%s: event of unknown token %d", self._name, event.port)
        elif event.kind is EventKind.OPENED:
            self._live[event.conn] = destination
            self._router.opened(event, destination)
        else:
            self._live.pop(event.conn, None)
            self._router.closed(event, destination)

    def _request(
        self, conn: int, token: int, destination: SocketAddress | None
    ) -> None:
        """Answer a request, or hold it until its ROUTE comes."""
        if destination is not None:
            self._answer(conn, token, destination)
            return
        agent = self._agents.get(token // RANGE_SIZE)
        coming = agent is not None and agent.stream and token >= agent.next_token
        if not coming or self._held_count >= MAX_HELD:
            self._stats.unknown += 1
            self._engine.answer(conn, Reset(UNKNOWN_TOKEN))
            return
        self._held.setdefault(token, []).append(conn)
        self._held_count += 1
        self._later(HOLD_S, self._give_up, token, conn)

    def _give_up(self, token: int, conn: int) -> None:
        if self._unhold(token, conn):
            self._stats.unknown += 1
            self._engine.answer(conn, Reset(UNKNOWN_TOKEN))

    def _unhold(self, token: int, conn: int) -> bool:
        """Hold a request no more; return whether it was held."""
        held = self._held.get(token, [])
        if conn not in held:
            return False
        held.remove(conn)
        self._held_count -= 1
        if not held:
            del self._held[token]
        return True

    def _answer(self, conn: int, token: int, to: SocketAddress) -> None:
        routed = self._router.route(to, conn)
        self._live[conn] = to
        match routed.target:
            case Here(serve):
                if ours := far_end(self._engine, conn):
                    serve(ours)
            case Later(then):  # it may have ended by then
                then(lambda: self._answer(conn, token, to) if conn in self._live else 0)
            case target:
                if routed.cacheable and token not in self._routed:
                    self._routed.add(token)
                    self._device.handle.route(token, target)
                self._engine.answer(conn, target)

    def _tell_failed(self, event: Event) -> None:
        """Send the errno after the engine's RST; the agent waits for it."""
        agent = self._agents.get(event.port // RANGE_SIZE)
        if agent is None or agent.stream is None:
            return
        error = event.error or errno.ECONNREFUSED
        message = Failed(event.peer_port, event.port, error)
        if not agent.stream.send(message.encode()):
            self._stats.unsent += 1

    # Control streams

    def _accept(self, event: Event) -> None:
        """Give a control stream its far end: us."""
        used = self.stats().streams
        number = self._free_range() if used < MAX_STREAMS else None
        ours = far_end(self._engine, event.conn)
        if ours is None:
            return
        if number is None:
            self._stats.refused += 1
            if self._lines.admits():
                log.warning("%s: an agent too many: %d streams", self._name, used)
            text = f"{used} streams are open or were until a moment ago"
            ours.send(Refused(Refusal.LIMIT, text).encode())
            ours.close()
            return
        agent = Agent(number)
        self._agents[number] = agent
        agent.stream = ControlStream(
            ours,
            pace=self._pace,
            on_message=lambda message: self._handle_message(agent, message),
            on_end=lambda error: self._ended(agent, error),
        )

    def _free_range(self) -> int | None:
        """Return the range that was not used for longest; None: all rest."""
        for _ in range(RANGES):
            self._range = self._range % RANGES + 1
            if self._range not in self._agents:
                return self._range
        return None

    def _handle_message(self, agent: Agent, message: GuestMessage) -> None:
        """Handle a message of the agent's.

        Raises:
            ProtocolError: it comes at the wrong time, or speaks no common version.
        """
        if isinstance(message, Hello):
            self._greet(agent, message)
        elif not agent.greeted:
            name = type(message).__name__.upper()
            raise ProtocolError(Refusal.UNEXPECTED, f"{name} before HELLO")
        elif isinstance(message, Route):
            self._register(agent, message)
        elif isinstance(message, Listen):
            self._listen(agent, message)
        elif isinstance(message, Unlisten):
            self._unlisten(agent, message)
        elif self.inbound:
            self.inbound.introduced(agent.announcer, message.ports)

    def _listen(self, agent: Agent, message: Listen) -> None:
        if self.inbound:
            self.inbound.listen(agent.announcer, message)
        else:
            agent.send(Listening(message.listener, 0).encode())

    def _unlisten(self, agent: Agent, message: Unlisten) -> None:
        if self.inbound:
            self.inbound.unlisten(agent.announcer, message.listener)

    def _greet(self, agent: Agent, hello: Hello) -> None:
        if agent.greeted:
            raise ProtocolError(Refusal.UNEXPECTED, "a second HELLO")
        hello.check(self._key)
        assert agent.stream is not None
        agent.greeted = True
        welcome = Welcome(
            first_token=agent.next_token,
            token_count=RANGE_SIZE,
            window=WINDOW,
            connect_timeout_ms=round(CONNECT_TIMEOUT_S * 1000),
            ipv4=self._ipv4,
            ipv6=self._ipv6,
        )
        agent.stream.send(welcome.encode())
        if self._news.admits():
            log.info("%s: agent %d is here", self._name, agent.range)

    def _register(self, agent: Agent, message: Route) -> None:
        token = message.token
        if not agent.owns(token) or token < agent.next_token:
            self._stats.ignored += 1
            return
        agent.next_token = token + 1
        if len(self._tokens) >= MAX_TOKENS:
            self._stats.forgotten += 1
            self._forget(next(iter(self._tokens)))
        self._tokens[token] = message.destination
        held = self._held.pop(token, [])
        self._held_count -= len(held)
        for conn in held:
            self._answer(conn, token, message.destination)

    def _forget(self, token: int) -> None:
        self._tokens.pop(token, None)
        if token in self._routed:
            self._routed.discard(token)
            self._device.handle.unroute(token)

    def _ended(self, agent: Agent, error: ProtocolError | None) -> None:
        agent.stream = None
        if self.inbound:
            self.inbound.ended(agent.announcer)
        if error is None:
            if self._news.admits():
                log.info("%s: agent %d is gone", self._name, agent.range)
        else:
            self._stats.refused += 1
            if self._lines.admits():
                log.warning(
                    "%s: agent %d refused: %s", self._name, agent.range, error.text
                )
        # Its connections live on, and events of its tokens are still to come.
        self._later(RANGE_REST_S, self._retire, agent)

    def _retire(self, agent: Agent) -> None:
        """Forget an agent's tokens, some at a time: each halts the engine."""
        tokens = [token for token in self._tokens if agent.owns(token)]
        for token in tokens[:_FORGOTTEN_AT_ONCE]:
            self._forget(token)
        if len(tokens) > _FORGOTTEN_AT_ONCE:
            self._later(0, self._retire, agent)
        else:
            del self._agents[agent.range]

    def _later(
        self, delay_s: float, call: Callable[[Unpack[Args]], object], *args: *Args
    ) -> None:
        """Call after `delay_s`, unless the service is closed by then."""

        def fire() -> None:
            self._timers.discard(timer)
            call(*args)

        timer = asyncio.get_running_loop().call_later(delay_s, fire)
        self._timers.add(timer)
