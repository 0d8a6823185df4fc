"""The process's counters for those who watch: JSON, and Prometheus's text.

- `--stats-socket PATH`: a client gets one JSON object and the end of the stream.
- `--metrics ADDR:PORT`: HTTP, `GET /metrics` (Prometheus text format 0.0.4).

Nothing runs while nobody asks. At most `MAX_CLIENTS` may be about to send their
request, or to take their answer, and each has `TIMEOUT_S` for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vhost_user.engine import GAUGES
from vhost_user.sockets import Listener, UnixListener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Snapshot = Callable[[], dict[str, Any]]
    """Returns {"process": {...}, "engine": {...}, "engines": [{"engine": 0, ...}],
    "vms": [{"guest_cid": 3, ...}]}: "engine" is the sum of "engines"."""

MAX_CLIENTS: Final = 16
TIMEOUT_S: Final = 5.0
MAX_REQUEST: Final = 8192
"""Bytes of an HTTP request's head."""

_SEND_BUFFER: Final = 1 << 20
_PREFIX: Final = "vhost_user_vsock"
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NOT_COUNTERS: Final = GAUGES | {"connected", "engine", "open_fds", "vms"}


def process_stats() -> dict[str, int]:
    """Return what the process itself uses.

    Without a descriptor to look with it is what it uses at most.
    """
    try:
        with os.scandir("/proc/self/fd") as entries:
            fds = sum(1 for _ in entries) - 1  # the directory's own
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = pages * os.sysconf("SC_PAGE_SIZE")
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENFILE}:
            raise
        fds = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"open_fds": fds, "resident_bytes": resident}


def prometheus(stats: dict[str, Any]) -> str:
    """Return a snapshot in Prometheus's text format."""
    lines: list[str] = []
    process = stats["process"]
    lines += _family("process_open_fds", "gauge", [("", process["open_fds"])])
    resident = [("", process["resident_bytes"])]
    lines += _family("process_resident_memory_bytes", "gauge", resident)
    lines += _metrics("engine_", stats["engines"], key="engine", label="engine")
    lines += _metrics("", stats["vms"], key="guest_cid", label="cid")
    return "\n".join(lines) + "\n"


def _metrics(
    prefix: str, items: list[dict[str, int]], *, key: str, label: str
) -> Iterator[str]:
    labels = [f'{{{label}="{item[key]}"}}' for item in items]
    for name in items[0]:
        if name != key:
            values = (item[name] for item in items)
            samples = list(zip(labels, values, strict=True))
            yield from _metric(f"{prefix}{name}", name, samples)


def _metric(full: str, name: str, samples: list[tuple[str, int]]) -> Iterator[str]:
    """Name it as Prometheus wants: a counter's name ends in `_total`."""
    if name in _NOT_COUNTERS:
        return _family(f"{_PREFIX}_{full}", "gauge", samples)
    return _family(f"{_PREFIX}_{full}_total", "counter", samples)


def _family(name: str, kind: str, samples: list[tuple[str, int]]) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{labels} {int(value)}"


@dataclasses.dataclass(slots=True)
class _Answer:
    """What a client has yet to take."""

    timer: asyncio.TimerHandle
    left: memoryview


class _Answers:
    """Gives clients their answers and hangs up; one is as large as VMs are many."""

    def __init__(self) -> None:
        self._clients: dict[socket.socket, _Answer] = {}

    def send(self, client: socket.socket, data: bytes) -> None:
        """Send `data` as fast as the client takes it; the socket is taken over."""
        if len(self._clients) >= MAX_CLIENTS:  # the slowest one goes
            self._drop(next(iter(self._clients)))
        with contextlib.suppress(OSError):  # a client that left: see _writable()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(TIMEOUT_S, self._drop, client)
        self._clients[client] = _Answer(timer, memoryview(data))
        loop.add_writer(client, self._writable, client)
        self._writable(client)

    def close(self) -> None:
        """Hang up, whatever they have."""
        for client in tuple(self._clients):
            self._drop(client)

    def _writable(self, client: socket.socket) -> None:
        answer = self._clients[client]
        try:
            answer.left = answer.left[client.send(answer.left) :]
        except BlockingIOError:
            return
        except OSError:  # a client that left: its own loss
            answer.left = memoryview(b"")
        if not answer.left:
            self._drop(client)

    def _drop(self, client: socket.socket) -> None:
        self._clients.pop(client).timer.cancel()
        asyncio.get_running_loop().remove_writer(client)
        client.close()


class JsonSocket:
    """Gives each client of a unix socket a snapshot.

    Args:
        path: the socket, made by `start()` and removed by `close()`.
        snapshot: called in the event loop.
    """

    def __init__(self, path: Path, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._answers = _Answers()
        self._listener = UnixListener(path, self._on_client)

    async def start(self) -> None:
        """Listen; OSError with `filename`: the socket can't be made."""
        await self._listener.start()

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._listener.close()
        self._answers.close()

    def _on_client(self, client: socket.socket) -> None:
        self._answers.send(client, json.dumps(self._snapshot()).encode() + b"\n")


@dataclasses.dataclass(slots=True)
class _Request:
    """A request whose head has not come whole yet."""

    timer: asyncio.TimerHandle
    head: bytes = b""


class MetricsServer:
    """Answers `GET /metrics` on a TCP address.

    Args:
        address: IP address and port; port 0 takes a free one.
        snapshot: called in the event loop.
    """

    def __init__(self, address: tuple[str, int], snapshot: Snapshot) -> None:
        self.address = address
        """Where it listens; with the real port after `start()`."""
        self._snapshot = snapshot
        self._listener = Listener("metrics", self._on_client)
        self._clients: dict[socket.socket, _Request] = {}
        self._answers = _Answers()

    def start(self) -> None:
        """Listen; OSError with `filename`: the address can't be taken."""
        family = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(self.address)
            sock.listen(MAX_CLIENTS)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            error.filename = f"{self.address[0]}:{self.address[1]}"
            raise
        self.address = sock.getsockname()[:2]
        self._listener.listen(sock)

    def close(self) -> None:
        """Stop listening and hang up."""
        self._listener.close()
        for client in tuple(self._clients):
            self._drop(client)
        self._answers.close()

    def _on_client(self, client: socket.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:  # the longest silent one goes
            self._drop(next(iter(self._clients)))
        loop = asyncio.get_running_loop()
        timer = loop.call_later(TIMEOUT_S, self._drop, client)
        self._clients[client] = _Request(timer)
        loop.add_reader(client, self._readable, client)

    def _forget(self, client: socket.socket) -> None:
        self._clients.pop(client).timer.cancel()
        asyncio.get_running_loop().remove_reader(client)

    def _drop(self, client: socket.socket) -> None:
        self._forget(client)
        client.close()

    def _readable(self, client: socket.socket) -> None:
        request = self._clients[client]
        try:
            data = client.recv(MAX_REQUEST - len(request.head))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        request.head += data
        if b"\r\n\r\n" in request.head:
            self._forget(client)
            page = self._page(request.head.partition(b"\r\n")[0])
            self._answers.send(client, page)
        elif not data or len(request.head) == MAX_REQUEST:
            self._drop(client)

    def _page(self, line: bytes) -> bytes:
        method, _, rest = line.partition(b" ")
        if method == b"GET" and rest.partition(b" ")[0] == b"/metrics":
            return _http("200 OK", prometheus(self._snapshot()))
        return _http("404 Not Found", "GET /metrics\n")


def _http(status: str, text: str) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.0 {status}\r\nContent-Type: {_CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
