"""What the benchmarks share: a guest in user space, back-ends, a server, pinning.

A `Guest` is `bench/guest/*.c` behind `vhost_user.frontend`: one process plays VMM and
guest. The back-end and the server behind its hybrid unix sockets are processes of
their own, each pinned; so what is compared is the back-end alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cffi import FFI

from bench.report import Target
from fastpath.image import programs
from tests.support.limits import LIMIT_S
from vhost_user.driver import Ram, Virtqueue
from vhost_user.errors import VhostUserError
from vhost_user.frontend import ALL_FEATURES, Frontend

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE: Final = Path(__file__).resolve().parent
CID: Final = 3
ECHO, SINK, SOURCE_64, SOURCE_4K, SOURCE_64K, ENGINE_ECHO = 7, 9, 18, 19, 20, 4007
"""Host ports: unix sockets of the server by what it does, and an echo in our engine."""
RAM: Final = 32 << 20
RING: Final = 256
READY_S: Final = LIMIT_S
END_S: Final = 10.0
SO_ACCEPTCON: Final = 1 << 16
"""In /proc/net/unix: the socket listens."""
CFLAGS: Final = ("-std=gnu11", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra")
CFLAGS_STRICT: Final = ("-Wconversion", "-Werror")


ANOTHER: Path | None = None
"""A checkout with another build of ours, which then takes the peer's place."""


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


def ours(poll_us: int, cids: Sequence[int] = (CID,), more: str = "") -> Backend:
    """Return this project's back-end; `more`: of each `--vm`."""
    argv = [sys.executable, "-m", "vhost_user.vsock.cli", f"--poll-us={poll_us}"]
    argv += [_vm(cid) + more for cid in cids]
    return Backend("ours", [*argv, f"--echo-port={ENGINE_ECHO}"])


def theirs(cids: Sequence[int] = (CID,), poll_us: int = 0) -> Backend:
    """Return rust-vmm's vhost-device-vsock, or the other build of ours: `--against`."""
    if ANOTHER is not None:
        program = ANOTHER / ".venv" / "bin" / "vhost-user-vsock"
        argv = [str(program), f"--poll-us={poll_us}", *map(_vm, cids)]
        return Backend("other", [*argv, f"--echo-port={ENGINE_ECHO}"])
    more = ",tx-buffer-size=65536,queue-size=1024"
    return Backend(
        "peer",
        [
            str(programs.unpack(programs.VHOST_DEVICE_VSOCK).start),
            *(_vm(cid) + more for cid in cids),
        ],
    )


def against() -> str:
    """Return what `theirs()` is, for `report.Figure`."""
    return "peer" if ANOTHER is None else "other build"


def bound(target: float, *, less: bool) -> Target:
    """Return a target beside `theirs()`: another build of ours is not to be faster.

    Args:
        target: the ratio beside the peer.
        less: lower is better.
    """
    if ANOTHER is None:
        return Target(target)
    return Target(1.03 if less else 0.97)


def _vm(cid: int) -> str:
    return f"--vm=guest-cid={cid},socket={{socket}}{cid},uds-path={{uds}}{cid}"


@functools.cache
def program(name: str) -> Path:
    """Compile bench/host/NAME.c; return the program, which lives as long as we do."""
    out = Path(_scratch().name) / name
    _compile(HERE / "host" / f"{name}.c", out=out)
    return out


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="vsock-bench-")


def _compile(*sources: Path, out: Path, flags: Sequence[str] = ()) -> None:
    command = ["cc", *CFLAGS, *CFLAGS_STRICT, *flags, *map(str, sources)]
    subprocess.run([*command, "-o", str(out)], check=True)


@functools.cache
def _library() -> tuple[Any, Any]:
    """Compile the guest; return cffi's view of guest.h, and it."""
    ffi = FFI()
    header = (HERE / "guest" / "guest.h").read_text()
    ffi.cdef("\n".join(x for x in header.splitlines() if not x.startswith("#")))
    out = Path(_scratch().name) / "guest.so"
    sources = (HERE / "guest" / name for name in ("driver.c", "load.c"))
    _compile(*sources, out=out, flags=("-shared", "-fPIC"))
    return ffi, ffi.dlopen(str(out))


class Guest:
    """A guest whose driver is C; methods raise MeasureError where C says errno."""

    def __init__(
        self, socket: Path, *, cid: int = CID, rx_len: int = 4096, spin: bool = False
    ) -> None:
        self._ffi, self._lib = _library()
        self._ram = Ram(RAM)
        self._frontend = _dial(socket)
        features = self._frontend.negotiate(ALL_FEATURES)
        self._frontend.set_memory(self._ram)
        self._queues = [Virtqueue(self._ram, RING, features=features) for _ in range(2)]
        for index, queue in enumerate(self._queues):
            self._frontend.start(index, queue)
        base = self._ffi.from_buffer(self._ram._map)
        config = self._ffi.new("struct guest_config *")
        size = RING // 2 * (64 + rx_len + 64 + 65536)
        config.gpa = self._ram.alloc(size)
        config.ram = base + (config.gpa - self._ram.gpa)
        config.size = size
        config.cid = cid
        config.rx_len = rx_len
        for name, queue in zip(("rx", "tx"), self._queues, strict=True):
            ring = getattr(config, name)
            for part in ("desc", "avail", "used"):
                at = getattr(queue, part) - self._ram.gpa
                setattr(ring, part, base + at)
            ring.num, ring.kick_fd = queue.num, queue.kick_fd
            ring.call_fd = queue.call_fd
        config.event_idx = self._queues[0].event_idx
        config.spin = spin
        self._base = base
        self._native = self._lib.guest_new(config)
        if self._native == self._ffi.NULL:
            raise MeasureError(f"guest: {os.strerror(self._ffi.errno)}")

    def connect(self, port: int, count: int = 1) -> int:
        """Open connections; return the first one's number."""
        return _ok(self._lib.guest_connect(self._native, port, count), "connect")

    def say(self, conn: int, data: bytes) -> None:
        """Send bytes that mean something."""
        _ok(self._lib.guest_say(self._native, conn, data, len(data)), "say")

    def leave(self, conn: int) -> None:
        """Close a connection as a program does, which waits for no answer to that."""
        _ok(self._lib.guest_leave(self._native, conn, 1), "leave")

    def close_conn(self, conn: int, count: int = 1) -> None:
        """Close connections that follow each other, and wait until they are gone."""
        _ok(self._lib.guest_close(self._native, conn, count), "close")

    def rtt_ns(self, conn: int, size: int, count: int, conns: int = 1) -> list[int]:
        """Ping-pong with an echo; return the times."""
        out = self._ffi.new("uint64_t[]", count)
        _ok(self._lib.guest_rtt(self._native, conn, conns, size, count, out), "rtt")
        times: list[int] = self._ffi.unpack(out, count)
        return times

    def send_ns(self, conn: int, size: int, total: int) -> int:
        """Stream `total` bytes by writes of `size`; return the time."""
        return _ok(self._lib.guest_send(self._native, conn, size, total), "send")

    def send_all_ns(self, conn: int, conns: int, size: int, total: int) -> int:
        """Stream `total` bytes over connections that follow each other; the time."""
        done = self._lib.guest_send_all(self._native, conn, conns, size, total)
        return _ok(done, "send")

    def send_for(self, conn: int, size: int, time_s: float) -> int:
        """Stream for a time; return the bytes that arrived."""
        ns = int(time_s * 1e9)
        return _ok(self._lib.guest_send_for(self._native, conn, size, ns), "send")

    def receive_ns(self, conn: int, total: int) -> int:
        """Take `total` bytes; return the time."""
        return _ok(self._lib.guest_receive(self._native, conn, total), "receive")

    def receive_for(self, conn: int, time_s: float) -> int:
        """Take bytes for a time; return how many."""
        ns = int(time_s * 1e9)
        return _ok(self._lib.guest_receive_for(self._native, conn, ns), "receive")

    def churn_ns(self, port: int, in_flight: int, count: int) -> int:
        """Connect and close `count` times; return the time."""
        done = self._lib.guest_churn(self._native, port, in_flight, count)
        return _ok(done, "connect and close")

    def close(self) -> None:
        """Hang up and free everything."""
        self._frontend.close()
        self._lib.guest_free(self._native)
        self._ffi.release(self._base)
        for queue in self._queues:
            queue.close()
        self._ram.close()


def _dial(socket: Path) -> Frontend:
    """Connect to a back-end that is about to listen."""
    end = time.monotonic() + READY_S
    while True:
        try:
            return Frontend(socket)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def wait_for_socket(path: Path) -> None:
    """Wait until somebody listens, without connecting."""
    end = time.monotonic() + READY_S
    while True:
        for line in Path("/proc/net/unix").read_text().splitlines():
            words = line.split()
            if words[7:] == [str(path)] and int(words[3], 16) & SO_ACCEPTCON:
                return
        if time.monotonic() > end:
            raise MeasureError(f"nobody listens on {path}")
        time.sleep(0.01)


def _ok(ret: int, what: str) -> int:
    if ret < 0:
        raise MeasureError(f"{what}: {os.strerror(-ret)}")
    return ret


@contextmanager
def process(
    argv: Sequence[str], cpu: int, *, stdout: int | None = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a pinned process with room for many fds until the end of the block."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    child = subprocess.Popen(
        ["taskset", "-c", str(cpu), "prlimit", f"--nofile={limit}", *argv],
        stdout=stdout,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:  # what is measured may hang
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


@contextmanager
def awake() -> Iterator[None]:
    """Keep CPUs 0 and 1 from idling until the end of the block.

    By loops of the class SCHED_IDLE, which give way to whatever else runs. A virtual
    CPU that idles is taken off its core, and comes back when the host's scheduler
    likes: 50 to 700 us later, on the machine that this was written on.

    The scheduler weighs sessions against each other before it looks at classes
    (autogroups, sched(7)), and QEMU has a session of its own. So the loops have one,
    too, and it is the least of all: else they'd take half of QEMU's CPU.
    """
    # A user other than root may set it ten times a second, all users together.
    least = 'until echo 19 >"/proc/$$/autogroup"; do :; done; while :; do :; done'
    loop = ["setsid", "chrt", "--idle", "0", "sh", "-c", least]
    with contextlib.ExitStack() as stack:
        for cpu in (0, 1):
            argv = ["setpriv", "--pdeathsig", "TERM", *loop]
            stack.enter_context(process(argv, cpu))
        yield


@contextmanager
def server(folder: Path, cpu: int) -> Iterator[Path]:
    """Run the server; yield the path that its sockets' paths begin with."""
    path = folder / "host"
    with process([str(program("server")), str(path)], cpu, stdout=subprocess.PIPE) as p:
        assert p.stdout is not None
        if p.stdout.readline() != b"ready\n":
            raise MeasureError("the server did not start")
        yield path


@contextmanager
def backend(
    kind: Backend, folder: Path, host: Path, cpu: int, cids: Sequence[int] = (CID,)
) -> Iterator[tuple[Path, int]]:
    """Run a back-end; yield what its vhost-user sockets' paths begin with, and its pid.

    A path ends with the VM's CID. What its guests connect to on the host is the
    server of `host`.
    """
    socket, own = folder / f"{kind.name}.sock", folder / f"{kind.name}.uds"
    for cid in cids:
        for port in (ECHO, SINK, SOURCE_64, SOURCE_4K, SOURCE_64K):
            link = Path(f"{own}{cid}_{port}")
            link.unlink(missing_ok=True)
            link.symlink_to(f"{host}_{port}")
    argv = [part.format(socket=socket, uds=own) for part in kind.argv]
    with process(argv, cpu) as child:
        yield socket, child.pid


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Keep this thread on a CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def guest_on(
    kind: Backend, pins: Pins, *, spin: bool = False
) -> Iterator[tuple[Guest, int]]:
    """Run a back-end, a server and a guest; yield the guest and the back-end's pid."""
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="vsock-bench-"))
        stack.enter_context(pinned(pins.driver))
        host = stack.enter_context(server(Path(name), pins.server))
        running = backend(kind, Path(name), host, pins.backend)
        socket, pid = stack.enter_context(running)
        guest = Guest(Path(f"{socket}{CID}"), spin=spin)
        stack.callback(guest.close)
        yield guest, pid
