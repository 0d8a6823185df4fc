"""Programs in the VM: the host's side of init's exec protocol.

guest/init/main.c describes the protocol. Its first stream is a vsock connection to the
host's port 1029, which the device makes a connection to the unix socket UDS_PATH_1029.
The host opens more of them, one for each command beside others, by port 1029 of the
guest, and keeps them for the next ones.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from fastpath.errors import FastpathError
from fastpath.scratch import check_socket_path
from fastpath.vm.console import last_words
from fastpath.vm.execstream import (
    ExecStream,
    GuestGoneError,
    GuestInfo,
    encode_exec,
)
from fastpath.vm.spec import BOOT_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from fastpath.vm.execstream import Sink

__all__ = ["Command", "Guest", "GuestGoneError", "GuestInfo"]

INIT_PORT: Final = 1029
"""vsock port of the host that init connects to, and of the guest that it serves."""


class Guest:
    """Listens for init, then runs commands.

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
        self._device = uds_path
        self._path = Path(f"{uds_path}_{INIT_PORT}")
        self._console = console
        self._server: asyncio.Server | None = None
        self._called: asyncio.Future[ExecStream]
        self._streams: list[ExecStream] = []
        """The first is init's own."""
        self._tsi = False
        """What the commands that run are started with."""

    async def __aenter__(self) -> Self:
        check_socket_path(self._path)
        self._called = asyncio.get_running_loop().create_future()
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
        for stream in self._streams:
            await stream.close()
        self._called.cancel()

    async def ready(self, timeout_s: float = BOOT_TIMEOUT_S["tcg"]) -> GuestInfo:
        """Wait until init is ready: until the guest has booted.

        Raises:
            FastpathError: not within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._info()
        except TimeoutError:
            raise GuestGoneError(
                "guest",
                f"init did not call within {timeout_s:g} s{last_words(self._console)}",
                f"if it is only slow, --boot-timeout {2 * timeout_s:g}",
            ) from None

    async def start(
        self,
        argv: Sequence[str],
        *,
        tsi: bool,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        stdin: asyncio.StreamReader | bytes | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> Command:
        """Start a command, beside those that run.

        Args:
            argv: program, looked up in PATH, and its arguments.
            tsi: have its sockets, and those of all that runs from then on, lead to
                the host. Commands beside each other agree about it.
            env: added to init's own environment (PATH, HOME, TERM).
            cwd: directory to start in.
            stdin: what it reads; None is an empty input.
            stdout: called with each piece of output; None drops it. When it
                returns an awaitable, no more is read before that is done, so a
                slow consumer slows the command down.
            stderr: likewise.

        Raises:
            FastpathError: the VM died, or the arguments are longer than a frame.
        """
        request = encode_exec(argv, env or {}, cwd, tsi=tsi)
        await self._info()
        if self._tsi != tsi and any(each.is_busy for each in self._streams):
            raise RuntimeError(f"a command runs already, with tsi={self._tsi}")
        self._tsi = tsi
        stream = self._free() or await self._open()
        work = stream.start(request, stdin=stdin, stdout=stdout, stderr=stderr)
        return Command(stream, work)

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
        """Run a command and wait for its end: `start`, then `Command.wait`."""
        command = await self.start(
            argv, tsi=tsi, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr
        )
        return await command.wait()

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

    async def _info(self) -> GuestInfo:
        first = await asyncio.shield(self._called)
        return await asyncio.shield(first.ready)

    def _accepted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._called.done():
            writer.close()
            return
        self._stop_listening()
        stream = ExecStream(reader, writer, console=self._console, key=self._key)
        self._streams.append(stream)
        self._called.set_result(stream)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)

    def _free(self) -> ExecStream | None:
        """A stream without a command; init's own if that is over, as all is then."""
        first = self._streams[0]
        if first.is_over:
            return first
        self._streams = [each for each in self._streams if not each.is_over]
        return next((each for each in self._streams if not each.is_busy), None)

    async def _open(self) -> ExecStream:
        """Open a stream beside those that there are.

        Raises:
            GuestGoneError: the guest takes none.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(self._device)
        except OSError as error:
            raise GuestGoneError(str(self._device), str(error)) from error
        try:
            writer.write(f"CONNECT {INIT_PORT}\n".encode())
            answer = await reader.readline()
        except BaseException:
            writer.close()
            raise
        if not answer.startswith(b"OK "):
            writer.close()
            why = f"takes no other command{last_words(self._console)}"
            raise GuestGoneError("guest", why)
        stream = ExecStream(reader, writer, console=self._console)
        try:
            await stream.ready
        except BaseException:
            await stream.close()
            raise
        self._streams.append(stream)
        return stream


class Command:
    """A command that was started."""

    def __init__(self, stream: ExecStream, work: asyncio.Task[int]) -> None:
        self._stream = stream
        self._work = work

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._work.done()

    async def wait(self) -> int:
        """Wait for its end; a wait that is cancelled kills it.

        Returns:
            As a shell's $?: 0 to 255, 128 + signal number for a signal.

        Raises:
            FastpathError: the VM or the command's agent died.
        """
        return await self._work

    def signal(self, signo: int) -> None:
        """Send a signal to its process group; to nobody once it has ended."""
        if not self._work.done():
            self._stream.signal(signo)
