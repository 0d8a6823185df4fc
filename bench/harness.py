"""What the native benchmarks share: a guest in user space, back-ends, a unix server.

A `Guest` is `bench/guest/guest.c` behind `vhost_user.frontend`: one process plays VMM
and guest. The back-end and the server behind its hybrid unix sockets are processes of
their own, each pinned; so what is compared is the back-end alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cffi import FFI

from vhost_user.driver import Ram, Virtqueue
from vhost_user.errors import VhostUserError
from vhost_user.frontend import ALL_FEATURES, Frontend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SOURCES: Final = Path(__file__).resolve().parent / "guest"
CID: Final = 3
ECHO, SINK, SOURCE, ENGINE_ECHO = 7, 9, 19, 4007
"""Host ports: three unix sockets of the server, one echo inside our engine."""
RAM: Final = 64 << 20
READY_S: Final = 10.0


class MeasureError(VhostUserError):
    """A measurement could not be made; the message says of what."""


@dataclass(frozen=True)
class Pins:
    """Which CPU each process runs on."""

    driver: int
    backend: int
    server: int


ONE_CORE: Final = Pins(0, 0, 0)
TWO_CORES: Final = Pins(0, 1, 1)


@dataclass(frozen=True)
class Backend:
    """How to start a back-end; `{socket}` and `{uds}` are filled in."""

    name: str
    argv: Sequence[str]


def ours(poll_us: int) -> Backend:
    """Return this project's back-end."""
    argv = [sys.executable, "-m", "vhost_user.vsock.cli", f"--guest-cid={CID}"]
    argv += ["--socket={socket}", "--uds-path={uds}", f"--poll-us={poll_us}"]
    return Backend(f"ours, poll {poll_us}", [*argv, f"--echo-port={ENGINE_ECHO}"])


def peer(binary: Path) -> Backend:
    """Return rust-vmm's vhost-device-vsock."""
    argv = [f"--guest-cid={CID}", "--socket={socket}", "--uds-path={uds}"]
    size = ["--tx-buffer-size=65536", "--queue-size=1024"]
    return Backend("vhost-device-vsock", [str(binary), *argv, *size])


def _library() -> tuple[Any, Any]:
    """Compile guest.c once for each of its versions; return it loaded."""
    ffi = FFI()
    header = (SOURCES / "guest.h").read_text()
    ffi.cdef("\n".join(x for x in header.splitlines() if not x.startswith("#")))
    out = Path(tempfile.mkdtemp(prefix="vsock-bench-")) / "guest.so"
    command = ["cc", "-std=gnu11", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra"]
    command += ["-Wconversion", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(SOURCES / "guest.c"), "-o", str(out)], check=True)
    lib = ffi.dlopen(str(out))
    out.unlink()
    out.parent.rmdir()
    return ffi, lib


_ffi, _lib = _library()  # what guest.h declares; no stub for a test's own C


class Guest:
    """A guest whose driver is C; methods raise MeasureError where C says errno."""

    def __init__(self, socket: Path, *, rx_len: int = 4096, spin: bool = False) -> None:
        self._ram = Ram(RAM)
        self._frontend = Frontend(socket)
        features = self._frontend.negotiate(ALL_FEATURES)
        self._frontend.set_memory(self._ram)
        self._queues = [Virtqueue(self._ram, 256, features=features) for _ in range(3)]
        for index, queue in enumerate(self._queues[:2]):
            self._frontend.start(index, queue)
        base = _ffi.from_buffer(self._ram._map)
        config = _ffi.new("struct guest_config *")
        size = 128 * (64 + rx_len) + 128 * (64 + 65536)
        config.gpa = self._ram.alloc(size)
        config.ram = base + (config.gpa - self._ram.gpa)
        config.size = size
        config.cid = CID
        config.rx_len = rx_len
        for name, queue in zip(("rx", "tx"), self._queues, strict=False):
            ring = getattr(config, name)
            for part in ("desc", "avail", "used"):
                at = getattr(queue, part) - self._ram.gpa
                setattr(ring, part, base + at)
            ring.num, ring.kick_fd = queue.num, queue.kick_fd
            ring.call_fd = queue.call_fd
        config.event_idx = self._queues[0].event_idx
        config.spin = spin
        self._base = base
        self._native = _lib.guest_new(config)
        if self._native == _ffi.NULL:
            raise MeasureError(f"guest: {os.strerror(_ffi.errno)}")

    def connect(self, port: int, count: int = 1) -> int:
        """Open connections; return the first one's number."""
        return _ok(_lib.guest_connect(self._native, port, count), f"connect {port}")

    def close_conn(self, conn: int) -> None:
        """Close one."""
        _ok(_lib.guest_close(self._native, conn), "close")

    def rtt_ns(self, conn: int, size: int, count: int, conns: int = 1) -> list[int]:
        """Ping-pong with an echo; return the times."""
        out = _ffi.new("uint64_t[]", count)
        _ok(_lib.guest_rtt(self._native, conn, conns, size, count, out), "rtt")
        return list(out)

    def send_ns(self, conn: int, size: int, total: int) -> int:
        """Stream `total` bytes by writes of `size`; return the time."""
        return _ok(_lib.guest_send(self._native, conn, size, total), "send")

    def receive_ns(self, conn: int, total: int) -> int:
        """Take `total` bytes; return the time."""
        return _ok(_lib.guest_receive(self._native, conn, total), "receive")

    def churn_ns(self, port: int, in_flight: int, count: int) -> int:
        """Connect and close `count` times; return the time."""
        return _ok(_lib.guest_churn(self._native, port, in_flight, count), "churn")

    def close(self) -> None:
        """Hang up and free everything."""
        _lib.guest_free(self._native)
        self._frontend.close()
        _ffi.release(self._base)
        for queue in self._queues:
            queue.close()
        self._ram.close()


def _ok(ret: int, what: str) -> int:
    if ret < 0:
        raise MeasureError(f"{what}: {os.strerror(-ret)}")
    return ret


@contextmanager
def _process(argv: Sequence[str], cpu: int, ready: Path) -> Iterator[int]:
    """Run a pinned process until the end of the block; yield its pid."""
    argv = ["taskset", "-c", str(cpu), *argv]
    child = subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + READY_S
        while not ready.exists():
            if child.poll() is not None or time.monotonic() > end:
                raise MeasureError(f"{argv[3]} did not start")
            time.sleep(0.01)
        yield child.pid
    finally:
        child.terminate()
        child.wait(READY_S)


@contextmanager
def server(folder: Path, cpu: int) -> Iterator[Path]:
    """Run echo, sink and source on unix sockets; yield the hybrid path."""
    uds = folder / "host"
    argv = [sys.executable, str(Path(__file__).with_name("server.py")), str(uds)]
    with _process(argv, cpu, Path(f"{uds}_{SOURCE}")):
        yield uds


@contextmanager
def backend(kind: Backend, folder: Path, uds: Path, cpu: int) -> Iterator[Path]:
    """Run a back-end; yield its vhost-user socket."""
    socket = folder / f"{abs(hash(kind.name))}.sock"
    own = folder / f"{abs(hash(kind.name))}.uds"
    for port in (ECHO, SINK, SOURCE):
        link = Path(f"{own}_{port}")
        link.unlink(missing_ok=True)
        link.symlink_to(f"{uds}_{port}")
    argv = [part.format(socket=socket, uds=own) for part in kind.argv]
    with _process(argv, cpu, socket):
        time.sleep(0.2)  # the socket is there before listen() is
        yield socket
