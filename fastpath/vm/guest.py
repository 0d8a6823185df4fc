"""Programs in the VM: the host's side of init's exec protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    Sink = Callable[[bytes], None]

INIT_PORT = 1029
"""vsock port of the host that init connects to."""


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """What init says of itself when it is ready."""

    version: int
    kernel: str
    clocksource: str


class Guest:
    """Listens for init, then runs commands, one at a time.

    An async context manager. Enter it before QEMU starts: init connects once.

    Args:
        uds_path: the device's unix socket prefix; listens on UDS_PATH_1029.
        console: the guest's console log, named in errors.
    """

    def __init__(self, uds_path: Path, *, console: Path | None = None) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        raise NotImplementedError

    async def ready(self, timeout_s: float = 30.0) -> GuestInfo:
        """Wait until init is ready.

        Raises:
            FastpathError: not within `timeout_s`.
        """
        raise NotImplementedError

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

        Args:
            argv: program, looked up in PATH, and its arguments.
            tsi: run it under tsi-agent.
            env: added to init's own environment (PATH, HOME, TERM).
            cwd: directory to start in.
            stdin: what it reads; None is an empty input.
            stdout: called with each piece of output; None drops it.
            stderr: likewise.

        Returns:
            As a shell's $?: 0 to 255, 128 + signal number for a signal.

        Raises:
            FastpathError: the VM or its agent died.
        """
        raise NotImplementedError

    async def signal(self, signo: int) -> None:
        """Send a signal to the running command's process group."""
        raise NotImplementedError

    async def network(self, address: str, gateway: str) -> None:
        """Bring eth0 up: `address` is "10.200.1.2/30", `gateway` an address."""
        raise NotImplementedError
