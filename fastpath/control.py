"""Running microVMs of this user: a unix socket each, by which others ask it for things.

The socket is in a folder that only the user enters, and its name is the microVM's. A
message is JSON, the first of a client with the descriptors that go with it:

    {"do": "info"}                              -> {what it says of itself}
    {"do": "exec", "argv", "env", "cwd"} + 3 fds -> {"status": N}
    {"do": "stop", "grace_s"}                   -> nothing; the socket ends with it
    {"signal": N}, later: for what was asked for
    anything that went wrong                    -> {"error": WHAT, "why", "hint"}
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import socket
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from fastpath.errors import FastpathError
from fastpath.scratch import check_socket_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence

    Message = dict[str, Any]
    Handler = Callable[["Client", Message, Sequence[int]], Awaitable[Message | None]]

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MESSAGE_MAX: Final = 192 * 1024
"""Bytes; more than a command's arguments take."""
MAX_FDS: Final = 3
BACKLOG: Final = 16
LOCK: Final = ".lock"


def directory() -> Path:
    """Return the folder, made if there is none.

    Raises:
        FastpathError: it is somebody else's, or can't be made.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    usual = Path(tempfile.gettempdir()) / f"vsock-fastpath-{os.geteuid()}"
    path = Path(runtime) / "vsock-fastpath" if runtime else usual
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise FastpathError(f"{path}", error.strerror or str(error)) from error
    private = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
    if not stat.S_ISDIR(found.st_mode) or not private:
        raise FastpathError(
            f"{path}", "is not a folder of this user alone", "set XDG_RUNTIME_DIR"
        )
    return path


def names() -> list[str]:
    """The microVMs that run; what killed ones left is removed."""
    found = []
    with _locked() as folder:
        for path in sorted(folder.iterdir()):
            if path.name == LOCK:
                continue
            if _answers(path):
                found.append(path.name)
            else:
                path.unlink(missing_ok=True)
    return found


def connect(name: str) -> socket.socket:
    """Connect to a microVM.

    Raises:
        FastpathError: none of this name runs.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(os.fsencode(directory() / name))
    except OSError as error:
        sock.close()
        raise FastpathError(
            f"microVM {name}", "none of this name runs", "fastpath ps"
        ) from error
    return sock


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send a message, with descriptors.

    Raises:
        FastpathError: it is too long.
    """
    data = json.dumps(message).encode()
    if len(data) > MESSAGE_MAX:
        raise FastpathError("command", f"has more than {MESSAGE_MAX} bytes")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_MAX)
    socket.send_fds(sock, [data], list(fds))


def receive(sock: socket.socket) -> Message | None:
    """Receive an answer; None at the end.

    Raises:
        FastpathError: what went wrong there.
    """
    try:
        data = sock.recv(MESSAGE_MAX)
    except ConnectionError:
        data = b""
    if not data:
        return None
    message: Message = json.loads(data)
    if "error" in message:
        raise FastpathError(message["error"], message["why"], message["hint"])
    return message


class Client:
    """One who asks, at the microVM's end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.on_signal: Callable[[int], None] = lambda _: None

    async def next(self) -> tuple[Message, list[int]] | None:
        """Wait for a message; None at the end, or if it isn't one."""
        await readable(self._sock)
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, MESSAGE_MAX, MAX_FDS)
            message = json.loads(data) if data else None
        except (OSError, ValueError):
            return None
        return (message, fds) if isinstance(message, dict) else None

    def answer(self, message: Message) -> None:
        """Send an answer, if there is still somebody."""
        with contextlib.suppress(OSError):
            self._sock.send(json.dumps(message).encode())

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


class Served:
    """The microVM's end; an async context manager.

    Args:
        name: the microVM's.
        handler: gets each client's first message and its descriptors, which are
            closed behind it, and returns the answer; cancelled if the client leaves.

    Raises:
        FastpathError: the name is none, or in use.
    """

    def __init__(self, name: str, handler: Handler) -> None:
        if not NAME.fullmatch(name):
            why = "must have letters, digits, and . _ - after the first; 64 at most"
            raise FastpathError(f"--name {name}", why)
        self._handler = handler
        self._path = directory() / name
        check_socket_path(self._path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            with _locked():
                _check_free(self._path)
                self._path.unlink(missing_ok=True)
                self._sock.bind(os.fsencode(self._path))
                self._sock.listen(BACKLOG)
        except BaseException:
            self._sock.close()
            raise

    async def __aenter__(self) -> Self:
        self._begin(self._accept())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._path.unlink(missing_ok=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sock.close()

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            await readable(self._sock)
            with contextlib.suppress(OSError):
                sock, _ = self._sock.accept()
                sock.setblocking(False)
                self._begin(self._serve(Client(sock)))

    async def _serve(self, client: Client) -> None:
        try:
            first = await client.next()
            if first is None:
                return
            message, fds = first
            try:
                await self._answer(client, message, fds)
            finally:
                for fd in fds:
                    os.close(fd)
        finally:
            client.close()

    async def _answer(
        self, client: Client, message: Message, fds: Sequence[int]
    ) -> None:
        work = asyncio.ensure_future(self._handler(client, message, fds))
        listening = asyncio.create_task(self._listen(client))
        try:
            await asyncio.wait({work, listening}, return_when=asyncio.FIRST_COMPLETED)
            if work.done() and (answer := work.result()) is not None:
                client.answer(answer)
        except FastpathError as error:
            client.answer({"error": error.what, "why": error.why, "hint": error.hint})
        finally:
            for task in (work, listening):
                task.cancel()
            await asyncio.gather(work, listening, return_exceptions=True)

    async def _listen(self, client: Client) -> None:
        while (following := await client.next()) is not None:
            message, fds = following
            for fd in fds:
                os.close(fd)
            signo = message.get("signal")
            if isinstance(signo, int) and 0 < signo <= 64:
                client.on_signal(signo)


@contextlib.contextmanager
def _locked() -> Iterator[Path]:
    """Keep others from making and removing sockets."""
    folder = directory()
    with (folder / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _check_free(path: Path) -> None:
    """Refuse a name that has a microVM.

    Raises:
        FastpathError: that is so.
    """
    if _answers(path):
        why = "is a running microVM's"
        raise FastpathError(f"--name {path.name}", why, "fastpath ps")


def _answers(path: Path) -> bool:
    """Whether a microVM listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        try:
            sock.connect(os.fsencode(path))
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


async def readable(sock: socket.socket) -> None:
    """Wait until there is something to receive, or to accept."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _settle, future)
    try:
        await future
    finally:
        loop.remove_reader(sock)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
