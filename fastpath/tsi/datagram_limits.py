"""What the datagrams of one sandbox may take, and counters of what they took."""

from __future__ import annotations

from dataclasses import dataclass


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
