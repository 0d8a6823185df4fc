"""Inbound: a guest's listeners, TCP listeners for them, and the connections between.

    agent --- LISTEN, UNLISTEN, INTRODUCED ---> Inbound <--- events --- engine
          <-- LISTENING, CALLER ---------------    |
                                                   v
                                Publisher: which ports, on which addresses; log

While a program in the guest listens on a published port, there is a TCP listener on the
host. So what nobody listens on is refused by the host's TCP, with no code of ours. A
client that is accepted here is offered to the guest, whose kernel takes it into the
program's backlog or resets it. A full backlog is a reset, too: the client is kept and
offered again, and until the guest takes it, no other client is accepted; the TCP
listener's own backlog is then what makes clients wait.

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
import ipaddress
import logging
import socket
import struct
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from fastpath.throttle import Throttle
from fastpath.tsi.protocol import (
    FIRST_PEER_PORT,
    PEER_RANGES,
    UNNAMED_RANGES,
    Caller,
    Listening,
)
from vhost_user.engine import EventKind
from vhost_user.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from fastpath.tsi.addresses import Address
    from fastpath.tsi.policy import SandboxPolicy
    from fastpath.tsi.protocol import Listen
    from vhost_user.engine import Event, SocketAddress
    from vhost_user.vsock.device import VsockDevice

log = logging.getLogger(__name__)

MAX_PENDING: Final = 256
"""Clients offered to a port that the guest has not answered yet."""
OFFER_S: Final = 60.0
"""How long a client is offered to a guest whose backlog is full."""
FIRST_RETRY_S: Final = 0.005
LAST_RETRY_S: Final = 0.5
"""Time between two offers: it doubles from the one to the other."""
INTRODUCE_S: Final = 5.0
"""How long an agent may take to learn of an IP."""
NO_FILES_S: Final = 0.5
"""Pause when the process is out of descriptors."""

_ACCEPTS_A_TURN: Final = 64
_ALIASES: Final = 4
_RANGE_BITS: Final = 16
_MAX_BACKLOG: Final = 65535
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger
_OUT_OF_FILES: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
)


@dataclass(slots=True, eq=False)
class Client:
    """A connection from outside, from accept() to its end."""

    address: SocketAddress
    """The client's."""
    reached: SocketAddress
    """Where it connected to, on the host."""
    port: int
    """TCP port in the guest."""
    sock: socket.socket | None = field(repr=False)
    """None once the engine alone has it."""
    deadline: float = 0.0
    range: int | None = None
    """Whose reference in `Peers` it holds."""
    shown: Address | None = None
    """Its IP, as accept() in the guest gives it."""
    ended: bool = False
    """By the policy."""

    @property
    def ip(self) -> Address:
        """The client's, without a scope."""
        return ipaddress.ip_address(self.address[0].partition("%")[0])

    def reset(self) -> None:
        """End it, as TCP does when nobody listens."""
        if self.sock is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.release()

    def release(self) -> None:
        """Close our descriptor; the engine may have another."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None


Place = TypeVar("Place", bound="Hashable")


class Publisher(Protocol[Place]):
    """Says where a guest's ports are reachable, and hears of their connections."""

    def addresses(self, port: int, version: int, *, covered: bool) -> Sequence[Place]:
        """Return where a guest's TCP port is reachable; none: it is not published.

        Args:
            port: in the guest.
            version: 4 or 6: of the clients.
            covered: whether the policy publishes it.
        """
        ...

    def listen(self, address: Place, backlog: int) -> socket.socket:
        """Open a listener at one of the addresses, with the program's backlog.

        Raises:
            OSError: it cannot be opened; its errno is the program's.
        """
        ...

    def opened(self) -> None:
        """The guest took a client."""
        ...

    def failed(self, client: Client, error: int) -> None:
        """A client never got through; `error` is an errno."""
        ...

    def ended(self) -> None:
        """An established connection is ended: its port is not published any more."""
        ...

    def closed(self, client: Client, event: Event) -> None:
        """An established connection ended."""
        ...


@dataclass(slots=True, eq=False)
class Announcer:
    """An agent, as far as its listeners go."""

    send: Callable[[bytes], bool]
    """Sends a message; False: there is no room, it is lost."""
    listeners: dict[int, Listen] = field(default_factory=dict)
    """By vsock port."""
    known: dict[int, int] = field(default_factory=dict)
    """The ranges that it knows: which of their owners (`Peers.owner`)."""


class Peers:
    """Ranges of vsock ports: the upper half of a port names the client's IP.

    An IP has one range, and another for a client that comes back with the same TCP
    port while its last connection is not over yet. Ranges with connections stay; of the
    others the one unused for longest goes when all are taken.
    """

    def __init__(self, ranges: int = PEER_RANGES) -> None:
        self._ranges = ranges
        self._by_key: OrderedDict[tuple[Address, int], int] = OrderedDict()
        self._holds: dict[int, int] = {}
        self._owners: dict[int, int] = {}

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
            self._owners[number] = self.owner(number) + 1
        self._by_key.move_to_end(key)
        return number

    def hold(self, number: int) -> None:
        """Keep a range for one more connection."""
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
        for key, number in self._by_key.items():
            if number not in self._holds:
                del self._by_key[key]
                return number
        return 0


def first_port(number: int) -> int:
    """The first vsock port of a range."""
    return FIRST_PEER_PORT | number << _RANGE_BITS


class _Port:
    """A TCP port of the guest: who listens there, and who wants in."""

    def __init__(self, inbound: Inbound, number: int) -> None:
        self._inbound = inbound
        self._number = number
        self.listeners: list[tuple[Announcer, Listen]] = []
        self._doors: dict[Hashable, socket.socket] = {}  # by address
        self._held: deque[Client] = deque()
        self._backlog = 0
        self._pending = 0
        self._paused = False
        self._turn = 0
        self._retry_s = FIRST_RETRY_S
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether clients can come in."""
        return bool(self._doors)

    def update(self) -> int:
        """Open and close doors as the listeners and the policy have it.

        Returns:
            The port that clients use, of the first door; 0: there is none.

        Raises:
            OSError: a door cannot be opened; those that can are.
        """
        backlog = max((listen.backlog for _, listen in self.listeners), default=0)
        backlog = self._backlog = min(backlog, _MAX_BACKLOG)
        versions = [
            version
            for version in (4, 6)
            if any(listen.takes(version) for _, listen in self.listeners)
        ]
        wanted = self._inbound.addresses(self._number, versions)
        for address in [each for each in self._doors if each not in wanted]:
            self._shut(self._doors.pop(address))
        problem: OSError | None = None
        for address in wanted:
            try:
                if address not in self._doors:
                    self._doors[address] = self._open(address, backlog)
            except OSError as error:
                problem = error
            else:
                self._doors[address].listen(backlog)
        if not self._doors:
            self._refuse_held()
        if problem is not None:
            raise problem
        return next((door.getsockname()[1] for door in self._doors.values()), 0)

    def close(self) -> None:
        """Close the doors; who waits is refused."""
        self.listeners.clear()
        for door in self._doors.values():
            self._shut(door)
        self._doors.clear()
        self._refuse_held()
        if self._timer is not None:
            self._timer.cancel()

    def settled(self, client: Client, error: int) -> None:
        """The guest, or the engine, answered an offer; 0: it took the client."""
        self._pending -= 1
        if error == 0:
            self._retry_s = FIRST_RETRY_S
            if self._held:
                self._offer(self._held.popleft())
        elif error == errno.ECONNREFUSED and self.listeners:
            self._hold(client)
        else:
            self._refuse(client, error)
        self._go_on()

    def introduced(self, agent: Announcer, listen: Listen, client: Client) -> None:
        """An agent knows the client that one of its listeners was to take."""
        self._pending -= 1
        if (agent, listen) in self.listeners:
            self._ask((agent, listen), client)
        else:
            self._offer(client)
        self._go_on()

    def _open(self, address: Hashable, backlog: int) -> socket.socket:
        door = self._inbound.publisher.listen(address, backlog)
        door.setblocking(False)
        if not self._paused:
            self._watch(door)
        return door

    def _shut(self, door: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(door)
        door.close()

    def _watch(self, door: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(door, self._accept, door)

    def _accept(self, door: socket.socket) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            if not self._has_room():
                self._pause()
                return
            try:
                sock, address = door.accept()
            except OSError as error:
                # Else there is nobody, or the client has failed already: accept(2)
                if error.errno not in _OUT_OF_FILES:
                    return
                self._inbound.warn(self._number, f"cannot accept: {error}")
                self._pause()
                self._later(NO_FILES_S, self._go_on)
                return
            self._greet(sock, address)

    def _greet(self, sock: socket.socket, address: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(
            address=address[:2],
            reached=sock.getsockname()[:2],
            port=self._number,
            sock=sock,
            deadline=loop.time() + OFFER_S,
        )
        self._offer(client)

    def _offer(self, client: Client) -> None:
        """Ask the guest to take a client; in turn, where several listen."""
        version = client.ip.version
        able = [entry for entry in self.listeners if entry[1].takes(version)]
        if not able:
            self._refuse(client, errno.ECONNREFUSED)
            return
        self._turn += 1
        self._ask(able[self._turn % len(able)], client)

    def _ask(self, entry: tuple[Announcer, Listen], client: Client) -> None:
        """Ask the guest for one listener."""
        if self._inbound.offer(self, *entry, client):
            self._pending += 1
        else:
            self._hold(client)

    def _hold(self, client: Client) -> None:
        """Keep a client that the guest has no room for."""
        if asyncio.get_running_loop().time() > client.deadline:
            self._refuse(client, errno.ETIMEDOUT)
            return
        self._held.append(client)
        self._pause()
        if self._timer is None:
            self._later(self._retry_s, self._retry)
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _retry(self) -> None:
        if self._held:
            self._offer(self._held.popleft())
        self._go_on()

    def _refuse(self, client: Client, error: int) -> None:
        client.reset()
        self._inbound.publisher.failed(client, error)

    def _refuse_held(self) -> None:
        while self._held:
            self._refuse(self._held.popleft(), errno.ECONNREFUSED)

    def _has_room(self) -> bool:
        """Whether one more client can be offered: the guest may have no more room."""
        return not self._held and self._pending < min(MAX_PENDING, self._backlog + 1)

    def _pause(self) -> None:
        """Take no more clients: let their TCP wait, as with a full backlog."""
        if self._paused:
            return
        self._paused = True
        for door in self._doors.values():
            asyncio.get_running_loop().remove_reader(door)
            if self._held:
                door.listen(0)

    def _go_on(self) -> None:
        if self._paused and self._has_room():
            self._paused = False
            for door in self._doors.values():
                self._watch(door)
            with contextlib.suppress(OSError):
                self.update()

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        def fire() -> None:
            self._timer = None
            call()

        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, fire)


@dataclass(slots=True, eq=False)
class _Introduction:
    """Clients that wait until an agent knows their IP."""

    owner: int
    timer: asyncio.TimerHandle
    clients: list[tuple[_Port, Listen, Client]] = field(default_factory=list)


class Inbound:
    """The listeners of one sandbox's guest.

    Args:
        device: the sandbox's; the service hands us its events.
        publisher: says where ports are reachable.
        policy: says which are published, and how many may be.
        reset: ends a connection, with an errno.
        name: the sandbox's, for the log.
    """

    def __init__(
        self,
        device: VsockDevice,
        publisher: Publisher[Any],
        *,
        policy: SandboxPolicy,
        reset: Callable[[int, int], object],
        name: str,
    ) -> None:
        self.publisher = publisher
        self._policy = policy
        self._reset = reset
        self._device = device
        self._name = name
        self._ports: dict[int, _Port] = {}
        self._count = 0
        self._peers = Peers()
        self._offered: dict[int, tuple[_Port, Client]] = {}  # by connection
        self._live: dict[int, Client] = {}  # by connection
        self._introductions: dict[tuple[Announcer, int], _Introduction] = {}
        self._lines = Throttle(
            lambda count: log.warning("%s: %d more lines about listeners", name, count)
        )

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
        port = self._ports.setdefault(new.port, _Port(self, new.port))
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
        number = ports - FIRST_PEER_PORT >> _RANGE_BITS
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
        for number, port in list(self._ports.items()):
            try:
                port.update()
            except OSError as problem:
                self.warn(number, problem)
        for conn, client in list(self._live.items()):
            if not self._publishes(client.port):
                self._end(conn, client)

    def close(self) -> None:
        """Close all doors; connections live on, but those that are on offer."""
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

    def offer(
        self, port: _Port, agent: Announcer, listen: Listen, client: Client
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
            source = first_port(number) | client.address[1]
            try:
                conn = self._device.handle.offer(
                    listen.listener, client.sock, port=source
                )
            except StateError:
                continue
            except OSError as error:
                self.warn(listen.port, error)
                return False
            self._offered[conn] = (port, client)
            self._remember(client, number, ip)
            return True
        return False

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
            return
        port, client = found
        if event.kind is EventKind.OPENED:
            client.release()
            self._live[event.conn] = client
            self.publisher.opened()
            if not self._publishes(client.port):  # the policy changed meanwhile
                self._end(event.conn, client)
            port.settled(client, 0)
        else:
            self._forget(client)
            port.settled(client, event.error or errno.ECONNREFUSED)

    def warn(self, port: int, problem: object) -> None:
        """Log what went wrong at a port, unless there were many such lines."""
        if self._lines.admits():
            log.warning("%s: port %d: %s", self._name, port, problem)

    def _publishes(self, port: int) -> bool:
        return bool(self.addresses(port, (4, 6)))

    def _end(self, conn: int, client: Client) -> None:
        """End a connection that the policy has come to deny."""
        if not client.ended:
            client.ended = True
            self.publisher.ended()
            self._reset(conn, errno.ECONNRESET)

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

    def _remember(self, client: Client, number: int, ip: Address) -> None:
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

    def _tidy(self, number: int) -> None:
        """Close the doors that nobody needs; forget a port without listeners."""
        port = self._ports[number]
        with contextlib.suppress(OSError):
            port.update()
        if not port.listeners:
            port.close()
            del self._ports[number]
