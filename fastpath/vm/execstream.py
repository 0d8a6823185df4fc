"""One stream of init's exec protocol: a command at a time, and its frames.

guest/init/main.c describes the protocol.

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
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.vm.console import last_words

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    Sink = Callable[[bytes], Awaitable[None] | None]

INIT_VERSION: Final = 3
HEADER: Final = struct.Struct("<II")
FRAME_MAX: Final = 128 * 1024
"""Longest payload, bytes."""
STDIN_CHUNK: Final = 32 * 1024
WAIT_STATUS_MAX: Final = 0xFFFF
"""Of a process that ended: exit status, signal, and whether it left a core."""
KILL_S: Final = 5.0
"""How long a command that was given up may take to die."""
FRAMES_AT_ONCE: Final = 64
"""Frames that are acted on before other tasks have their turn."""
TEXT_MAX: Final = 1000
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
class _Running:
    """The command of a stream."""

    stdout: Sink | None
    stderr: Sink | None
    ended: asyncio.Future[int]
    window: int = 0
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    sink_error: Exception | None = None

    def fail(self, error: FastpathError) -> None:
        """End it, unless it has ended."""
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # seen: perhaps nobody waits for it any more


class ExecStream:
    """The host's end of a stream to init.

    Args:
        reader: the stream's.
        writer: the stream's; closed with it.
        console: the guest's console log, named in errors.
        key: what init hands to agents; empty: it isn't told.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        console: Path | None = None,
        key: bytes = b"",
    ) -> None:
        self.ready: asyncio.Future[GuestInfo] = (
            asyncio.get_running_loop().create_future()
        )
        """What init says first."""
        self._writer = writer
        self._console = console
        self._key = key
        self._run: _Running | None = None
        self._work: asyncio.Task[int] | None = None
        self._reading = asyncio.create_task(self._read(reader))

    @property
    def is_busy(self) -> bool:
        """Whether it has a command that has not ended, wanted or not."""
        return self._run is not None and not self._run.ended.done()

    @property
    def is_over(self) -> bool:
        """Whether the guest has hung up, or we have."""
        return self._writer.is_closing()

    async def close(self) -> None:
        """Hang up; the command is lost."""
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        self._writer.close()
        if self._run is not None:
            self._run.fail(self._gone("we hung up"))
        if self._work is not None:
            await asyncio.wait({self._work})
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        self.ready.cancel()

    def start(
        self,
        request: bytes,
        *,
        stdin: asyncio.StreamReader | bytes | None,
        stdout: Sink | None,
        stderr: Sink | None,
    ) -> asyncio.Task[int]:
        """Start a command, where none is; return what waits for its end.

        That task kills the command if it is cancelled.

        Args:
            request: as of `encode_exec`.
            stdin: as of `Guest.start`.
            stdout: likewise.
            stderr: likewise.

        Raises:
            GuestGoneError: the stream is over.
        """
        assert not self.is_busy, "it has a command"
        self._send(Frame.EXEC, request)
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._run = _Running(stdout, stderr, ended)
        self._work = asyncio.create_task(self._await_end(self._run, stdin))
        self._work.add_done_callback(_see)  # perhaps nobody waits for it
        return self._work

    async def _await_end(
        self, run: _Running, stdin: asyncio.StreamReader | bytes | None
    ) -> int:
        ended = run.ended
        feeder = asyncio.create_task(self._feed(run, stdin))
        try:
            return await asyncio.shield(ended)
        finally:
            feeder.cancel()
            if not ended.done():
                run.stdout = run.stderr = None
                self.signal(signal.SIGKILL)
                await asyncio.wait({ended}, timeout=KILL_S)
            if ended.done():
                ended.exception()  # seen: an error was raised, or is of no use

    def signal(self, signo: int) -> None:
        """Send a signal to the command's process group; or to nobody."""
        if self.is_busy:
            with contextlib.suppress(GuestGoneError):
                self._send(Frame.SIGNAL, struct.pack("<I", signo))

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
        if not self.ready.done():
            self.ready.set_exception(gone)
            self.ready.exception()  # seen: perhaps nobody waits for it
        if self._run is not None:
            self._run.fail(gone)
        self._writer.close()

    async def _on_frame(self, kind: int, payload: bytes) -> None:
        run = self._run
        if kind == Frame.READY:
            if not self.ready.done():
                info = decode_ready(payload)
                if self._key:
                    self._send(Frame.KEY, self._key)
                self.ready.set_result(info)
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

    async def _deliver(self, run: _Running, kind: int, payload: bytes) -> None:
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
        self, run: _Running, stdin: asyncio.StreamReader | bytes | None
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
                await self._writer.drain()

    def _send(self, kind: Frame, payload: bytes) -> None:
        if self._writer.is_closing():
            raise self._gone("it ended the control stream")
        self._writer.write(HEADER.pack(kind, len(payload)) + payload)

    def _gone(self, why: str) -> GuestGoneError:
        return GuestGoneError("guest", why + last_words(self._console))


def _see(work: asyncio.Task[int]) -> None:
    """Take note of an error."""
    if not work.cancelled():
        work.exception()


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
