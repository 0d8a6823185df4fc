"""A command in a guest whose standard streams are descriptors of this host."""

from __future__ import annotations

import asyncio
import errno
import signal
from typing import TYPE_CHECKING, Final

from fastpath.stdio import Input, Output

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from fastpath.vm.guest import Command, Guest

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
"""Signals that are the command's once it runs."""
PIPE_GRACE_S: Final = 1.0
"""Time a program has to end after nobody reads its output any more."""


class Attached:
    """Runs one command.

    Args:
        guest: where.
        fds: of its stdin, stdout and stderr; borrowed.
    """

    def __init__(self, guest: Guest, fds: Sequence[int]) -> None:
        self._guest = guest
        self._fds = fds
        self._command: Command | None = None
        self._output_closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def runs(self) -> bool:
        """Whether signals have somewhere to go."""
        return self._command is not None

    def signal(self, signo: int) -> None:
        """Send the command's process group a signal, while it runs."""
        if self._command is not None:
            self._command.signal(signo)

    async def run(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: str = "/"
    ) -> int:
        """Run the command to its end; cancelled, kill it.

        Returns:
            as a shell's $?; as for SIGPIPE, if its output has lost its reader.

        Raises:
            OSError: its output can't be written, for another reason.
            FastpathError: as of `Guest.start`.
        """
        stdin, *others = self._fds
        outputs = [Output(fd, self._on_closed) for fd in others]
        try:
            with Input(stdin) as source:
                self._command = await self._guest.start(
                    argv,
                    tsi=True,
                    env=env,
                    cwd=cwd,
                    stdin=source.reader,
                    stdout=outputs[0].write,
                    stderr=outputs[1].write,
                )
                status = await self._command.wait()
        finally:
            self._command = None
            for task in self._tasks:
                task.cancel()
        for output in outputs:
            if output.error is not None and output.error.errno != errno.EPIPE:
                raise output.error
        return 128 + signal.SIGPIPE if self._output_closed else status

    def _on_closed(self) -> None:
        """Nobody reads its output: it ends as in a pipeline."""
        if not self._output_closed and self._command is not None:
            self._output_closed = True
            self._start(self._end_for_pipe(self._command))

    async def _end_for_pipe(self, command: Command) -> None:
        command.signal(signal.SIGPIPE)
        await asyncio.sleep(PIPE_GRACE_S)
        command.signal(signal.SIGKILL)

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
