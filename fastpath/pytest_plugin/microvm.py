"""A microVM that has booted, for synchronous callers: programs, ports, files."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shlex
import shutil
import socket
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Self

from fastpath.errors import FastpathError
from fastpath.pytest_plugin import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastpath.pytest_plugin.loop import LoopThread
    from fastpath.vm.guest import Command, Guest, GuestInfo
    from fastpath.vm.machine import Machine
    from fastpath.ztunnel.process import Ztunnel

POLL_S: Final = 0.05
WAIT_S: Final = 60.0
"""How long waits take at most, unless the test says so."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What came of a program."""

    argv: tuple[str, ...]
    status: int
    """As a shell's $?: 128 + signal number for a signal."""
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """What it wrote to its stdout."""
        return self.stdout.decode(errors="replace")

    def check(self) -> Self:
        """Return it, if its status is 0.

        Raises:
            FastpathError: it isn't.
        """
        if self.status:
            said = (self.stderr or self.stdout).decode(errors="replace").strip()
            why = f"ended with status {self.status}: {said or 'it said nothing'}"
            raise FastpathError(shlex.join(self.argv), why)
        return self


class Program:
    """A program that was started; a context manager that kills it at the end."""

    def __init__(self, vm: MicroVm, argv: tuple[str, ...], data: bytes | None) -> None:
        self.argv = argv
        self._vm = vm
        self._stdout, self._stderr = bytearray(), bytearray()
        self._stdin: asyncio.StreamReader | None = None
        self._data = data
        self._command: Command

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.signal(9)
        with contextlib.suppress(FastpathError):
            self.wait()

    @property
    def output(self) -> str:
        """What it has written to its stdout so far."""
        return bytes(self._stdout).decode(errors="replace")

    def write(self, data: bytes) -> None:
        """Give it input, if it was started without."""
        assert self._stdin is not None, "its input was given at its start"
        self._vm.loop.soon(self._stdin.feed_data, data)

    def close_stdin(self) -> None:
        """End its input."""
        assert self._stdin is not None, "its input was given at its start"
        self._vm.loop.soon(self._stdin.feed_eof)

    def wait_for_output(self, text: str, timeout_s: float = WAIT_S) -> None:
        """Wait until it has written `text` to its stdout.

        Raises:
            TimeoutError: it has not.
            FastpathError: it has ended without.
        """

        def seen() -> bool:
            ended = self._command.is_over
            if text not in self.output and ended:
                raise FastpathError(shlex.join(self.argv), f"ended without {text!r}")
            return text in self.output

        wait_until(seen, f"{text!r} in {self.output!r}", timeout_s)

    def signal(self, signo: int) -> None:
        """Send its process group a signal; nobody, once it has ended."""
        self._vm.loop.soon(self._command.signal, signo)

    def wait(self, timeout_s: float | None = None) -> Finished:
        """Wait for its end; one that takes longer than `timeout_s` is killed.

        Raises:
            TimeoutError: it has taken so long.
            FastpathError: the microVM died.
        """
        work = self._vm.machine.watch(self._command.wait())
        status = self._vm.loop.call(work, timeout_s)
        return Finished(self.argv, status, bytes(self._stdout), bytes(self._stderr))

    async def start(self, env: Mapping[str, str], cwd: str, *, tsi: bool) -> Self:
        """Start it."""
        stdin: asyncio.StreamReader | bytes | None = self._data
        if stdin is None:
            stdin = self._stdin = asyncio.StreamReader()
        work = self._vm.guest.start(
            self.argv,
            tsi=tsi,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=self._stdout.extend,
            stderr=self._stderr.extend,
        )
        self._command = await self._vm.machine.watch(work)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroVm:
    """A microVM, and what runs for it on the host."""

    name: str
    info: GuestInfo
    address: str
    """Where ports of its are reachable on the host; in 127.0.0.0/8."""
    folder: Path
    """Of its sockets and logs."""
    loop: LoopThread
    guest: Guest
    machine: Machine
    ztunnel: Ztunnel

    # ---- programs ----

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        timeout_s: float | None = None,
    ) -> Finished:
        """Run a program to its end, beside those that run.

        Args:
            argv: program, looked up in PATH, and its arguments.
            stdin: what it reads.
            env: added to PATH, HOME and TERM.
            cwd: directory to start in.
            timeout_s: when it is killed.

        Raises:
            TimeoutError: it was.
            FastpathError: the microVM died.
        """
        program = Program(self, argv, stdin)
        self.loop.call(program.start(env or {}, cwd, tsi=True))
        return program.wait(timeout_s)

    def start(
        self,
        *argv: str,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> Program:
        """Start a program; with `stdin` None its input comes by `Program.write`.

        Raises:
            FastpathError: the microVM died.
        """
        program = Program(self, argv, stdin)
        return self.loop.call(program.start(env or {}, cwd, tsi=True))

    # ---- ports ----

    def connect(self, port: int, timeout_s: float = WAIT_S) -> socket.socket:
        """Connect to a program that listens in it, by TSI.

        Raises:
            OSError: nobody listens there.
        """
        return socket.create_connection((self.address, port), timeout_s)

    def connect_soon(self, port: int, timeout_s: float = WAIT_S) -> socket.socket:
        """Connect once a program listens.

        Raises:
            TimeoutError: none does.
        """
        found: list[socket.socket] = []

        def taken() -> bool:
            with contextlib.suppress(OSError):
                found.append(self.connect(port))
            return bool(found)

        wait_until(taken, f"a program that listens on {port}", timeout_s)
        return found[0]

    def wait_for_port(self, port: int, timeout_s: float = WAIT_S) -> None:
        """Wait until a program listens, and takes a client, which ends at once.

        Raises:
            TimeoutError: none does.
        """
        self.connect_soon(port, timeout_s).close()

    def listen(self, port: int = 0) -> HostListener:
        """Listen on the host for what runs in it, on a free port if `port` is 0.

        Raises:
            OSError: the port is taken.
        """
        return HostListener(self, socket.create_server(("127.0.0.1", port)))

    # ---- files ----

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a file or directory into it; folders on the way are made.

        Raises:
            FastpathError: there is no room, or `target` isn't absolute.
        """
        to = _absolute(target)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(source, arcname=to.name)
        script = 'mkdir -p "$1" && tar -x -C "$1"'
        self.run(
            *("sh", "-c", script, "sh", str(to.parent)), stdin=packed.getvalue()
        ).check()

    def copy_out(self, source: str, target: Path) -> None:
        """Copy a file or directory out of it.

        What is no file, directory or link inside of `source` is refused: a guest may
        say anything.

        Raises:
            FastpathError: there is none, or it is not fit to be copied.
        """
        there = _absolute(source)
        packed = self.run("tar", "-c", "-C", str(there.parent), there.name).check()
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            try:
                with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
                    tar.extractall(folder, filter="data")
                shutil.move(Path(folder) / there.name, target)
            except (tarfile.TarError, OSError) as error:
                raise FastpathError(f"{self.name}:{source}", str(error)) from error

    # ---- what it says ----

    @property
    def console(self) -> str:
        """What its kernel and its programs have written to the console."""
        return self.machine.spec.console.read_text(errors="replace")

    @property
    def access_log(self) -> str:
        """A line for each of its connections that has ended."""
        return (self.folder / settings.ACCESS_LOG).read_text(errors="replace")


class HostListener:
    """A listening socket that a microVM reaches; a context manager that closes it."""

    def __init__(self, vm: MicroVm, sock: socket.socket) -> None:
        self.sock = sock
        self.port: int = sock.getsockname()[1]
        self._vm = vm
        self._serve(listening=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def address(self) -> tuple[str, int]:
        """Where the microVM finds it."""
        return settings.HOST, self.port

    def accept(self, timeout_s: float = WAIT_S) -> socket.socket:
        """Take a connection.

        Raises:
            TimeoutError: there is none.
        """
        self.sock.settimeout(timeout_s)
        return self.sock.accept()[0]

    def close(self) -> None:
        """Listen no more."""
        self.sock.close()
        self._serve(listening=False)

    def _serve(self, *, listening: bool) -> None:
        """Have the port among the host's, or no more."""
        vm = self._vm

        def ports() -> set[int]:
            services = vm.ztunnel.config.services
            return {port for service in services for port in service.ports}

        wanted = ports() - {self.port} | ({self.port} if listening else set())
        settings.write_mesh(vm.folder, vm.name, sorted(wanted))
        vm.loop.soon(vm.ztunnel.reload)
        wait_until(lambda: ports() == wanted, "a new mesh", WAIT_S)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Wait until `condition()` is true.

    Raises:
        TimeoutError: it isn't within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


def _absolute(path: str) -> PurePosixPath:
    found = PurePosixPath(path)
    if not found.is_absolute() or not found.name:
        raise FastpathError(path, "must be an absolute path of a file or directory")
    return found
