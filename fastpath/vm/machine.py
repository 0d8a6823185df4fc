"""A running QEMU: started, watched, ended; nothing of it is left behind.

QEMU is started through setpriv, which asks the kernel to kill it when the thread
that started it ends (PR_SET_PDEATHSIG). Doing so between fork and exec in Python
would run Python code in the child of a process with many threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from qemu.qmp import QMPClient, QMPError

from fastpath.errors import FastpathError
from fastpath.scratch import check_socket_path
from fastpath.vm.console import last_lines, last_words
from fastpath.vm.spec import Tap, argv

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

    from fastpath.vm.spec import VmSpec

T = TypeVar("T")

START_S = 60.0
"""QEMU greets on QMP within this, or something is wrong; one that ends is noticed."""
QUIT_S = 2.0
"""After SIGTERM, QEMU gets this long before SIGKILL."""
SETTLE_S = 2.0
"""When the guest hangs up, its QEMU gets this long to end, too."""
TAIL_LINES = 15
PANIC = "Kernel panic - not syncing: "
NO_TIMER = "init: no timer"
"""The guest's kernel measured its timer while this machine was busy (boot.c)."""
STARTS = 3
"""Of QEMU, as long as the guest says that."""

log = logging.getLogger(__name__)


class MachineDiedError(FastpathError):
    """QEMU ended while something was still to be done in the guest."""

    def __init__(self, why: str, console: Path, hint: str | None = None) -> None:
        super().__init__("microVM", f"{why}{last_words(console)}", hint)
        self.console_tail = "\n".join(last_lines(console)[-TAIL_LINES:])
        """The last lines of the console."""


class Machine:
    """QEMU as a child process; an async context manager.

    Entering starts QEMU and returns when QMP answers. Leaving asks QEMU to
    quit, then kills it; the process is gone when leaving returns. A guest whose
    kernel has no timer is booted again, by another QEMU.

    Args:
        spec: what to run. Its console and QMP paths are in a directory that the
            caller owns.
    """

    def __init__(self, spec: VmSpec) -> None:
        if spec.qmp is None:
            raise ValueError("a machine is watched over QMP")
        self.spec = spec
        self._qmp_path = spec.qmp
        self.pid: int
        self.vcpu_thread_ids: tuple[int, ...]
        self.exited: asyncio.Future[int]
        """QEMU's exit status, negative for a signal."""
        self._process: asyncio.subprocess.Process
        self._complaints: deque[str] = deque(maxlen=5)
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._greeting: asyncio.Task[None] | None = None
        self._qmp = QMPClient("microvm")
        # It reports each QEMU that ends as an error; we say so ourselves.
        self._qmp.logger.setLevel(logging.CRITICAL)

    async def __aenter__(self) -> Self:
        """Start QEMU.

        Raises:
            FastpathError: QEMU is missing or refuses its command line.
        """
        _check(self.spec)
        self.exited = asyncio.get_running_loop().create_future()
        try:
            await self._spawn()
            self._tasks = [asyncio.create_task(self._await_end())]
            await self.watch(self._greet())
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End QEMU; a second call does nothing."""
        self._closing = True
        try:
            if self._tasks and not self.exited.done():
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                await asyncio.wait({self.exited}, timeout=QUIT_S)
        finally:
            if self._tasks and not self.exited.done():
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            if self._greeting is not None:
                self._greeting.cancel()
            await self._hang_up()
            await asyncio.gather(*self._tasks)
            self._tasks.clear()
            self._qmp_path.unlink(missing_ok=True)

    async def watch(self, work: Awaitable[T]) -> T:
        """Await `work`, but stop when the machine ends first.

        Raises:
            MachineDiedError: QEMU ended or the guest panicked.
        """
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self.exited}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self._died()
            if isinstance(task.exception(), FastpathError):
                # A guest that hung up: more often than not its machine ends.
                await asyncio.wait({self.exited}, timeout=SETTLE_S)
                if self.exited.done():
                    raise self._died() from task.exception()
            return task.result()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, FastpathError):
                await task

    async def execute(self, command: str, arguments: dict[str, object]) -> object:
        """Send QEMU a QMP command and return what it returns.

        Raises:
            FastpathError: QEMU says no, or is gone.
        """
        try:
            return await self._qmp.execute(command, arguments)
        except (QMPError, EOFError) as error:
            raise FastpathError(self.spec.qemu, f"{command}: {error}") from error

    async def _hang_up(self) -> None:
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._qmp.disconnect()

    async def _spawn(self) -> None:
        await self._qmp.start_server(str(self._qmp_path))
        fds = (self.spec.net.fd,) if isinstance(self.spec.net, Tap) else ()
        self._process = await asyncio.create_subprocess_exec(
            "setpriv",
            "--pdeathsig",
            "KILL",
            *argv(self.spec),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=fds,
            start_new_session=True,  # a Ctrl-C is for us alone
        )
        self.pid = self._process.pid

    async def _await_end(self) -> None:
        starts = 1
        while True:
            assert self._process.stderr is not None
            async for line in self._process.stderr:
                self._complaints.append(line.decode(errors="replace").strip())
            status = await self._process.wait()
            if self._closing or starts == STARTS or not self._lacks_timer():
                break
            log.warning("%s: its kernel has no timer; booted again", self.spec.qemu)
            starts += 1
            await self._hang_up()
            await self._spawn()
            self._greeting = asyncio.create_task(self._greet_quietly())
        self.exited.set_result(status)

    def _lacks_timer(self) -> bool:
        return any(NO_TIMER in line for line in last_lines(self.spec.console))

    async def _greet_quietly(self) -> None:
        with contextlib.suppress(FastpathError):  # whoever needs QMP finds out
            await self._greet()

    async def _greet(self) -> None:
        try:
            async with asyncio.timeout(START_S):
                await self._qmp.accept()
                cpus = await self._qmp.execute("query-cpus-fast")
        except TimeoutError:
            raise FastpathError(
                self.spec.qemu, f"no answer on QMP within {START_S:.0f} s"
            ) from None
        except (QMPError, EOFError) as error:
            raise FastpathError(self.spec.qemu, str(error)) from error
        listed = cast("list[dict[str, int]]", cpus)
        self.vcpu_thread_ids = tuple(cpu["thread-id"] for cpu in listed)
        if self.spec.cpu_affinity is not None:
            _pin(self.pid, self.spec.cpu_affinity)

    def _died(self) -> FastpathError:
        """Why QEMU ended, as well as its words or the console tell."""
        said = last_lines(self.spec.console)
        panic = [line for line in said if PANIC in line]
        status = self.exited.result()
        if panic:
            why = "the guest panicked: " + panic[0].partition(PANIC)[2]
        elif status > 0:
            return FastpathError(
                self.spec.qemu,
                " / ".join(self._complaints) or f"ended with status {status}",
                "fastpath doctor",
            )
        elif status < 0:
            why = f"QEMU was killed by signal {-status}"
        elif self._lacks_timer():
            why = f"its kernel had no timer, {STARTS} times: it got no CPU for seconds"
            return MachineDiedError(why, self.spec.console, "run less beside it")
        else:
            why = "the guest restarted or powered off"
        return MachineDiedError(why, self.spec.console)


def _pin(pid: int, cpus: frozenset[int]) -> None:
    """Pin all threads that a process has; those that it starts later inherit."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cpus)


def _check(spec: VmSpec) -> None:
    """Find what is missing before QEMU says it in its own words."""
    for program, package in (
        (spec.qemu, "qemu-system-x86"),
        ("setpriv", "util-linux"),
    ):
        if shutil.which(program) is None:
            raise FastpathError(
                program, "there is no such program", f"apt-get install {package}"
            )
    for path in (spec.kernel or spec.image.kernel, spec.image.initramfs):
        if not os.access(path, os.R_OK):
            raise FastpathError(
                f"{path}", "cannot be read", f"fastpath image build {spec.image.name}"
            )
    if spec.qmp:
        check_socket_path(spec.qmp)
