"""Programs in the VM: the host's side of init's exec protocol.

guest/init/main.c describes the protocol. Its stream is a vsock connection to the host's
port 1029, which the device makes a connection to the unix socket UDS_PATH_1029.

Input for the command is sent within a window that init opens, so a signal is
never stuck behind input that the command does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import os
import signal
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fastpath.errors import FastpathError
from fastpath.scratch import check_socket_path
from fastpath.vm.console import last_words
from fastpath.vm.spec import BOOT_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    Sink = Callable[[bytes], Awaitable[None] | None]

INIT_VERSION = 2
INIT_PORT = 1029
"""vsock port of the host that init connects to."""
HEADER = struct.Struct("<II")
FRAME_MAX = 128 * 1024
"""Longest payload, bytes."""
STDIN_CHUNK = 32 * 1024
WAIT_STATUS_MAX = 0xFFFF
"""Of a process that ended: exit status, signal, and whether it left a core."""
KILL_S = 5.0
"""How long a command that was given up may take to die."""
FRAMES_AT_ONCE = 64
"""Frames that are acted on before other tasks have their turn."""
TEXT_MAX = 1000
"""Longest text of the guest's that is shown, characters."""


class Frame(enum.IntEnum):
    """Types of frames, as in guest/init/init.h."""

    EXEC = 1
    STDIN = 2
    SIGNAL = 3
    KEY = 4
    READY = 16
    STDOUT = 17
    STDERR = 18
    EXIT = 19
    ERROR = 20
    WINDOW = 21


class GuestGoneError(FastpathError):
    """The guest hung up, or broke the protocol: nothing more runs in it."""


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """What init says of itself when it is ready."""

    version: int
    kernel: str
    clocksource: str
    sockets: str
    """Who has programs' sockets: "module", or "agent: " and why."""


@dataclass(slots=True)
class _Command:
    """A command that runs."""

    stdout: Sink | None
    stderr: Sink | None
    ended: asyncio.Future[int]
    window: int = 0
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    sink_error: Exception | None = None


class Guest:
    """Listens for init, then runs commands, one at a time.

    An async context manager. Enter it before QEMU starts: init connects once.

    Args:
        uds_path: the device's unix socket prefix; listens on UDS_PATH_1029.
        console: the guest's console log, named in errors.
        key: what init hands to agents; empty: nothing.
    """

    def __init__(
        self, uds_path: Path, *, console: Path | None = None, key: bytes = b""
    ) -> None:
        self._key = key
        self._path = Path(f"{uds_path}_{INIT_PORT}")
        self._console = console
        self._server: asyncio.Server | None = None
        self._ready: asyncio.Future[GuestInfo]
        self._reader: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._run: _Command | None = None

    async def __aenter__(self) -> Self:
        check_socket_path(self._path)
        self._ready = asyncio.get_running_loop().create_future()
        sock = socket.socket(socket.AF_UNIX)
        os.fchmod(sock.fileno(), 0o600)  # the file's mode: who connects is the guest
        try:
            sock.bind(os.fsencode(self._path))
        except OSError:
            sock.close()
            raise
        self._server = await asyncio.start_unix_server(self._accepted, sock=sock)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stop_listening()
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._ready.cancel()

    async def ready(self, timeout_s: float = BOOT_TIMEOUT_S["tcg"]) -> GuestInfo:
        """Wait until init is ready: until the guest has booted.

        Raises:
            FastpathError: not within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._ready)
        except TimeoutError:
            raise GuestGoneError(
                "guest",
                f"init did not call within {timeout_s:g} s{last_words(self._console)}",
                f"if it is only slow, --boot-timeout {2 * timeout_s:g}",
            ) from None

    async def run(
        self,
        argv: Sequence[str],
        *,
        tsi: bool,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: asyncio.StreamReader | bytes | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> int:
        """Run a command and wait for its end.

        A run that is cancelled kills the command.

        Args:
            argv: program, looked up in PATH, and its arguments.
            tsi: have its sockets, and those of all that runs from then on, lead to
                the host.
            env: added to init's own environment (PATH, HOME, TERM).
            cwd: directory to start in.
            stdin: what it reads; None is an empty input.
            stdout: called with each piece of output; None drops it. When it
                returns an awaitable, no more is read before that is done, so a
                slow consumer slows the command down.
            stderr: likewise.

        Returns:
            As a shell's $?: 0 to 255, 128 + signal number for a signal.

        Raises:
            FastpathError: the VM or its agent died, or the arguments are longer
                than a frame.
        """
        await asyncio.shield(self._ready)
        if self._run is not None:
            raise RuntimeError("a command runs already")
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        request = encode_exec(argv, env or {}, cwd, tsi=tsi)
        run = self._run = _Command(stdout, stderr, ended)
        feeder: asyncio.Task[None] | None = None
        try:
            self._send(Frame.EXEC, request)
            feeder = asyncio.create_task(self._feed(run, stdin))
            return await asyncio.shield(ended)
        finally:
            if feeder is not None:
                feeder.cancel()
            if not ended.done():
                await self.signal(signal.SIGKILL)
                await asyncio.wait({ended}, timeout=KILL_S)
            if ended.done() and not ended.cancelled():
                ended.exception()  # seen: an error was raised, or is of no use
            self._run = None

    async def signal(self, signo: int) -> None:
        """Send a signal to the running command's process group; or to nobody."""
        if self._run is not None and not self._run.ended.done():
            with contextlib.suppress(GuestGoneError):
                self._send(Frame.SIGNAL, struct.pack("<I", signo))

    async def network(self, address: str, gateway: str, mtu: int = 1500) -> None:
        """Bring eth0 up: `address` is "10.200.1.2/30", `gateway` an address.

        Raises:
            FastpathError: the guest has no eth0, or refuses the addresses.
        """
        script = (
            'ip address add "$1" dev eth0; ip link set eth0 up mtu "$3"; '
            'ip route add default via "$2"'
        )
        said = bytearray()
        command = ["sh", "-ec", script, "sh", address, gateway, str(mtu)]
        if await self.run(command, tsi=False, stderr=said.extend) != 0:
            raise FastpathError("guest network", said.decode(errors="replace"))

    def _accepted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._reader is not None:
            writer.close()
            return
        self._stop_listening()
        self._writer = writer
        self._reader = asyncio.create_task(self._read(reader))

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Act on frames until the stream ends."""
        why = "it ended the control stream"
        try:
            for count in itertools.count(1):
                kind, length = HEADER.unpack(await reader.readexactly(HEADER.size))
                if length > FRAME_MAX:
                    why = f"it sent a frame of {length} bytes"
                    break
                await self._on_frame(kind, await reader.readexactly(length))
                if count % FRAMES_AT_ONCE == 0:
                    await asyncio.sleep(0)  # what is read already never waits
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except (struct.error, ValueError) as error:
            why = f"it broke the exec protocol: {error}"
        gone = self._gone(why)
        if not self._ready.done():
            self._ready.set_exception(gone)
            self._ready.exception()  # seen: perhaps nobody waits for it
        if self._run is not None and not self._run.ended.done():
            self._run.ended.set_exception(gone)
        if self._writer is not None:
            self._writer.close()

    async def _on_frame(self, kind: int, payload: bytes) -> None:
        run = self._run
        if kind == Frame.READY:
            if not self._ready.done():
                info = decode_ready(payload)
                if self._key:
                    self._send(Frame.KEY, self._key)
                self._ready.set_result(info)
        elif run is None or run.ended.done():
            raise ValueError(f"frame {kind} without a command")
        elif kind in {Frame.STDOUT, Frame.STDERR}:
            await self._deliver(run, kind, payload)
        elif kind == Frame.WINDOW:
            run.window += struct.unpack("<I", payload)[0]
            run.opened.set()
        elif kind == Frame.EXIT:
            status = shell_status(struct.unpack("<I", payload)[0])
            if run.sink_error is None:
                run.ended.set_result(status)
            else:
                run.ended.set_exception(run.sink_error)
        elif kind == Frame.ERROR:
            why = printable(payload) + last_words(self._console)
            run.ended.set_exception(FastpathError("microVM", why))
        else:
            raise ValueError(f"unknown frame {kind}")

    async def _deliver(self, run: _Command, kind: int, payload: bytes) -> None:
        """Hand output on; a sink that fails ends the command, then the run."""
        sink = run.stdout if kind == Frame.STDOUT else run.stderr
        if sink is None or run.sink_error is not None:
            return
        try:
            taken = sink(payload)
            if taken is not None:
                await taken
        except Exception as error:
            run.sink_error = error
            self._send(Frame.SIGNAL, struct.pack("<I", signal.SIGKILL))

    async def _feed(
        self, run: _Command, stdin: asyncio.StreamReader | bytes | None
    ) -> None:
        """Send the command's input as its window allows, then its end."""
        if isinstance(stdin, asyncio.StreamReader):
            source = stdin
        else:
            source = asyncio.StreamReader()
            source.feed_data(stdin or b"")
            source.feed_eof()
        with contextlib.suppress(GuestGoneError, ConnectionError):
            while True:
                while run.window == 0:
                    run.opened.clear()
                    await run.opened.wait()
                data = await source.read(min(run.window, STDIN_CHUNK))
                run.window -= len(data)
                self._send(Frame.STDIN, data)
                if not data:
                    return
                assert self._writer is not None
                await self._writer.drain()

    def _send(self, kind: Frame, payload: bytes) -> None:
        if self._writer is None or self._writer.is_closing():
            raise self._gone("it ended the control stream")
        self._writer.write(HEADER.pack(kind, len(payload)) + payload)

    def _gone(self, why: str) -> GuestGoneError:
        return GuestGoneError("guest", why + last_words(self._console))


def encode_exec(
    argv: Sequence[str], env: Mapping[str, str], cwd: str, *, tsi: bool
) -> bytes:
    """The payload of an EXEC frame.

    Raises:
        FastpathError: a string has a NUL, or all are longer than a frame.
    """
    strings = [*argv, *(f"{name}={value}" for name, value in env.items()), cwd]
    encoded = [os.fsencode(each) for each in strings]
    if any(b"\0" in each for each in encoded):
        raise FastpathError("command", "an argument contains a NUL")
    head = struct.pack("<III", int(tsi), len(argv), len(env))
    payload = head + b"".join(each + b"\0" for each in encoded)
    if len(payload) > FRAME_MAX:
        raise FastpathError(
            "command",
            f"arguments and environment have {len(payload)} bytes, "
            f"more than {FRAME_MAX}",
            "pass long input by --file or stdin",
        )
    return payload


def decode_ready(payload: bytes) -> GuestInfo:
    """What a READY frame says.

    Raises:
        ValueError: it is malformed, or of another version.
    """
    version = int.from_bytes(payload[:4], "little")
    parts = payload[4:].split(b"\0")
    if version != INIT_VERSION or len(parts) != 4:
        raise ValueError(f"init speaks version {version}, not {INIT_VERSION}")
    kernel, clocksource, sockets, _ = map(printable, parts)
    return GuestInfo(version, kernel, clocksource, sockets)


def printable(text: bytes) -> str:
    """What a guest says, fit for a terminal: of bounded length, nothing but text."""
    decoded = text[: 4 * TEXT_MAX].decode(errors="replace")
    spaced = " ".join(decoded.split())
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in spaced
    )[:TEXT_MAX]


def shell_status(status: int) -> int:
    """A wait status as a shell's $?.

    Raises:
        ValueError: the status is of no process that ended.
    """
    if status > WAIT_STATUS_MAX:
        raise ValueError(f"{status:#x} is no wait status")
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
