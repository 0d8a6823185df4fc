"""`fastpath exec`, `ps` and `stop`: what is asked of microVMs that run."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING

from fastpath import control
from fastpath.commands.attached import FORWARDED
from fastpath.errors import FastpathError
from fastpath.stdio import console

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from fastpath.control import Message


def execute(name: str, argv: Sequence[str], *, env: Mapping[str, str], cwd: str) -> int:
    """Run a command in a microVM beside what runs there; return its exit status.

    Raises:
        FastpathError: there is no such microVM, or it ended.
    """
    with control.connect(name) as sock:
        asked = {"do": "exec", "argv": [*argv], "env": {**env}, "cwd": cwd}
        control.send(sock, asked, (0, 1, 2))
        answer = asyncio.run(_answer(sock))
    if answer is None:
        raise FastpathError(f"microVM {name}", "has ended, and the command with it")
    return int(answer["status"])


def stop(names: Sequence[str], *, grace_s: float) -> int:
    """End microVMs; return the exit status once they have.

    Args:
        names: which.
        grace_s: how long their programs have after SIGTERM.

    Raises:
        FastpathError: there is no such microVM.
    """
    socks = [control.connect(name) for name in names]
    try:
        for sock in socks:
            control.send(sock, {"do": "stop", "grace_s": grace_s})
        for sock in socks:
            control.receive(sock)
    finally:
        for sock in socks:
            sock.close()
    return 0


def show(*, as_json: bool) -> int:
    """Print the microVMs that run; return the exit status.

    Raises:
        FastpathError: there can be none.
    """
    found = [info for name in control.names() if (info := _info(name))]
    if as_json:
        print(json.dumps(found, indent=2))  # noqa: T201
        return 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "IMAGE", "PID", "UP", "PUBLISHED", "COMMAND"):
        table.add_column(title, overflow="fold")
    for each in found:
        up = str(timedelta(seconds=round(each["up_s"])))
        table.add_row(
            each["name"],
            each["image"],
            str(each["pid"]),
            up if each["ready"] else f"{up}, boots",
            " ".join(each["publish"]),
            " ".join(each["command"]),
        )
    console().print(table)
    return 0


def _info(name: str) -> Message | None:
    """What a microVM says of itself; None: it has ended meanwhile."""
    try:
        with control.connect(name) as sock:
            control.send(sock, {"do": "info"})
            return control.receive(sock)
    except (FastpathError, OSError):
        return None


async def _answer(sock: socket.socket) -> Message | None:
    """Wait for the answer; signals are the command's meanwhile."""
    loop = asyncio.get_running_loop()
    for signo in FORWARDED:
        loop.add_signal_handler(signo, control.send, sock, {"signal": int(signo)})
    await control.readable(sock)
    return control.receive(sock)
