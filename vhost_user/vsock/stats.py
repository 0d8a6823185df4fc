"""The process's counters for those who watch: JSON, and Prometheus's text.

- `--stats-socket PATH`: a client gets one JSON object and the end of the stream.
- `--metrics ADDR:PORT`: HTTP, `GET /metrics` (Prometheus text format 0.0.4).

Nothing runs while nobody asks. A client is written to once and never waited for, at
most `MAX_CLIENTS` may be about to send their request, and each has `TIMEOUT_S` for it.
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
    """Returns {"process": {...}, "engine": {...}, "vms": [{"guest_cid": ...}]}."""

MAX_CLIENTS: Final = 16
TIMEOUT_S: Final = 5.0
MAX_REQUEST: Final = 8192
"""Bytes of an HTTP request's head."""

_SEND_BUFFER: Final = 1 << 20
_PREFIX: Final = "vhost_user_vsock"
_CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NOT_COUNTERS: Final = GAUGES | {"connected", "open_fds"}


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
    for name, value in stats["engine"].items():
        lines += _metric(f"engine_{name}", name, [("", value)])
    names = [name for name in stats["vms"][0] if name != "guest_cid"]
    for name in names:
        samples = [(f'{{cid="{vm["guest_cid"]}"}}', vm[name]) for vm in stats["vms"]]
        lines += _metric(name, name, samples)
    return "\n".join(lines) + "\n"


def _metric(full: str, name: str, samples: list[tuple[str, int]]) -> Iterator[str]:
    """Name it as Prometheus wants: a counter's name ends in `_total`."""
    if name in _NOT_COUNTERS:
        return _family(f"{_PREFIX}_{full}", "gauge", samples)
    return _family(f"{_PREFIX}_{full}_total", "counter", samples)


def _family(name: str, kind: str, samples: list[tuple[str, int]]) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{labels} {int(value)}"


class JsonSocket:
    """Gives each client of a unix socket a snapshot.

    Args:
        path: the socket, made by `start()` and removed by `close()`.
        snapshot: called in the event loop.
    """

    def __init__(self, path: Path, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._listener = UnixListener(path, self._on_client)

    async def start(self) -> None:
        """Listen; OSError with `filename`: the socket can't be made."""
        await self._listener.start()

    def close(self) -> None:
        """Stop listening and remove the socket."""
        self._listener.close()

    def _on_client(self, client: socket.socket) -> None:
        _answer(client, json.dumps(self._snapshot()).encode() + b"\n")


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
            self._forget(client)
            client.close()

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
            _answer(client, self._page(request.head.partition(b"\r\n")[0]))
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


def _answer(client: socket.socket, data: bytes) -> None:
    """Send what the socket takes at once and hang up: nobody is waited for."""
    with client, contextlib.suppress(OSError):  # a client that left: its own loss
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        client.send(data)
