"""Inbound: a guest's listeners, TCP listeners for them, and the connections between.

    agent --- LISTEN, UNLISTEN, INTRODUCED ---> Inbound <--- events --- engine
          <-- LISTENING, CALLER ---------------    |
                                                   v
                                Publisher: which ports, on which addresses; log

While a program in the guest listens on a published port, there is a TCP listener on the
host. So what nobody listens on is refused by the host's TCP, with no code of ours. A
client that is accepted is offered to the guest, whose kernel takes it into the
program's backlog or resets it. A full backlog is a reset, too: the client is kept and
offered again, and until the guest takes it, no other client is accepted; the TCP
listener's own backlog is then what makes clients wait. `port.py` has all that.

Clients that come by another proxy have a listener of their own (`tunnel.py`), and from
then on are as any.

Most clients the engine accepts and offers by itself: of IPs that the guest knows, to
what is published. Here they are counted, logged, and ended when the policy changes.

What a guest announces is kept for as long as it listens, published or not: a policy
that changes opens and closes doors.

A guest sees a client's address by the vsock port that the connection comes from:
`Peers` says how. An IP's first client waits until the agent knows whose the ports are.
Its listeners are its own business: it can announce ports on which
nothing listens, and it gets resets for it; what is published is not its choice.

Spec: docs/tsi-protocol.md, section 4 "Listeners".
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fastpath.throttle import Throttle
from fastpath.tsi.clients import Client
from fastpath.tsi.peers import Peers, first_port, range_number
from fastpath.tsi.port import OFFER_S, Port
from fastpath.tsi.protocol import Caller, Listening
from fastpath.tsi.tunnel import Tunnel
from vhost_user.engine import EventKind
from vhost_user.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from fastpath.tsi.addresses import Address
    from fastpath.tsi.clients import Announcer, Publisher
    from fastpath.tsi.policy import SandboxPolicy
    from fastpath.tsi.protocol import Listen
    from vhost_user.engine import Engine, Event
    from vhost_user.vsock.device import VsockDevice

log = logging.getLogger(__name__)

INTRODUCE_S: Final = 5.0
"""How long an agent may take to learn of an IP."""

_ALIASES: Final = 4
_LAST_PORT: Final = 65535


@dataclass(slots=True, eq=False)
class _Introduction:
    """Clients that wait until an agent knows their IP."""

    owner: int
    timer: asyncio.TimerHandle
    clients: list[tuple[Port, Listen, Client]] = field(default_factory=list)


class Inbound:
    """The listeners of one sandbox's guest.

    Args:
        engine: the device's.
        device: the sandbox's; the service hands us its events.
        publisher: says where ports are reachable.
        policy: says which are published, and how many may be.
        name: the sandbox's, for the log.
    """

    def __init__(
        self,
        engine: Engine,
        device: VsockDevice,
        publisher: Publisher[Any],
        *,
        policy: SandboxPolicy,
        name: str,
    ) -> None:
        self.engine = engine
        self.guest = device.handle
        self.publisher = publisher
        self._policy = policy
        self._name = name
        self._ports: dict[int, Port] = {}
        self._count = 0
        self._draining = False
        self._peers = Peers(in_use=self._in_use)
        self._offered: dict[int, tuple[Port, Client]] = {}  # by connection
        self._live: dict[int, Client] = {}  # by connection
        self._introductions: dict[tuple[Announcer, int], _Introduction] = {}
        self._lines = Throttle(
            lambda count: log.warning("%s: %d more lines about listeners", name, count)
        )
        self._next_port = 0
        listener = publisher.tunnel()
        self.tunnel = Tunnel(listener, self.take_in, name=name) if listener else None

    @property
    def clients(self) -> int:
        """How many are connected, or about to be."""
        return len(self._live) + len(self._offered)

    @property
    def listeners(self) -> int:
        """How many are published."""
        return sum(len(p.listeners) for p in self._ports.values() if p.is_open)

    def listen(self, agent: Announcer, message: Listen) -> None:
        """A program listens, or changes its backlog."""
        old = agent.listeners.get(message.listener)
        if old is not None and old.port != message.port:
            self.unlisten(agent, message.listener)
            old = None
        if not agent.listeners and not agent.known:
            self._introduce_all(agent)
        reached, error = 0, 0
        if old is None and self._count >= self._policy.limits.max_listeners:
            error = errno.ENOBUFS if self._publishes(message.port) else 0
        else:
            self._replace(agent, old, message)
            try:
                reached = self._ports[message.port].update()
            except OSError as problem:
                error = problem.errno or errno.EADDRINUSE
                self.warn(message.port, problem)
                self.unlisten(agent, message.listener)
        if reached and not error and old is None and self._lines.admits():
            log.info("%s: port %d is published", self._name, message.port)
        reply = Listening(message.listener, 0 if error else reached, error)
        agent.send(reply.encode())

    def _replace(self, agent: Announcer, old: Listen | None, new: Listen) -> None:
        """Put `new` into the tables, in place of `old`, of the same port, if any."""
        port = self._ports.setdefault(new.port, Port(self, new.port))
        if old is None:
            self._count += 1
        else:
            port.listeners.remove((agent, old))
        port.listeners.append((agent, new))
        agent.listeners[new.listener] = new

    def unlisten(self, agent: Announcer, listener: int) -> None:
        """A program listens no more."""
        message = agent.listeners.pop(listener, None)
        if message is None:
            return
        self._ports[message.port].listeners.remove((agent, message))
        self._count -= 1
        self._tidy(message.port)

    def ended(self, agent: Announcer) -> None:
        """An agent is gone, and its listeners with it."""
        for listener in list(agent.listeners):
            self.unlisten(agent, listener)
        for stranger, number in list(self._introductions):
            if stranger is agent:
                self._give_up(agent, number, errno.ECONNREFUSED)

    def introduced(self, agent: Announcer, ports: int) -> None:
        """An agent knows whose a range is: offer it the clients that wait for that."""
        number = range_number(ports)
        introduction = self._introductions.pop((agent, number), None)
        if introduction is None:
            return
        introduction.timer.cancel()
        agent.known[number] = introduction.owner
        for port, listen, client in introduction.clients:
            self._forget(client)
            port.introduced(agent, listen, client)

    def addresses(self, port: int, versions: Sequence[int]) -> list[Hashable]:
        """Where a TCP port is reachable, for clients of some IP versions."""
        return [] if self._draining else self._addresses(port, versions)

    def _addresses(self, port: int, versions: Sequence[int]) -> list[Hashable]:
        covered = self._policy.published.covers(port)
        return [
            address
            for version in versions
            for address in self.publisher.addresses(port, version, covered=covered)
        ]

    def set_policy(self, policy: SandboxPolicy) -> None:
        """Open and close doors; end connections to what is not published any more.

        A lower limit ends nothing.
        """
        self._policy = policy
        if self.tunnel and self.publisher.gone:
            self.tunnel.close()
        for port in self._ports.values():
            port.forget_all()  # whom the engine takes in now is decided below
        for number, port in list(self._ports.items()):
            try:
                port.update()
            except OSError as problem:
                self.warn(number, problem)
        for conn, client in list(self._live.items()):
            if not self._publishes(client.port) or self._denies(client):
                self._end(conn, client)

    def drain(self) -> None:
        """Close all doors for good; who is in stays."""
        self._draining = True
        if self.tunnel:
            self.tunnel.close()
        for number, port in self._ports.items():
            try:
                port.update()
            except OSError as problem:
                self.warn(number, problem)

    def close(self) -> None:
        """Close all doors; connections live on, but those that are on offer."""
        if self.tunnel:
            self.tunnel.close()
        for port in self._ports.values():
            port.close()
        self._ports.clear()
        for _, client in self._offered.values():
            client.reset()
        for introduction in self._introductions.values():
            introduction.timer.cancel()
            for _, _, client in introduction.clients:
                client.reset()
        self._introductions.clear()
        self._lines.flush()

    def take_in(self, client: Client) -> None:
        """Offer a client that came by the tunnel to the guest, or refuse it."""
        client.deadline = asyncio.get_running_loop().time() + OFFER_S
        port = self._ports.get(client.port)
        if port is None or not self._publishes(client.port):
            client.reset()
            self.publisher.failed(client, errno.ECONNREFUSED)
        else:
            port.admit(client)

    def offer(
        self, port: Port, agent: Announcer, listen: Listen, client: Client
    ) -> bool:
        """Ask the guest to take a client; False: not now."""
        assert client.sock is not None
        ip = listen.shows(client.ip)
        for alias in range(_ALIASES):
            number = self._peers.range_of(ip, alias)
            if not self._knows(agent, number):
                introduction = self._introduce(agent, number, ip)
                if introduction is None:
                    return False
                introduction.clients.append((port, listen, client))
                self._remember(client, number, ip)
                return True
            try:
                conn = self._ask(first_port(number), listen, client)
            except StateError:
                continue
            except OSError as error:
                self.warn(listen.port, error)
                return False
            self._offered[conn] = (port, client)
            self._remember(client, number, ip)
            if alias == 0 and self._peers.owner(number):
                client.taker = (agent, listen)
            return True
        return False

    def _ask(self, first: int, listen: Listen, client: Client) -> int:
        """Ask the guest for a connection from a client's port of a range.

        Many that come by one tunnel have one port. The first has it, the others the
        next that is free.

        Raises:
            StateError: the port is in use, or the VM may have no more.
            OSError: no descriptor is left.
        """
        assert client.sock is not None
        try:
            source = first | client.address[1]
            return self.guest.offer(listen.listener, client.sock, port=source)
        except StateError:
            if not client.tunnelled:
                raise
        self._next_port = self._next_port % _LAST_PORT + 1
        source = first | self._next_port
        return self.guest.offer(listen.listener, client.sock, port=source)

    def handle_event(self, event: Event) -> None:
        """Handle an event of a connection from one of our ports."""
        if event.kind is EventKind.CLOSED:
            client = self._live.pop(event.conn, None)
            if client is not None:
                self._forget(client)
                self.publisher.closed(client, event)
            return
        found = self._offered.pop(event.conn, None)
        if found is None:
            if event.tag:
                self._let_in(event)
            return
        port, client = found
        if event.kind is EventKind.OPENED:
            client.release()
            port.know(client)
            self._opened(event.conn, client)
            port.settled(client, 0)
        else:
            self._forget(client)
            port.settled(client, event.error or errno.ECONNREFUSED)

    def _let_in(self, event: Event) -> None:
        """Note what became of a client that the engine has offered."""
        client = Client.of(event)
        if event.kind is EventKind.OPENED:
            number = range_number(event.port)
            self._remember(client, number, self._peers.ip_of(number))
            self._opened(event.conn, client)
        else:
            self.publisher.failed(client, event.error or errno.ECONNREFUSED)

    def _opened(self, conn: int, client: Client) -> None:
        """The guest took a client."""
        self._live[conn] = client
        self.publisher.opened(client)
        port = self._ports.get(client.port)
        published = port is not None and port.is_open
        if not published and not self._publishes(client.port):
            self._end(conn, client)  # the policy changed meanwhile
        elif self._denies(client):
            self._end(conn, client)  # the engine had its IP from another door

    def warn(self, port: int, problem: object) -> None:
        """Log what went wrong at a port, unless there were many such lines."""
        if self._lines.admits():
            log.warning("%s: port %d: %s", self._name, port, problem)

    def tunnels(self, port: int) -> bool:
        """Whether clients of a TCP port may come by the tunnel."""
        return self.tunnel is not None and self._publishes(port)

    def _publishes(self, port: int) -> bool:
        covered = self._policy.published.covers(port)
        return self.publisher.publishes(port, covered=covered)

    def _denies(self, client: Client) -> bool:
        client.denial = self.publisher.denial(client)
        return bool(client.denial)

    def _end(self, conn: int, client: Client) -> None:
        """End a connection that the policy has come to deny."""
        if not client.ended:
            client.ended = True
            self.publisher.ended(client)
            self.engine.reset(conn, errno.ECONNRESET)

    def _knows(self, agent: Announcer, number: int) -> bool:
        return agent.known.get(number, 0) == self._peers.owner(number)

    def _introduce(
        self, agent: Announcer, number: int, ip: Address
    ) -> _Introduction | None:
        """Tell an agent whose a range is; None: not now."""
        introduction = self._introductions.get((agent, number))
        if introduction is None:
            if not agent.send(Caller(first_port(number), ip).encode()):
                return None
            introduction = self._introductions[agent, number] = _Introduction(
                self._peers.owner(number),
                asyncio.get_running_loop().call_later(
                    INTRODUCE_S, self._give_up, agent, number, errno.ETIMEDOUT
                ),
            )
        return introduction

    def _give_up(self, agent: Announcer, number: int, error: int) -> None:
        """An agent didn't answer."""
        introduction = self._introductions.pop((agent, number))
        introduction.timer.cancel()
        for port, _, client in introduction.clients:
            self._forget(client)
            port.settled(client, error)

    def _remember(self, client: Client, number: int, ip: Address | None) -> None:
        """Keep a client's range its IP's."""
        client.range, client.shown = number, ip
        self._peers.hold(number)

    def _introduce_all(self, agent: Announcer) -> None:
        """Tell an agent whom its guest is connected with.

        The one before it may have been told, and have died before it read that.
        """
        offered = (client for _, client in self._offered.values())
        for client in (*offered, *self._live.values()):
            number, ip = client.range, client.shown
            if number is not None and ip and not self._knows(agent, number):
                self._introduce(agent, number, ip)

    def _forget(self, client: Client) -> None:
        if client.range is not None:
            self._peers.release(client.range)
            client.range = None

    def _in_use(self, number: int) -> bool:
        """Whether the engine has connections from a range; it makes no more."""
        for port in self._ports.values():
            port.forget(number)
        return self.guest.conns_from(first_port(number)) > 0

    def _tidy(self, number: int) -> None:
        """Close the doors that nobody needs; forget a port without listeners."""
        port = self._ports[number]
        with contextlib.suppress(OSError):
            port.update()
        if not port.listeners:
            port.close()
            del self._ports[number]
