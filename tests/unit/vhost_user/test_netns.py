"""Dials in another network namespace: the engine, and a maker of sockets by hand.

The messages are written out by hand, from vhost_user/native/vu_netns.h. All sockets are
of our own namespace: the maker binds them to 127.0.0.9, which shows whose they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from ipaddress import ip_address

import pytest

from tests.support.descriptors import descriptors
from tests.support.limits import LIMIT_S, until
from vhost_user.engine import ALL_EVENTS, Dial, Engine, Event, EventKind
from vhost_user.errors import StateError

OURS, OURS6 = ip_address("127.0.0.9"), ip_address("::1")
STOCK, HALF = 32, 16


class World:
    """An engine with a listener whose clients are dialled in the namespace."""

    def __init__(self, engine, server):
        self.engine = engine
        self.server = server
        self.destination = server.getsockname()[:2]
        self.maker, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.maker.setblocking(False)
        self.netns = engine.add_netns(theirs, (OURS,))
        self.events = []
        self.clients = []
        self.listener = None

    def listen(self, destination=None):
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        target = Dial(destination or self.destination, self.netns.id)
        self.listener = self.engine.add_listener(
            listener, target, on_event=self.events.append, want=ALL_EVENTS
        )

    async def dial(self, count=1):
        """Have clients dialled for."""
        if self.listener is None:
            self.listen()
        loop = asyncio.get_running_loop()
        for _ in range(count):
            client = socket.socket()
            client.setblocking(False)
            self.clients.append(client)
            with contextlib.suppress(ConnectionResetError):  # its end may be first
                await loop.sock_connect(client, self.address)

    async def asked(self):
        """The fields of the next message: what, version, count, address."""
        loop = asyncio.get_running_loop()
        message = await loop.sock_recv(self.maker, 100)
        what, version, count, unused, ip = struct.unpack("=BBHI16s", message)
        assert unused == 0
        return what, version, count, ip

    def answer(self, count, *, error=0, version=4):
        """Answer with sockets."""
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket()) for _ in range(count)]
            for sock in socks:
                sock.setblocking(False)
                sock.bind((str(OURS), 0))
            head = struct.pack("=iBBH", error, 1, version, count)
            socket.send_fds(self.maker, [head], [sock.fileno() for sock in socks])

    async def accept(self):
        """The address of the next client of the server."""
        loop = asyncio.get_running_loop()
        conn, address = await loop.sock_accept(self.server)
        conn.close()
        return address[0]

    def kinds(self, kind):
        return [event for event in self.events if event.kind is kind]

    async def failed(self, count):
        """The errors of dials that failed."""
        await until(lambda: len(self.kinds(EventKind.FAILED)) == count)
        return [event.error for event in self.kinds(EventKind.FAILED)]

    def nothing_is_asked(self):
        with pytest.raises(BlockingIOError):
            assert self.maker.recv(100) == b""


def run(work):
    async def main():
        with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
            server.setblocking(False)
            async with asyncio.timeout(LIMIT_S), Engine() as engine:
                world = World(engine, server)
                try:
                    await work(world)
                finally:
                    world.maker.close()
                    for client in world.clients:
                        client.close()

    asyncio.run(main())


def test_nothing_is_asked_for_before_there_is_a_dial():
    async def work(world):
        world.listen()
        world.nothing_is_asked()

    run(work)


def test_a_dial_is_made_with_a_socket_of_the_maker():
    async def work(world):
        await world.dial()
        assert await world.asked() == (1, 4, STOCK, OURS.packed + bytes(12))
        world.answer(STOCK)
        assert await world.accept() == str(OURS)

    run(work)


def test_the_stock_is_filled_up_when_half_of_it_is_gone():
    async def work(world):
        await world.dial()
        await world.asked()
        world.answer(STOCK)
        await world.dial(HALF - 2)
        for _ in range(HALF - 1):
            assert await world.accept() == str(OURS)
        world.nothing_is_asked()
        await world.dial()
        assert await world.asked() == (1, 4, HALF, OURS.packed + bytes(12))
        await world.dial(HALF)  # the rest serves meanwhile
        for _ in range(HALF + 1):
            await world.accept()

    run(work)


def test_dials_wait_for_sockets_and_are_served_in_order():
    async def work(world):
        await world.dial(100)
        for left in range(100, 0, -STOCK):
            await until(lambda: world.engine.stats().conns)
            _, _, count, _ = await world.asked()
            assert count <= STOCK
            world.answer(min(count, left))
        while len(world.kinds(EventKind.OPENED)) < 100:
            with contextlib.suppress(BlockingIOError):
                world.maker.recv(100)
                world.answer(STOCK)
            await asyncio.sleep(0)
        for _ in range(100):
            assert await world.accept() == str(OURS)

    run(work)


def test_what_the_maker_meets_is_the_dials_errno():
    async def work(world):
        await world.dial(3)
        await world.asked()
        await until(lambda: world.engine.stats().conns == 3)
        world.answer(0, error=errno.EADDRNOTAVAIL)
        assert await world.failed(3) == [errno.EADDRNOTAVAIL] * 3
        await world.dial()
        await world.asked()  # it is tried again
        world.answer(1)
        assert await world.accept() == str(OURS)

    run(work)


def test_an_answer_without_sockets_says_that_we_lack_descriptors():
    async def work(world):
        await world.dial()
        await world.asked()
        world.answer(0)
        assert await world.failed(1) == [errno.EMFILE]

    run(work)


def test_a_refused_dial_has_tcps_errno():
    async def work(world):
        world.server.close()
        await world.dial()
        await world.asked()
        world.answer(1)
        assert await world.failed(1) == [errno.ECONNREFUSED]

    run(work)


@pytest.mark.parametrize("host", ["::1", "2001:db8::1"])
def test_without_an_address_of_a_version_nothing_is_reached(host):
    async def work(world):
        world.listen((host, 80))
        await world.dial()
        assert await world.failed(1) == [errno.ENETUNREACH]
        world.nothing_is_asked()

    run(work)


def test_each_version_has_a_stock():
    async def work(world):
        maker, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        world.maker.close()
        maker.setblocking(False)
        world.maker = maker
        world.netns = world.engine.add_netns(theirs, (OURS6, OURS))
        world.listen(("::1", 80))
        await world.dial()
        assert await world.asked() == (1, 6, STOCK, OURS6.packed)

    run(work)


def test_dials_wait_for_the_next_maker():
    async def work(world):
        await world.dial()
        await world.asked()
        world.maker.close()
        await world.dial()
        await until(lambda: world.engine.stats().conns == 2)
        maker, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        maker.setblocking(False)
        world.maker = maker
        world.netns.renew(theirs)
        assert await world.asked() == (1, 4, STOCK, OURS.packed + bytes(12))
        world.answer(STOCK)
        for _ in range(2):
            assert await world.accept() == str(OURS)

    run(work)


def test_a_namespace_that_is_closed_refuses():
    async def work(world):
        await world.dial(2)
        await world.asked()
        await until(lambda: world.engine.stats().conns == 2)
        world.netns.close()
        assert await world.failed(2) == [errno.ENETUNREACH] * 2
        await world.dial()
        assert await world.failed(3) == [errno.ENETUNREACH] * 3
        with pytest.raises(StateError):
            world.netns.close()

    run(work)


def test_a_namespace_that_is_closed_ends_what_is_being_dialled():
    async def work(world):
        with contextlib.ExitStack() as stack:
            full = stack.enter_context(
                socket.create_server(("127.0.0.1", 0), backlog=0)
            )
            stack.enter_context(socket.create_connection(full.getsockname()))
            world.listen(full.getsockname())
            await world.dial(3)  # nobody answers their SYN
            await world.asked()
            world.answer(STOCK)
            await until(lambda: world.engine.stats().conns == 3)
            elsewhere = await own_dial(world)
            world.netns.close()
            assert await world.failed(3) == [errno.ENETUNREACH] * 3
            await elsewhere

    run(work)


async def own_dial(world):
    """A dial of our own namespace's; return what waits for its answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    world.engine.add_listener(
        listener, Dial(world.destination), on_event=lambda event: None
    )
    client = socket.socket()
    client.setblocking(False)
    world.clients.append(client)
    await asyncio.get_running_loop().sock_connect(client, address)
    return world.accept()


def test_an_id_is_not_given_again():
    async def work(world):
        old = world.netns.id
        world.netns.close()
        maker, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        maker.close()
        world.netns = world.engine.add_netns(theirs, (OURS,))
        assert world.netns.id not in (0, old)

    run(work)


def test_clients_that_leave_while_they_wait_leave_nothing():
    async def work(world):
        await world.dial(10)
        await world.asked()
        await until(lambda: world.engine.stats().conns == 10)
        events = len(world.events)
        world.listener.close()
        for client in world.clients:
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            client.close()
        world.answer(STOCK)
        await until(lambda: not world.engine.stats().conns)
        assert events == 0

    run(work)


def test_sockets_beyond_the_stock_are_closed():
    async def work(world):
        await world.dial()
        await world.asked()
        before = descriptors()
        world.answer(STOCK)
        await world.accept()
        world.answer(STOCK)
        world.answer(STOCK)
        await world.dial(3)
        await until(lambda: len(world.kinds(EventKind.OPENED)) == 4)
        kept = len(descriptors() - before)
        assert kept <= STOCK + 3 * 3 + 1

    run(work)


@pytest.mark.parametrize(
    "message",
    [
        b"\1",
        bytes(100),
        struct.pack("=iBBH", 0, 1, 5, 0),
        struct.pack("=iBBH", 0, 2, 4, 0),
    ],
    ids=["short", "long", "version", "kind"],
)
def test_nobody_waits_for_a_maker_that_says_nonsense(message):
    async def work(world):
        await world.dial(3)
        await world.asked()
        await until(lambda: world.engine.stats().conns == 3)
        world.maker.send(message)
        assert await world.failed(3) == [errno.EPROTO] * 3
        await world.dial()
        await world.asked()  # it is asked again
        world.answer(1)
        assert await world.accept() == str(OURS)

    run(work)


@pytest.mark.parametrize(
    ("say", "error"),
    [
        (lambda maker: maker.send(b"?"), errno.EPROTO),
        (lambda maker: maker.close(), errno.ECONNRESET),
    ],
    ids=["nonsense", "gone"],
)
def test_python_hears_of_a_maker_that_is_of_no_use(say, error):
    async def work(world):
        heard: list[Event] = []
        world.netns.hear(heard.append)
        await world.dial()
        await world.asked()
        say(world.maker)
        await until(lambda: heard)
        assert [(event.kind, event.error) for event in heard] == [
            (EventKind.MAKER, error)
        ]

    run(work)


def test_a_namespace_that_is_closed_tells_nothing():
    async def work(world):
        heard: list[Event] = []
        world.netns.hear(heard.append)
        world.maker.send(b"?")
        world.netns.close()
        world.engine.deliver()
        assert not heard

    run(work)


def test_so_many_sockets_are_kept_as_one_says():
    async def work(world):
        maker, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        world.maker.close()
        maker.setblocking(False)
        world.maker = maker
        world.netns = world.engine.add_netns(theirs, (OURS,), keep=4)
        await world.dial()
        assert (await world.asked())[:3] == (1, 4, 4)
        world.answer(4)
        await world.accept()
        world.nothing_is_asked()
        await world.dial()
        await world.accept()
        assert (await world.asked())[:3] == (1, 4, 2)

    run(work)


@pytest.mark.parametrize("message", [b"", b"\1", bytes(100)], ids=["end", "1", "100"])
def test_garbage_from_the_maker_harms_nobody(message):
    async def work(world):
        await world.dial()
        await world.asked()
        if message:
            world.maker.send(message)
        else:
            world.maker.shutdown(socket.SHUT_WR)
        await world.dial()
        await until(lambda: world.engine.stats().conns + len(world.events) >= 2)

    run(work)
