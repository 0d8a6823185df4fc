"""The body of `fastpath ztunnel`: one process, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

from fastpath.ztunnel import config as configuration
from fastpath.ztunnel.process import Ztunnel

if TYPE_CHECKING:
    from pathlib import Path


async def serve(config_path: Path, *, ready_fd: int | None = None) -> int:
    """Run until SIGTERM or SIGINT; the body of `fastpath ztunnel`.

    Open connections have `drainS` then; a second signal ends them at once.

    SIGHUP makes it read all policy files and Istio's again, those that changed or not.
    Says `ready` in one line on stderr when everything listens.

    Args:
        config_path: see docs/ztunnel-config.md.
        ready_fd: also gets a newline then, and is closed.

    Returns:
        0, the exit status.

    Raises:
        FastpathError: before it is ready; nothing is left running.
    """
    loaded = configuration.load_with_lines(config_path)
    config = loaded.config
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signo in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signo, stop.set)
    try:
        async with Ztunnel(config, error=loaded.error) as ztunnel:
            await ztunnel.follow(loaded)
            loop.add_signal_handler(signal.SIGHUP, ztunnel.reload)
            with contextlib.suppress(OSError):  # nobody may read it any more
                sys.stderr.write(f"{configuration.ready_line(config)}\n")
                sys.stderr.flush()
            if ready_fd is not None:
                with contextlib.suppress(BrokenPipeError):  # nor wait for it
                    os.write(ready_fd, b"\n")
                os.close(ready_fd)
            await stop.wait()
            stop.clear()
            await ztunnel.drain(config.fastpath.drain_s, stop)
    finally:
        for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(signo)
    return 0
