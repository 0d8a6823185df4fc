"""What `fastpath run --json` writes: what ran, in what, how long, how it ended.

{"schema": 1, "argv": ["true"], "image": "base", "accelerator": "tcg", ...}
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from fastpath import files
from vhost_user.options import version

if TYPE_CHECKING:
    from pathlib import Path

    from fastpath.vm.guest import GuestInfo

SCHEMA: Final = 1
"""Changes when a name or its meaning does; names may be added."""


@dataclass(slots=True, kw_only=True)
class Summary:
    """One run; what has not come is None."""

    schema: int = SCHEMA
    version: str = field(default_factory=version)
    argv: tuple[str, ...]
    image: str
    accelerator: str | None = None
    guest_kernel: str | None = None
    sockets: str | None = None
    """Who had the program's: "module", or "agent: " and why."""
    ready_s: float | None = None
    """From the start of the run until the guest was ready."""
    connections: int | None = None
    """That the guest opened or that were opened to it, control streams among them."""
    status: int | None = None
    """The exit status; None: there is an error."""
    error: str | None = None
    seconds: float = 0.0
    """For all of it."""


class Recorder:
    """Has the summary of a run while it goes on."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self._began = time.monotonic()

    def ready(self, info: GuestInfo, accelerator: str) -> None:
        """Keep what the guest says of itself."""
        self.summary.ready_s = self._seconds()
        self.summary.guest_kernel = info.kernel
        self.summary.sockets = info.sockets
        self.summary.accelerator = accelerator

    def write(self, file: Path) -> None:
        """Write it, at the end.

        Raises:
            OSError: it cannot be written.
        """
        self.summary.seconds = self._seconds()
        files.replace(file, json.dumps(asdict(self.summary), indent=2) + "\n")

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 6)
