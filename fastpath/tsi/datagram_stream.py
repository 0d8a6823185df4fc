"""One datagram stream: peers and datagrams of the guest, judged and passed on.

    agent --- PEER, DATAGRAM ----------> DatagramStream --> port 53: DNS, answered here
          <-- VERDICT, DATAGRAM, --------   |
              UNREACHABLE                   +--> policy --> Flow: a UDP socket

Spec: docs/tsi-protocol.md, section 9 "Datagrams".
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

from fastpath.tsi.datagram_protocol import (
    Datagram,
    DatagramDecoder,
    Grant,
    Peer,
    Unreachable,
    Verdict,
)
from fastpath.tsi.policy import Denial
from fastpath.tsi.protocol import (
    Hello,
    ProtocolError,
    Refusal,
    Refused,
)

if TYPE_CHECKING:
    from fastpath.tsi.datagram_flows import Flow, Flows
    from fastpath.tsi.datagram_limits import DatagramLimits, DatagramStats
    from fastpath.tsi.datagram_protocol import GuestDatagramMessage
    from fastpath.tsi.policy import SandboxPolicy
    from fastpath.tsi.stream import Pace
    from vhost_user.engine import SocketAddress

DNS_PORT: Final = 53
PEERS: Final = 4096
"""Peers that have a number at a time, on one stream."""

_READ_SIZE: Final = 262144
_AT_ONCE: Final = 32
"""Datagrams that are read from a flow before others have their turn."""
_MESSAGES_AT_ONCE: Final = 64
"""Messages of an agent that are handled before others have their turn."""
_PAUSE_S: Final = 0.02
_MAX_UDP: Final = 65535


class DatagramRouter(Protocol):
    """Answers DNS, and hears what is denied."""

    async def resolve(self, query: bytes, *, tcp: bool) -> bytes | None:
        """Answer a DNS query; None: it is none. Never raises."""

    def datagram_denied(self, peer: SocketAddress, denial: Denial) -> None:
        """The guest was told that a peer is denied: it named or used it until now."""


class DatagramContext(Protocol):
    """What the streams of one sandbox share."""

    router: DatagramRouter
    policy: SandboxPolicy
    limits: DatagramLimits
    key: bytes
    counts: DatagramStats
    pace: Pace
    flows: Flows
    queries: set[asyncio.Task[None]]
    """DNS queries that are being answered."""

    def ended(self, stream: DatagramStream, error: ProtocolError | None) -> None:
        """A stream has closed; `error`: what the guest did wrong."""

    def warn(self, text: str) -> None:
        """Log a line that the guest caused, unless there were many."""


@dataclass(slots=True)
class _Peer:
    """A UDP endpoint that has a number."""

    number: int
    address: SocketAddress
    denial: Denial | None


class DatagramStream:
    """One agent's datagrams.

    Args:
        service: whose it is.
        sock: connected, taken over.
    """

    def __init__(self, service: DatagramContext, sock: socket.socket) -> None:
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
        for flow in self._service.flows.of(self):  # none if sending closed the stream
            self._end_denied(flow)

    def _end_denied(self, flow: Flow) -> None:
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
            self._service.flows.close(flow)

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
        hello.check(self._service.key)
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
            flow = self._service.flows.get(
                self,
                message.flow,
                family,
                most=self._service.policy.limits.max_udp_sockets,
                on_readable=self.receive,
            )
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

    def receive(self, flow: Flow) -> None:
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
            self._service.flows.touch(flow)
            self._deliver(Datagram(flow.port, number, data))
            if self._closed:
                return

    def _read_errors(self, flow: Flow) -> int:
        """Tell the guest of the errors that a flow met; return how many."""
        for count in range(_AT_ONCE):
            met = flow.next_errors()
            if met is None:
                return count
            destination, errors = met
            number = self._number(flow, destination)
            if number is not None:
                for error in errors:
                    self._unreachable(flow.port, number, error)
        return _AT_ONCE

    def _peer(self, number: int) -> _Peer | None:
        """Return the peer that has this number now."""
        peer = self._peers.get(number % PEERS)
        return peer if peer and peer.number == number else None

    def _number(self, flow: Flow, address: tuple[str, int]) -> int | None:
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
