"""Flows of one sandbox: UDP sockets that stand for those of its programs.

A flow is named by its port in the guest, and sends to peers of one family. It keeps the
errors that it meets, with their addresses, and is closed once it has been idle.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastpath.tsi.datagram_limits import DatagramStats
    from vhost_user.engine import SocketAddress

    _Key = tuple[object, int, int]
    """Of a flow: its owner, port in the guest, address family."""

SWEEP_S: Final = 10.0
"""How often idle flows are looked for."""

_ERROR_QUEUE_SIZE: Final = 512
# linux/in.h, linux/in6.h, linux/errqueue.h: not in Python's socket module
_IP_RECVERR: Final = 11
_IPV6_RECVERR: Final = 25
_EXTENDED_ERR: Final = struct.Struct("=I12x")


@dataclass(slots=True, eq=False)
class Flow:
    """A socket that stands for one of the guest's."""

    owner: object
    """The datagram stream that it came by."""
    port: int
    sock: socket.socket
    peers: set[SocketAddress] = field(default_factory=set)
    """Those it has sent to: whatever number the guest gives away later."""
    used_at: float = 0.0

    @property
    def key(self) -> _Key:
        """What `Flows` knows it by."""
        return self.owner, self.port, self.sock.family

    def next_errors(self) -> tuple[tuple[str, int], list[int]] | None:
        """Return where an earlier datagram went and what it met; None: no error."""
        try:
            _, control, _, destination = self.sock.recvmsg(
                0, _ERROR_QUEUE_SIZE, socket.MSG_ERRQUEUE
            )
        except OSError:
            return None
        return destination, [
            _EXTENDED_ERR.unpack_from(data)[0]
            for _, kind, data in control
            if kind in (_IP_RECVERR, _IPV6_RECVERR)
        ]


class Flows:
    """The flows of all streams of a sandbox, longest unused first.

    Args:
        counts: where a flow that is closed for another one is counted.
        idle_s: a flow that nothing passes for so long is closed.
        make: makes a socket of a family and kind.
    """

    def __init__(
        self,
        counts: DatagramStats,
        idle_s: float,
        make: Callable[[int, int], socket.socket] = socket.socket,
    ) -> None:
        self._counts = counts
        self._idle_s = idle_s
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._flows: OrderedDict[_Key, Flow] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._flows.values())

    def of(self, owner: object) -> list[Flow]:
        """Return all flows of a stream."""
        return [flow for flow in self if flow.owner is owner]

    def get(
        self,
        owner: object,
        port: int,
        family: int,
        *,
        most: int,
        on_readable: Callable[[Flow], None],
    ) -> Flow:
        """Return a stream's flow for a port of the guest, new if need be.

        Args:
            owner: the stream.
            port: of the program's socket.
            family: of the peers.
            most: flows there may be; for a new one the longest unused is closed.
            on_readable: called with a new flow while there is something to read.

        Raises:
            OSError: there is no socket to be had.
        """
        flow = self._flows.get((owner, port, family))
        if flow is None:
            while len(self._flows) >= most:
                self._counts.limit_flows += 1
                self.close(next(iter(self)))
            flow = Flow(owner, port, udp_socket(family, self._make))
            self._flows[flow.key] = flow
            self._loop.add_reader(flow.sock, functools.partial(on_readable, flow))
            if self._sweeper is None:
                self._sweep_later()
        self.touch(flow)
        return flow

    def touch(self, flow: Flow) -> None:
        """A flow is in use."""
        flow.used_at = self._loop.time()
        self._flows.move_to_end(flow.key)

    def close(self, flow: Flow) -> None:
        """End a flow."""
        del self._flows[flow.key]
        self._loop.remove_reader(flow.sock)
        flow.sock.close()

    def stop(self) -> None:
        """Look for idle flows no more."""
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep_later(self) -> None:
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close the flows that are idle, as long as there are flows."""
        oldest = self._loop.time() - self._idle_s
        while self._flows:
            flow = next(iter(self))
            if flow.used_at > oldest:
                self._sweep_later()
                return
            self.close(flow)
        self._sweeper = None


def udp_socket(
    family: int, make: Callable[[int, int], socket.socket] = socket.socket
) -> socket.socket:
    """Return a UDP socket that keeps the errors it meets, with their addresses.

    Raises:
        OSError: there is none to be had.
    """
    sock = make(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    return sock
