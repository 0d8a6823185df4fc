"""UDP of one sandbox: datagram streams, peers, flows.

    agent --- PEER, DATAGRAM ----------> _Stream --> port 53: DNS, answered here
          <-- VERDICT, DATAGRAM, --------   |
              UNREACHABLE                   +--> policy --> _Flow: a UDP socket

A flow is a UDP socket of ours that stands for one of a program's, named by its port
in the guest, towards the peers of one family: a peer that is sent to from one guest
socket always sees one source, and answers find their way back. Only peers that the flow
has sent to may answer: nothing that arrives here unasked reaches the guest.

Policy is asked when a peer gets its number, and about all of them when it changes: what
it denies by then is ended, with an error for each flow that had sent there.

Datagrams pass through Python, unlike the bytes of connections: this is for DNS, for
programs that talk to a few peers, and not for bulk.

What is kept is bounded, and each bound has a counter in `DatagramStats`. What does
not fit is dropped, as networks do; only a guest that sends too fast is read slower.

Spec: docs/tsi-protocol.md, section 9 "Datagrams".
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

from fastpath.throttle import Throttle
from fastpath.tsi.policy import Denial
from fastpath.tsi.protocol import (
    VERSION,
    Datagram,
    DatagramDecoder,
    Grant,
    Hello,
    Peer,
    ProtocolError,
    Refusal,
    Refused,
    Unreachable,
    Verdict,
)
from fastpath.tsi.stream import Pace, far_end

if TYPE_CHECKING:
    from fastpath.tsi.policy import SandboxPolicy
    from fastpath.tsi.protocol import GuestDatagramMessage
    from vhost_user.engine import Engine, Event, SocketAddress

    _Key = tuple["_Stream", int, int]
    """Of a flow: stream, port in the guest, address family."""

log = logging.getLogger(__name__)

DNS_PORT: Final = 53
PEERS: Final = 4096
"""Peers that have a number at a time, on one stream."""

_READ_SIZE: Final = 262144
_AT_ONCE: Final = 32
"""Datagrams that are read from a flow before others have their turn."""
_MESSAGES_AT_ONCE: Final = 64
"""Messages of an agent that are handled before others have their turn."""
_PAUSE_S: Final = 0.02
_SWEEP_S: Final = 10.0
_MAX_UDP: Final = 65535
_ERROR_QUEUE_SIZE: Final = 512
# linux/in.h, linux/in6.h, linux/errqueue.h: not in Python's socket module
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25
_EXTENDED_ERR: Final = struct.Struct("=I12x")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramLimits:
    """What one sandbox may take, besides what its policy says."""

    streams: int = 64
    """Datagram streams at a time: agents in the guest."""
    idle_s: float = 180.0
    """A flow that nothing passes for so long is closed."""
    queue_bytes: int = 1 << 20
    """Datagrams that wait for the guest to read, of one stream."""
    rate: int = 20000
    """Messages a second that all streams together are read at, in the long run."""
    burst: int = 4096
    """Messages that are read at once after a quiet time."""
    dns_queries: int = 64
    """Queries that are being answered."""


@dataclass(slots=True)
class DatagramStats:
    """Counters of a service; `streams` and `flows` are current values."""

    streams: int = 0
    flows: int = 0
    sent: int = 0
    """Datagrams of the guest that left."""
    received: int = 0
    """Datagrams for the guest that it was handed."""
    dns: int = 0
    """Of the former, DNS queries that were answered here."""
    denied: int = 0
    """Peers and datagrams that policy stopped."""
    unreachable: int = 0
    """Errors that the guest was told of."""
    ended: int = 0
    """Peers of flows that a new policy denied."""
    unasked: int = 0
    """Datagrams from peers that the flow had not sent to."""
    ignored: int = 0
    """Datagrams to peers without a number."""
    refused: int = 0
    """Streams that broke the protocol, or were too many."""
    limit_flows: int = 0
    """Flows closed for others."""
    limit_queue: int = 0
    """Datagrams dropped: the guest did not read."""
    limit_rate: int = 0
    """Pauses in reading: the guest sent too fast."""
    limit_dns: int = 0
    """DNS queries dropped: too many at a time."""
    no_socket: int = 0
    """Datagrams dropped: no UDP socket to be had, or it had no room."""


class DatagramRouter(Protocol):
    """Answers DNS, and hears what is denied."""

    async def resolve(self, query: bytes, *, tcp: bool) -> bytes | None:
        """Answer a DNS query; None: it is none. Never raises."""

    def datagram_denied(self, peer: SocketAddress, denial: Denial) -> None:
        """The guest was told that a peer is denied: it named or used it until now."""


@dataclass(slots=True)
class _Peer:
    """A UDP endpoint that has a number."""

    number: int
    address: SocketAddress
    denial: Denial | None


@dataclass(slots=True, eq=False)
class _Flow:
    """A socket that stands for one of the guest's."""

    stream: _Stream
    port: int
    sock: socket.socket
    peers: set[SocketAddress] = field(default_factory=set)
    """Those it has sent to: whatever number the guest gives away later."""
    used_at: float = 0.0

    @property
    def key(self) -> _Key:
        """What the service knows it by."""
        return self.stream, self.port, self.sock.family


class DatagramService:
    """Serves the datagram streams of one sandbox's guest.

    Args:
        engine: the device's.
        router: answers DNS; hears of denials.
        policy: decides, and bounds the sockets; replaced by `set_policy`.
        name: the sandbox's, for the log.
        limits: see there.
    """

    def __init__(
        self,
        engine: Engine,
        router: DatagramRouter,
        *,
        policy: SandboxPolicy,
        name: str,
        limits: DatagramLimits = DatagramLimits(),
    ) -> None:
        self._engine = engine
        self.router = router
        self.policy = policy
        self.name = name
        self.limits = limits
        self.counts = DatagramStats()
        self.queries: set[asyncio.Task[None]] = set()
        """DNS queries that are being answered, of all streams."""
        self.pace = Pace(limits.rate, limits.burst)
        self._loop = asyncio.get_running_loop()
        self._lines = Throttle(
            lambda count: log.warning("%s: %d more lines about datagrams", name, count)
        )
        self._streams: set[_Stream] = set()
        self._flows: OrderedDict[_Key, _Flow] = OrderedDict()
        """Longest unused first."""
        self._sweeper: asyncio.TimerHandle | None = None

    def stats(self) -> DatagramStats:
        """Return the counters; the object stays current."""
        self.counts.streams = len(self._streams)
        self.counts.flows = len(self._flows)
        return self.counts

    def set_policy(self, policy: SandboxPolicy) -> None:
        """Judge by `policy` from now on, and end what it denies."""
        self.policy = policy
        for stream in tuple(self._streams):
            stream.judge_all()

    def accept(self, event: Event) -> None:
        """Give a datagram stream its far end: us."""
        ours = far_end(self._engine, event.conn)
        if ours is None:
            return
        if len(self._streams) >= self.limits.streams:
            self.counts.refused += 1
            text = f"{len(self._streams)} datagram streams are open"
            ours.send(Refused(Refusal.LIMIT, text).encode())
            ours.close()
            return
        self._streams.add(_Stream(self, ours))

    def close(self) -> None:
        """End all streams and flows."""
        for stream in tuple(self._streams):
            stream.close()
        for task in tuple(self.queries):
            task.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._lines.flush()

    # For the streams

    def ended(self, stream: _Stream, error: ProtocolError | None) -> None:
        """A stream has closed; `error`: what the guest did wrong."""
        self._streams.discard(stream)
        for flow in self.flows(stream):
            self.close_flow(flow)
        if error is not None:
            self.counts.refused += 1
            self.warn(f"datagrams refused: {error.text}")

    def warn(self, text: str) -> None:
        """Log a line that the guest caused, unless there were many."""
        if self._lines.admits():
            log.warning("%s: %s", self.name, text)

    def flows(self, stream: _Stream) -> list[_Flow]:
        """Return all flows of a stream."""
        return [flow for flow in self._flows.values() if flow.stream is stream]

    def flow(self, stream: _Stream, port: int, family: int) -> _Flow:
        """Return a stream's flow for a port of the guest, new if need be.

        Raises:
            OSError: there is no socket to be had.
        """
        flow = self._flows.get((stream, port, family))
        if flow is None:
            while len(self._flows) >= self.policy.limits.max_udp_sockets:
                self.counts.limit_flows += 1
                self.close_flow(next(iter(self._flows.values())))
            flow = _Flow(stream, port, _udp_socket(family))
            self._flows[flow.key] = flow
            self._loop.add_reader(flow.sock, stream.receive, flow)
            if self._sweeper is None:
                self._sweep_later()
        self.touch(flow)
        return flow

    def touch(self, flow: _Flow) -> None:
        """A flow is in use."""
        flow.used_at = self._loop.time()
        self._flows.move_to_end(flow.key)

    def close_flow(self, flow: _Flow) -> None:
        """End a flow."""
        del self._flows[flow.key]
        self._loop.remove_reader(flow.sock)
        flow.sock.close()

    def _sweep_later(self) -> None:
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close the flows that are idle, as long as there are flows."""
        oldest = self._loop.time() - self.limits.idle_s
        while self._flows:
            flow = next(iter(self._flows.values()))
            if flow.used_at > oldest:
                self._sweep_later()
                return
            self.close_flow(flow)
        self._sweeper = None


class _Stream:
    """One agent's datagrams.

    Args:
        service: whose it is.
        sock: connected, taken over.
    """

    def __init__(self, service: DatagramService, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._service = service
        self._sock = sock
        self._decoder = DatagramDecoder()
        self._greeted = False
        self._peers: dict[int, _Peer] = {}
        """By number modulo `PEERS`."""
        self._numbers: dict[SocketAddress, int] = {}
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.Handle | None = None
        self._closed = False
        self._loop.add_reader(sock, self._read)

    def judge_all(self) -> None:
        """Policy has changed: tell the agent which verdicts have, and end flows."""
        for peer in self._peers.values():
            before = peer.denial.error if peer.denial else 0
            peer.denial = self._judge(peer.address)
            error = peer.denial.error if peer.denial else 0
            if error != before:
                self._send(Verdict(peer.number, error).encode())
        for flow in self._service.flows(self):  # none if sending has closed the stream
            self._end_denied(flow)

    def _end_denied(self, flow: _Flow) -> None:
        """Drop a flow's peers that are denied, and the flow if none is left."""
        flow.peers.intersection_update(self._numbers)
        for address in tuple(flow.peers):
            peer = self._peers[self._numbers[address] % PEERS]
            if peer.denial is not None:
                flow.peers.discard(address)
                self._service.counts.ended += 1
                self._service.router.datagram_denied(address, peer.denial)
                self._unreachable(flow.port, peer.number, peer.denial.error)
        if not flow.peers and not self._closed:  # else it is closed already
            self._service.close_flow(flow)

    def close(self, error: ProtocolError | None = None) -> None:
        """End the stream and its flows."""
        if self._closed:
            return
        self._closed = True
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._service.ended(self, error)

    # From the guest

    def _read(self) -> None:
        pace = self._service.pace
        if not pace.admits():
            self._service.counts.limit_rate += 1
            self._loop.remove_reader(self._sock)
            self._resume = self._loop.call_later(_PAUSE_S, self._go_on)
            return
        try:
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
        elif not self._decode(data):
            self._loop.remove_reader(self._sock)

    def _decode(self, data: bytes) -> bool:
        """Handle messages; False: there are more, `_go_on` has them later."""
        handled = 0
        try:
            for message in self._decoder.feed(data):
                self._service.pace.count()
                self._handle(message)
                handled += 1
                if self._closed or handled == _MESSAGES_AT_ONCE:
                    break
        except ProtocolError as error:
            self._send(Refused(error.code, error.text).encode())
            self.close(error)
        if self._closed or handled < _MESSAGES_AT_ONCE:
            return True
        self._resume = self._loop.call_soon(self._go_on)
        return False

    def _go_on(self) -> None:
        self._resume = None
        if self._decode(b"") and not self._closed:
            self._loop.add_reader(self._sock, self._read)

    def _handle(self, message: GuestDatagramMessage) -> None:
        """Handle a message of the agent's.

        Raises:
            ProtocolError: it comes at the wrong time, or speaks no common version.
        """
        if isinstance(message, Hello):
            self._greet(message)
        elif not self._greeted:
            raise ProtocolError(Refusal.UNEXPECTED, "no HELLO")
        elif isinstance(message, Peer):
            self._register(message)
        else:
            self._forward(message)

    def _greet(self, hello: Hello) -> None:
        if self._greeted:
            raise ProtocolError(Refusal.UNEXPECTED, "a second HELLO")
        if not hello.version_min <= VERSION <= hello.version_max:
            text = f"versions {hello.version_min} to {hello.version_max}, not {VERSION}"
            raise ProtocolError(Refusal.VERSION, text)
        self._greeted = True
        self._send(Grant(PEERS).encode())

    def _register(self, message: Peer) -> None:
        slot = message.peer % PEERS
        before = self._peers.get(slot)
        if before is not None and self._numbers.get(before.address) == before.number:
            del self._numbers[before.address]
        denial = self._judge(message.address)
        self._peers[slot] = _Peer(message.peer, message.address, denial)
        self._numbers[message.address] = message.peer
        if denial is not None:
            self._service.counts.denied += 1
            self._service.router.datagram_denied(message.address, denial)
        self._send(Verdict(message.peer, denial.error if denial else 0).encode())

    def _judge(self, address: SocketAddress) -> Denial | None:
        if address[1] == DNS_PORT:
            return None
        policy = self._service.policy
        if not policy.udp:
            return Denial("udp_off", "UDP is switched off", policy.egress.error)
        return policy.egress.check(address)

    def _forward(self, message: Datagram) -> None:
        """Send a datagram of the guest's on its way."""
        counts = self._service.counts
        peer = self._peer(message.peer)
        if peer is None:
            counts.ignored += 1
        elif peer.denial is not None:
            counts.denied += 1
            self._unreachable(message.flow, peer.number, peer.denial.error)
        elif peer.address[1] == DNS_PORT:
            self._query(message)
        else:
            self._emit(message, peer)

    def _query(self, message: Datagram) -> None:
        service = self._service
        if len(service.queries) >= service.limits.dns_queries:
            service.counts.limit_dns += 1
            return
        task = self._loop.create_task(self._resolve(message))
        service.queries.add(task)
        task.add_done_callback(service.queries.discard)

    async def _resolve(self, message: Datagram) -> None:
        answer = await self._service.router.resolve(message.data, tcp=False)
        if answer is not None:
            self._service.counts.dns += 1
            self._deliver(Datagram(message.flow, message.peer, answer))

    # To and from the network

    def _emit(self, message: Datagram, peer: _Peer) -> None:
        counts = self._service.counts
        family = socket.AF_INET6 if ":" in peer.address[0] else socket.AF_INET
        try:
            flow = self._service.flow(self, message.flow, family)
        except OSError as error:
            counts.no_socket += 1
            self._service.warn(f"no UDP socket: {error.strerror}")
            return
        flow.peers.add(peer.address)
        if len(flow.peers) > 2 * PEERS:  # forget those that have no number any more
            flow.peers.intersection_update(self._numbers)
        for last in (False, True):
            try:
                flow.sock.sendto(message.data, peer.address)
            except BlockingIOError:
                counts.no_socket += 1
                return
            except OSError as error:
                # an earlier datagram's error comes first, and stops this one
                if not last and self._read_errors(flow):
                    continue
                number = error.errno or errno.EIO
                self._unreachable(flow.port, peer.number, number)
                return
            counts.sent += 1
            return

    def receive(self, flow: _Flow) -> None:
        """Hand what came for a flow to the guest."""
        for _ in range(_AT_ONCE):
            try:
                data, source = flow.sock.recvfrom(_MAX_UDP)
            except BlockingIOError:
                self._read_errors(flow)
                return
            except OSError:
                if not self._read_errors(flow):
                    return
                continue
            number = self._number(flow, source)
            if number is None:
                self._service.counts.unasked += 1
                continue
            self._service.touch(flow)
            self._deliver(Datagram(flow.port, number, data))
            if self._closed:
                return

    def _read_errors(self, flow: _Flow) -> int:
        """Tell the guest of the errors that a flow met; return how many."""
        for count in range(_AT_ONCE):
            try:
                _, control, _, destination = flow.sock.recvmsg(
                    0, _ERROR_QUEUE_SIZE, socket.MSG_ERRQUEUE
                )
            except OSError:
                return count
            number = self._number(flow, destination)
            for _, kind, data in control:
                if kind in (_IP_RECVERR, _IPV6_RECVERR) and number is not None:
                    (error,) = _EXTENDED_ERR.unpack_from(data)
                    self._unreachable(flow.port, number, error)
        return _AT_ONCE

    def _peer(self, number: int) -> _Peer | None:
        """Return the peer that has this number now."""
        peer = self._peers.get(number % PEERS)
        return peer if peer and peer.number == number else None

    def _number(self, flow: _Flow, address: tuple[str, int]) -> int | None:
        """Return the number of a peer that the flow has sent to, and may hear."""
        source = str(ip_address(address[0])), address[1]
        return self._numbers.get(source) if source in flow.peers else None

    # To the guest

    def _deliver(self, message: Datagram) -> None:
        """Hand a datagram to the guest, or drop it."""
        if self._queued >= self._service.limits.queue_bytes:
            self._service.counts.limit_queue += 1
            return
        self._service.counts.received += 1
        self._send(message.encode())

    def _unreachable(self, flow: int, peer: int, error: int) -> None:
        self._service.counts.unreachable += 1
        self._send(Unreachable(flow, peer, error).encode())

    def _send(self, data: bytes) -> None:
        """Queue a message. A guest that lets twice the limit pile up is cut off."""
        if self._closed:
            return
        if self._queue:
            self._queue.append(data)
            self._queued += len(data)
            if self._queued > 2 * self._service.limits.queue_bytes:
                text = "the guest does not read"
                self.close(ProtocolError(Refusal.LIMIT, text))
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._queue.append(data[sent:])
            self._queued = len(data) - sent
            self._loop.add_writer(self._sock, self._flush)

    def _flush(self) -> None:
        """Send what was queued, as far as the guest takes it."""
        while self._queue:
            data = self._queue[0]
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            self._queued -= sent
            if sent < len(data):
                self._queue[0] = data[sent:]
                return
            self._queue.popleft()
        self._loop.remove_writer(self._sock)


def _udp_socket(family: int) -> socket.socket:
    """Return a UDP socket that keeps the errors it meets, with their addresses.

    Raises:
        OSError: there is none to be had.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    return sock
