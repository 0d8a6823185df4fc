"""User-mode Linux: a kernel that is a process of the host, and its own front-end.

Where `Machine` has QEMU between guest and back-end, here the guest's kernel speaks
vhost-user itself. It needs neither kvm nor an emulator.

Spec: Linux, Documentation/virt/uml/user_mode_linux_howto_v2.rst.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path
    from types import TracebackType
    from typing import Any

    from fastpath.image.images import Image

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class UmlSpec:
    """User-mode Linux with a vhost-user-vsock device."""

    image: Image
    start: Path
    """What starts a kernel: `tests.support.programs.UML`, unpacked."""
    vsock_socket: Path
    """The back-end's unix socket; it must listen before the kernel starts."""
    console: Path
    """File that the kernel and the guest's console write to."""
    memory_mib: int = 256


def argv(spec: UmlSpec) -> list[str]:
    """The kernel's command line for `spec`; looks at nothing but its argument."""
    return [
        str(spec.start),
        str(spec.image.kernel),
        f"mem={spec.memory_mib}M",
        f"initrd={spec.image.initramfs}",
        # 19 is the type of a socket device, 1 a number of ours.
        f"virtio_uml.device={spec.vsock_socket}:19:1",
        "con=null",
        "con0=null,fd:1",
        "quiet",
        "panic=-1",
    ]


class UserModeLinux:
    """A kernel as a child process; an async context manager.

    Leaving kills it: what a kernel of this kind does when it restarts differs from
    version to version, and its memory is nobody's but its own.

    Args:
        spec: what to run.
    """

    def __init__(self, spec: UmlSpec) -> None:
        self.spec = spec
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        with self.spec.console.open("wb") as console:
            self._process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL"),
                *argv(self.spec),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=console,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # and the guest's processes
        await self._process.wait()

    async def watch(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, but stop when the kernel ends first.

        Raises:
            FastpathError: it ended.
        """
        task = asyncio.create_task(work)
        ended = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise FastpathError(
                    "user-mode Linux",
                    f"ended with status {ended.result()}",
                    f"tail {self.spec.console}",
                )
            return task.result()
        finally:
            for each in (task, ended):
                each.cancel()
            await asyncio.gather(task, ended, return_exceptions=True)
