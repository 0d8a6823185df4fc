"""Time, the engine and UDP sockets of the host: models for `fuzz_tsi.py`.

As strict about their calls as the real ones.
"""

from __future__ import annotations

import asyncio
import errno
import selectors
import socket
import struct

from vhost_user.engine import Ask, Event, EventKind, Reset
from vhost_user.errors import StateError

FIRST_TOKEN = 0x10000


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until it is moved."""

    def __init__(self):
        super().__init__(selectors.SelectSelector())
        self.now = 1000.0
        self.wrong: list[object] = []
        self.set_exception_handler(lambda _, context: self.wrong.append(context))

    def time(self):
        return self.now

    monotonic = time

    def turn(self, count=3):
        """Run what is ready."""
        for _ in range(count):
            self.call_soon(self.stop)
            self.run_forever()


class Conn:
    """A connection as the engine has it."""

    def __init__(self, box, port, now, listener=1025):
        self.box, self.port, self.since = box, port, now
        # streams of agents come from a port that not everybody has
        self.peer_port = 1023 if port in {21587, 21588} else listener
        self.target = None
        """None: Python was asked."""
        self.open = False
        self.visitor = None
        """Of a client that the engine offered: `tcp_doors.Visitor`."""


class Engine:
    """The engine's model: connections, and the events that they cause."""

    def __init__(self, loop):
        self.loop = loop
        self.conns = {}
        self.next = 0
        self.sockets = []
        self.held = {}
        """Clients to be taken, and their doors."""

    def request(self, box, port):
        """Take a guest's REQUEST to a port; return the connection."""
        self.next += 1
        conn = self.conns[self.next] = Conn(box, port, self.loop.time())
        target = box.routes.get(port, box.routes[None])
        if isinstance(target, Ask):
            self.post(self.next, EventKind.REQUEST)
        else:
            self.settle_target(self.next, conn, target)
        return self.next

    def offer(self, box, listener, port, client):
        """Take a client of the host for a guest's listener; return the connection."""
        assert not client.closed
        assert port >= 0x80000000
        for conn in self.conns.values():
            if (conn.box, conn.port, conn.peer_port) == (box, port, listener):
                raise StateError("in use")
        self.next += 1
        conn = self.conns[self.next] = Conn(box, port, self.loop.time(), listener)
        conn.target = client
        return self.next

    def add_guest_listener(self, door, box, *, backlog, tag, on_event):
        assert tag == door.address.port
        door.set_backlog(backlog)
        door.attach(self, box, on_event)
        return door

    def take(self, number):
        """Give Python a client."""
        door, client = self.held.pop(number)
        door.settled()
        return client

    def settle_target(self, number, conn, target):
        conn.target = target
        if isinstance(target, Reset):
            self.end(number, target.error)
        else:
            conn.box.judge(conn.port, target)

    def answer(self, number, target):
        conn = self.conns.get(number)
        if conn is None:
            return False
        assert conn.target is None, "answered twice"
        self.settle_target(number, conn, target)
        return True

    def answer_fd(self, number, sock):
        conn = self.conns.get(number)
        if conn is None:
            sock.close()
            return False
        assert conn.target is None, "answered twice"
        sock.setblocking(False)
        self.sockets.append(sock)
        if conn.port >= FIRST_TOKEN:
            conn.target = sock
            self.opened(number)
        else:
            del self.conns[number]
            conn.box.take_stream(conn.port, sock)
        return True

    def reset(self, number, error):
        if number not in self.conns:
            return False
        self.end(number, error)
        return True

    def opened(self, number):
        """The dial has worked."""
        conn = self.conns[number]
        conn.open = True
        self.post(number, EventKind.OPENED)
        if conn.visitor:
            conn.visitor.door.settled()

    def end(self, number, error=0):
        """Forget a connection, and tell of it."""
        conn = self.conns.pop(number)
        visitor = conn.visitor
        if visitor and not conn.open:
            door = visitor.door
            if error == errno.ECONNREFUSED and not door.closed:
                door.ask(conn.target, visitor.source, error)
                return
            door.settled()
        kind = EventKind.CLOSED if conn.open else EventKind.FAILED
        self.tell(number, conn, kind, error)
        if visitor or isinstance(conn.target, socket.socket):
            conn.target.close()

    def post(self, number, kind):
        self.tell(number, self.conns[number], kind)

    def tell(self, number, conn, kind, error=0):
        known = conn.visitor and kind is not EventKind.CLOSED
        event = Event(
            kind=kind,
            conn=number,
            port=conn.port,
            peer_port=conn.peer_port,
            error=error,
            **(conn.visitor.fields() if known else {}),
        )
        self.loop.call_soon(conn.box.service.handle_event, event)


class Udp:
    """A UDP socket on the host, and the network behind it."""

    def __init__(self, world, family, make):
        self.world = world
        self.family = family
        self.sock, self.network = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.network.setblocking(False)
        self.sent = set()
        self.next = []
        """What the next calls give: datagrams with their source, or errors."""
        self.queue = []
        """The error queue."""
        self.fails = 0
        """The errno of the next sendto."""
        world.udp.append(self)

    def fileno(self):
        return self.sock.fileno()

    def close(self):
        self.world.udp.remove(self)
        self.sock.close()
        self.network.close()

    def sendto(self, data, address):
        assert address[1] != 53, "DNS is answered here"
        assert not self.world.a.denied_udp(address), f"sent to {address}"
        assert (":" in address[0]) == (self.family == socket.AF_INET6)
        self.sent.add(address)
        error, self.fails = self.fails, 0
        if error:
            raise OSError(error, "the network is so")
        return len(data)

    def recvfrom(self, size):
        if not self.next:
            raise BlockingIOError
        data, source = self.next.pop(0)
        self.sock.recv(1)
        if not data:
            raise ConnectionRefusedError
        return data, source

    def recvmsg(self, size, control, flags):
        assert flags == socket.MSG_ERRQUEUE
        if not self.queue:
            raise BlockingIOError
        address, error = self.queue.pop(0)
        level = (0, 11) if self.family == socket.AF_INET else (41, 25)
        return b"", [(*level, struct.pack("=I12x", error))], 0, address

    def arrive(self, source, data):
        """Hand in a datagram, or an error that stands before the next one."""
        self.next.append((data, source))
        self.network.send(b"!")
