"""The process's counters for those who watch: JSON, and Prometheus's text.

- `--stats-socket PATH`: a client gets one JSON object and the end of the stream.
- `--metrics ADDR:PORT`: HTTP, `GET /metrics` (Prometheus text format 0.0.4).

Nothing runs while nobody asks.
"""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vhost_user.engine import GAUGES
from vhost_user.pages import NOT_FOUND, ClientTasks, Page, PageServer, send
from vhost_user.sockets import UnixListener

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    Snapshot = Callable[[], dict[str, Any]]
    """Returns {"process": {...}, "engine": {...}, "engines": [{"engine": 0, ...}],
    "vms": [{"guest_cid": 3, ...}]}: "engine" is the sum of "engines"."""

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


class JsonSocket:
    """Gives each client of a unix socket a snapshot.

    Args:
        path: the socket, made by `start()` and removed by `close()`.
        snapshot: called in the event loop.
    """

    def __init__(self, path: Path, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._clients = ClientTasks("stats", self._serve)
        self._listener = UnixListener(path, self._clients.add)

    async def start(self) -> None:
        """Listen; OSError with `filename`: the socket can't be made."""
        await self._listener.start()

    def close(self) -> None:
        """Stop listening, remove the socket and hang up."""
        self._listener.close()
        self._clients.close()

    async def _serve(self, client: socket.socket) -> None:
        await send(client, json.dumps(self._snapshot()).encode() + b"\n")


class MetricsServer(PageServer):
    """Answers `GET /metrics` on a TCP address.

    Args:
        address: IP address and port; port 0 takes a free one.
        snapshot: called in the event loop.
    """

    def __init__(self, address: tuple[str, int], snapshot: Snapshot) -> None:
        super().__init__("metrics", address, self._metrics)
        self._snapshot = snapshot

    async def _metrics(self, path: str) -> Page:
        if path != "/metrics":
            return NOT_FOUND
        return Page(prometheus(self._snapshot()).encode(), _CONTENT_TYPE)
