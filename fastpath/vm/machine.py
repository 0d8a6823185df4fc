"""A running QEMU: started, watched over QMP, ended; nothing is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable
    from types import TracebackType

    from fastpath.vm.spec import VmSpec

T = TypeVar("T")


class Machine:
    """QEMU as a child process; an async context manager.

    Entering starts QEMU and returns when QMP answers. Leaving asks QEMU to
    quit, then kills it; the process is gone when leaving returns.
    """

    def __init__(self, spec: VmSpec) -> None:
        self.spec = spec
        self.pid: int
        self.vcpu_thread_ids: tuple[int, ...]
        self.exited: asyncio.Future[int]
        """QEMU's exit status, negative for a signal."""

    async def __aenter__(self) -> Self:
        """Start QEMU.

        Raises:
            FastpathError: QEMU is missing or refuses its command line.
        """
        raise NotImplementedError

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        raise NotImplementedError

    async def watch(self, work: Awaitable[T]) -> T:
        """Await `work`, but stop when the machine ends first.

        Raises:
            FastpathError: QEMU ended or the guest panicked; it has the last
                lines of the console and names the console's file.
        """
        raise NotImplementedError
