"""A published TCP port of a guest: its doors, and the clients that come in by them.

A door is a TCP listener on the host. The engine accepts: clients of IPs that it was
told of it offers to the guest at once. The others come here, and so do those that the
guest had no room for; all that is decided here is offered again from here.

The engine is told of an IP when the guest took one of its clients that was offered from
here, so its range is known to the agent. It forgets all of them with any change of the
policy or of who listens, and offers nobody where several listen: they take turns here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from fastpath.tsi.clients import Client
from fastpath.tsi.peers import first_port
from vhost_user.engine import MAX_CALLERS, EventKind
from vhost_user.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from fastpath.tsi.addresses import Address
    from fastpath.tsi.clients import Announcer, Publisher
    from fastpath.tsi.protocol import Listen
    from vhost_user.engine import DeviceHandle, Engine, Event, ListenerHandle

MAX_PENDING: Final = 256
"""Clients offered to a port from here that the guest has not answered yet."""
OFFER_S: Final = 60.0
"""How long a client is offered to a guest whose backlog is full."""
FIRST_RETRY_S: Final = 0.005
LAST_RETRY_S: Final = 0.5
"""Time between two offers: it doubles from the one to the other."""

_MAX_BACKLOG: Final = 65535
_FEWEST: Final = 2
"""Backlog of a TCP listener whose clients have to wait.

With as many handshakes under way as the backlog Linux answers by SYN cookies: with 0,
always. The last ACK of such a client is forgotten if it meets a full queue, and none is
asked for again: it waits for ever.
"""


class Offerer(Protocol):
    """What a port needs of the sandbox that it is of."""

    @property
    def engine(self) -> Engine:
        """Accepts, and gives clients out."""
        ...

    @property
    def guest(self) -> DeviceHandle:
        """The guest's device."""
        ...

    @property
    def publisher(self) -> Publisher[Any]:
        """Opens listeners, and hears of clients that never got through."""
        ...

    def addresses(self, port: int, versions: Sequence[int]) -> list[Hashable]:
        """Where a TCP port is reachable, for clients of some IP versions."""
        ...

    def tunnels(self, port: int) -> bool:
        """Whether clients may come by another way than doors."""
        ...

    def offer(
        self, port: Port, agent: Announcer, listen: Listen, client: Client
    ) -> bool:
        """Ask the guest to take a client; False: not now.

        Raises:
            ConnectionResetError: the client has left.
        """
        ...

    def forget_decided(self) -> None:
        """Have the engine offer no clients but those of doors by itself."""
        ...

    def warn(self, port: int, problem: object) -> None:
        """Log what went wrong at a port, unless there were many such lines."""
        ...


@dataclass(frozen=True, slots=True)
class _Door:
    """A TCP listener on the host."""

    listener: ListenerHandle
    port: int
    """That clients use."""


class Port:
    """A TCP port of the guest: who listens there, and who wants in."""

    def __init__(self, offerer: Offerer, number: int) -> None:
        self._offerer = offerer
        self._number = number
        self.listeners: list[tuple[Announcer, Listen]] = []
        self._doors: dict[Hashable, _Door] = {}  # by address
        self._known: dict[int, Address] = {}  # to the engine, by range
        self._queue: deque[Client] = deque()  # not offered yet
        self._held: deque[Client] = deque()  # the guest had no room
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
        self.forget_all()
        backlog = max((listen.backlog for _, listen in self.listeners), default=0)
        self._backlog = min(backlog, _MAX_BACKLOG)
        versions = [
            version
            for version in (4, 6)
            if any(listen.takes(version) for _, listen in self.listeners)
        ]
        wanted = self._offerer.addresses(self._number, versions)
        for address in [each for each in self._doors if each not in wanted]:
            self._doors.pop(address).listener.close()
        problem: OSError | None = None
        for address in wanted:
            try:
                if address not in self._doors:
                    self._doors[address] = self._open(address)
                else:
                    self._doors[address].listener.set_backlog(self._backlog)
            except OSError as error:
                problem = error
        tunnelled = self._offerer.tunnels(self._number)
        if not self._doors and not tunnelled:
            self._refuse_all()
        if problem is not None:
            raise problem
        other = self._number if tunnelled else 0
        return next((door.port for door in self._doors.values()), other)

    def close(self) -> None:
        """Close the doors; who waits is refused."""
        self.listeners.clear()
        for door in self._doors.values():
            door.listener.close()
        self._doors.clear()
        self._known.clear()
        self._refuse_all()
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

    def admit(self, client: Client) -> None:
        """Offer a client that came by no door; it waits for its turn, or is refused."""
        if len(self._queue) >= MAX_PENDING:
            self._refuse(client, errno.EAGAIN)
            return
        self._queue.append(client)
        self._go_on()

    def introduced(self, agent: Announcer, listen: Listen, client: Client) -> None:
        """An agent knows the client that one of its listeners was to take."""
        self._pending -= 1
        if (agent, listen) in self.listeners:
            self._ask((agent, listen), client)
        else:
            self._offer(client)
        self._go_on()

    # What the engine knows

    def alone(self, agent: Announcer, listen: Listen, version: int) -> bool:
        """Whether a listener is the only one for clients of an IP version."""
        able = [entry for entry in self.listeners if entry[1].takes(version)]
        return able == [(agent, listen)]

    def know(self, client: Client) -> None:
        """Have the engine offer others of a client's IP as it was, if it may.

        Only the one listener that takes it: several take turns.
        """
        number, taker = client.range, client.taker
        if number is None or number in self._known or taker is None:
            return
        if not self.alone(*taker, client.ip.version):
            return
        if len(self._known) == MAX_CALLERS:
            self.forget(next(iter(self._known)))
        self._known[number] = client.ip
        for door in self._doors.values():
            door.listener.know(
                client.ip,
                guest_port=taker[1].listener,
                first_port=first_port(number),
            )

    def forget(self, number: int) -> None:
        """Have the engine offer no more clients from a range."""
        ip = self._known.pop(number, None)
        if ip is not None:
            for door in self._doors.values():
                door.listener.forget(ip)

    def forget_all(self) -> None:
        """Have the engine offer no more clients."""
        self._offerer.forget_decided()
        if self._known:
            self._known.clear()
            for door in self._doors.values():
                door.listener.forget_all()

    # Doors

    def _open(self, address: Hashable) -> _Door:
        """Open a door.

        Raises:
            OSError: it cannot be opened.
        """
        sock = self._offerer.publisher.listen(address, self._backlog)
        port = sock.getsockname()[1]
        try:
            listener = self._offerer.engine.add_guest_listener(
                sock,
                self._offerer.guest,
                backlog=self._backlog,
                tag=self._number,
                on_event=self._handle_event,
            )
        except (OSError, StateError) as error:
            sock.close()
            if isinstance(error, StateError):
                raise OSError(errno.ENOBUFS, str(error)) from error
            raise
        if self._paused:
            listener.pause()
        return _Door(listener, port)

    def _handle_event(self, event: Event) -> None:
        """Take a client that the engine knows nothing of, or the guest had no room."""
        deadline = asyncio.get_running_loop().time() + OFFER_S
        client = Client.of(event, deadline=deadline)
        if event.kind is not EventKind.REQUEST:  # nobody was here for too long
            self._offerer.publisher.failed(client, event.error)
            return
        client.sock = self._offerer.engine.take(event.conn)
        if client.sock is None:
            return
        client.sock.setblocking(False)
        if event.error:
            self._pause()  # as the door is
        client.denial = self._offerer.publisher.denial(client)
        if client.denial:
            self._refuse(client, errno.EACCES)
            self._go_on()
            return
        if event.error == errno.ECONNREFUSED and self.listeners:
            self._hold(client)
        else:
            self._queue.append(client)
        self._go_on()

    # Clients

    def _offer(self, client: Client) -> None:
        """Ask the guest to take a client; in turn, where several listen."""
        version = client.ip.version
        able = [entry for entry in self.listeners if entry[1].takes(version)]
        if client.gone or not able:
            error = errno.ECONNRESET if client.gone else errno.ECONNREFUSED
            self._refuse(client, error)
            return
        self._turn += 1
        self._ask(able[self._turn % len(able)], client)

    def _ask(self, entry: tuple[Announcer, Listen], client: Client) -> None:
        """Ask the guest for one listener."""
        try:
            asked = self._offerer.offer(self, *entry, client)
        except ConnectionResetError:
            self._refuse(client, errno.ECONNRESET)
            return
        if asked:
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
        self._try_again()

    def _try_again(self) -> None:
        """Have those who are held offered again, one after the other."""
        if self._timer is None:
            self._later(self._retry_s, self._retry)
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _retry(self) -> None:
        if self._held:
            self._offer(self._held.popleft())
        self._go_on()

    def _refuse(self, client: Client, error: int) -> None:
        client.reset(error)
        self._offerer.publisher.failed(client, error)

    def _refuse_all(self) -> None:
        for waiting in (self._held, self._queue):
            while waiting:
                self._refuse(waiting.popleft(), errno.ECONNREFUSED)

    def _has_room(self) -> bool:
        """Whether one more client can be offered: the guest may have no more room."""
        return not self._held and self._pending < min(MAX_PENDING, self._backlog + 1)

    def _pause(self) -> None:
        """Take no more clients: let their TCP wait, as with a full backlog."""
        if not self._paused:
            self._paused = True
            for door in self._doors.values():
                door.listener.pause()
        if self._held:
            self._listen(min(_FEWEST, self._backlog))

    def _go_on(self) -> None:
        """Offer who waits, and take more clients if there is room for them."""
        while self._queue and self._has_room():
            self._offer(self._queue.popleft())
        if self._held and not self._pending:  # so no answer will go on with them
            self._try_again()
        if not self._has_room():
            self._pause()
        elif self._paused:
            self._paused = False
            self._listen(self._backlog)
            for door in self._doors.values():
                door.listener.resume()

    def _listen(self, backlog: int) -> None:
        for door in self._doors.values():
            with contextlib.suppress(OSError):
                door.listener.set_backlog(backlog)

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        def fire() -> None:
            self._timer = None
            call()

        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(delay_s, fire)
