"""UDP of one sandbox: datagram streams, peers, flows.

One `DatagramStream` an agent (datagram_stream.py), and what they share.

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

import logging
import socket
from typing import TYPE_CHECKING

from fastpath.throttle import Throttle
from fastpath.tsi.datagram_flows import Flows
from fastpath.tsi.datagram_limits import DatagramLimits, DatagramStats
from fastpath.tsi.datagram_stream import DatagramStream
from fastpath.tsi.protocol import ProtocolError, Refusal, Refused
from fastpath.tsi.stream import Pace, far_end

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from fastpath.tsi.datagram_stream import DatagramRouter
    from fastpath.tsi.policy import SandboxPolicy
    from vhost_user.engine import Engine, Event

log = logging.getLogger(__name__)


class DatagramService:
    """Serves the datagram streams of one sandbox's guest.

    Args:
        engine: the device's.
        router: answers DNS; hears of denials.
        policy: decides, and bounds the sockets; replaced by `set_policy`.
        name: the sandbox's, for the log.
        limits: see there.
        key: what agents have to show, from init; empty: nothing.
        make: makes a socket of a family and kind, where the sandbox's network is.
    """

    def __init__(
        self,
        engine: Engine,
        router: DatagramRouter,
        *,
        policy: SandboxPolicy,
        name: str,
        limits: DatagramLimits = DatagramLimits(),  # noqa: B008  frozen
        key: bytes = b"",
        make: Callable[[int, int], socket.socket] = socket.socket,
    ) -> None:
        self._engine = engine
        self.router = router
        self.policy = policy
        self.name = name
        self.limits = limits
        self.key = key
        self.counts = DatagramStats()
        self.queries: set[asyncio.Task[None]] = set()
        """DNS queries that are being answered, of all streams."""
        self.pace = Pace(limits.rate, limits.burst)
        self.flows = Flows(self.counts, limits.idle_s, make)
        self._lines = Throttle(
            lambda count: log.warning("%s: %d more lines about datagrams", name, count)
        )
        self._streams: set[DatagramStream] = set()

    def stats(self) -> DatagramStats:
        """Return the counters; the object stays current."""
        self.counts.streams = len(self._streams)
        self.counts.flows = len(self.flows)
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
        self._streams.add(DatagramStream(self, ours))

    def close(self) -> None:
        """End all streams and flows."""
        for stream in tuple(self._streams):
            stream.close()
        for task in tuple(self.queries):
            task.cancel()
        self.flows.stop()
        self._lines.flush()

    # For the streams

    def ended(self, stream: DatagramStream, error: ProtocolError | None) -> None:
        """A stream has closed; `error`: what the guest did wrong."""
        self._streams.discard(stream)
        for flow in self.flows.of(stream):
            self.flows.close(flow)
        if error is not None:
            self.counts.refused += 1
            self.warn(f"datagrams refused: {error.text}")

    def warn(self, text: str) -> None:
        """Log a line that the guest caused, unless there were many."""
        if self._lines.admits():
            log.warning("%s: %s", self.name, text)
