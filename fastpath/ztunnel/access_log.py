"""ztunnel's access log: one line a connection, never a wait for the disk.

    2026-01-31T09:59:05.028709Z TAB info TAB access TAB connection complete TAB
    src.addr=10.0.0.2:40000 src.workload="a" ... duration="1ms"

The loop only appends to a list. Ten times a second the list goes to a thread,
which formats and writes it. Lines that a stuck reader holds up beyond `MAX_QUEUED` are
dropped and counted. A file that was renamed or removed, as logrotate does, is opened
anew with the next lines, without a signal.

Spec: istio/ztunnel, `access` log target. As there, a field that has no value is
left out; strings are quoted, addresses and numbers are not. Unlike there,
`src.identity` is shown for plain TCP too: here it does not hang on mutual TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import json
import logging
import os
import queue
import stat
import threading
from typing import TYPE_CHECKING, NamedTuple

from fastpath.errors import FastpathError
from fastpath.ztunnel.model import LogFormat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastpath.identity import Identity
    from fastpath.ztunnel.istio.model import Workload
    from vhost_user.engine import SocketAddress

STDERR = 2
FLUSH_S = 0.1
MAX_QUEUED = 65536
"""Lines that wait for the thread."""
CLOSE_TIMEOUT_S = 2.0
"""How long `close` waits for a reader that does not read."""

_log = logging.getLogger(__name__)


class Party(NamedTuple):
    """One end of a connection; what is empty is not logged.

    There are three tuples for each connection, so they are no dataclasses: see
    `vhost_user.events.Event`.
    """

    addr: str
    workload: str = ""
    namespace: str = ""
    identity: str = ""
    cluster: str = ""


class Record(NamedTuple):
    """All of one line."""

    level: str
    """`info`, `warn` or `error`."""
    message: str
    src: Party
    dst: Party
    hbone_addr: str = ""
    service: str = ""
    direction: str = "outbound"
    bytes_sent: int | None = None
    """By whom this is the proxy of: outbound the client, inbound the server. None for a
    connection that was never tried."""
    bytes_recv: int | None = None
    duration_ms: int | None = None
    error: str = ""


_STAMP = "%Y-%m-%dT%H:%M:%S.%fZ"
_Batch = list[tuple[Record, datetime.datetime]]


def party(
    address: SocketAddress,
    workload: Workload | None = None,
    identity: Identity | None = None,
) -> Party:
    """One end, as far as it is known.

    Args:
        address: its.
        workload: whose that is.
        identity: whom it is known to be, by mutual TLS or by what the host says.
    """
    host, port = address
    addr = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if workload is None:
        return Party(addr=addr)
    return Party(
        addr=addr,
        workload=workload.name,
        namespace=workload.namespace,
        identity=f"{identity}" if identity else "",
        cluster=workload.cluster_id,
    )


def format_line(record: Record, time: datetime.datetime) -> str:
    """The line without its newline.

    Args:
        record: what to say.
        time: in UTC.
    """
    fields = " ".join(
        [
            f"{name}={value if plain else _quote(value)}"
            for name, value, plain in _fields(record)
        ]
    )
    return (
        f"{time.strftime(_STAMP)}\t{record.level}\taccess\t{record.message}\t{fields}"
    )


def format_json(record: Record, time: datetime.datetime) -> str:
    """The same as an object, as of Istio's ztunnel with `LOG_FORMAT=json`."""
    line: dict[str, str | int] = {
        "level": record.level,
        "time": time.strftime(_STAMP),
        "scope": "access",
        "message": record.message,
    }
    line |= {name: value for name, value, _ in _fields(record)}
    return json.dumps(line, separators=(",", ":"))


def _fields(record: Record) -> Iterator[tuple[str, str | int, bool]]:
    """Name, value, and whether text has it bare; what is empty is left out."""
    src, dst = record.src, record.dst
    duration = record.duration_ms
    values: tuple[tuple[str, str | int | None, bool], ...] = (
        ("src.addr", src.addr, True),
        ("src.workload", src.workload, False),
        ("src.namespace", src.namespace, False),
        ("src.identity", src.identity, False),
        ("src.cluster", src.cluster, False),
        ("dst.addr", dst.addr, True),
        ("dst.hbone_addr", record.hbone_addr, True),
        ("dst.service", record.service, False),
        ("dst.workload", dst.workload, False),
        ("dst.namespace", dst.namespace, False),
        ("dst.identity", dst.identity, False),
        ("dst.cluster", dst.cluster, False),
        ("direction", record.direction, False),
        ("bytes_sent", record.bytes_sent, True),
        ("bytes_recv", record.bytes_recv, True),
        ("duration", None if duration is None else f"{duration}ms", False),
        ("error", record.error, False),
    )
    for name, value, plain in values:
        if value is not None and value != "":
            yield name, value, plain


_quote = functools.lru_cache(json.dumps)  # most values are the same few


class AccessLog:
    """Writes records to a file or to stderr.

    All methods belong to the loop's thread.

    Args:
        path: appended to; None: stderr.
        form: of its lines.

    Raises:
        FastpathError: the file cannot be opened.
    """

    def __init__(self, path: Path | None, form: LogFormat = LogFormat.PLAIN) -> None:
        self._format = format_json if form is LogFormat.JSON else format_line
        try:
            self._fd = _open(path) if path else os.dup(STDERR)
        except OSError as exc:
            raise FastpathError(f"access log {path}", f"{exc.strerror}") from exc
        self._path = path
        self._astray = False
        """The file at `_path` is another one and cannot be opened."""
        self.dropped = 0
        self._lines: _Batch = []
        self._queued = 0
        """Lines in `_batches`; written by both threads, each under the lock."""
        self._lock = threading.Lock()
        self._batches: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._timer: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(
            target=self._write_all, name="access-log", daemon=True
        )
        self._thread.start()

    def write(self, record: Record) -> None:
        """Append one line; it reaches the file within `FLUSH_S`, or is counted."""
        if len(self._lines) + self._queued >= MAX_QUEUED:
            self.dropped += 1
            return
        self._lines.append((record, datetime.datetime.now(datetime.UTC)))
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(FLUSH_S, self._flush)

    async def close(self) -> None:
        """Write what there is; the log is unusable afterwards."""
        if self._timer:
            self._timer.cancel()
        self._flush()
        self._batches.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT_S)
        if self.dropped:
            _log.warning("access log: %d lines dropped", self.dropped)

    def _flush(self) -> None:
        self._timer = None
        if not self._lines:
            return
        batch, self._lines = self._lines, []
        with self._lock:
            self._queued += len(batch)
        self._batches.put(batch)

    def _write_all(self) -> None:
        """Run the thread, which owns the file."""
        lost, told = 0, 0
        while (batch := self._batches.get()) is not None:
            data = "".join(f"{self._format(*line)}\n" for line in batch).encode()
            try:
                self._follow()
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError as exc:
                lost += len(batch)
                if lost >= 2 * told:  # a guest can cause batches for ever
                    told = lost
                    _log.warning("access log: %d lines lost so far: %s", lost, exc)
            with self._lock:
                self._queued -= len(batch)
        os.close(self._fd)

    def _follow(self) -> None:
        """Open the file anew if another one, or none, is where it was."""
        if self._path is None:
            return
        ours = os.fstat(self._fd)
        if not stat.S_ISREG(ours.st_mode):
            return  # a pipe or terminal is not rotated
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self._path.stat(), ours):
                return
        try:
            old, self._fd = self._fd, _open(self._path)
        except OSError as exc:
            if not self._astray:
                _log.warning(
                    "access log %s: %s; lines go to the old file", self._path, exc
                )
            self._astray = True
        else:
            self._astray = False
            os.close(old)


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
