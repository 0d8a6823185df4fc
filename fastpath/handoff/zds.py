"""Telling an Istio ztunnel in in-pod mode of pods, as istio-cni does on a node.

ztunnel connects to our unix SOCK_SEQPACKET socket (its `INPOD_UDS`). It hears of a pod
by a message with the descriptor of its network namespace, and answers each; then it
serves the pod from inside that namespace.

    ztunnel --- HELLO version 1 ----> us
            <-- ADD uid, who + fd ---        once for each pod
            --- ACK, or why not ----->
            <-- SNAPSHOT ------------        these were all: it is ready
            --- ACK ----------------->
            <-- ADD, DEL -------------       as pods come and go; an ACK each

Several ztunnels may be connected: while one is replaced by the next, both are. What
each was told is kept beside what there is, and the difference is what it hears next. So
a change while it waits for an answer, or is away, is never lost. One that does not keep
to the protocol is left; it connects again, and hears all from the start.

An ADD that fails (the pod's ports are taken by the ztunnel before it) is tried again by
ztunnel itself, every 5 s. It is said in the log.

Spec: istio/ztunnel proto/zds.proto; docs/handoff-protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.throttle import Throttle
from vhost_user.sockets import UnixListener

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSION: Final = 1
MAX_MESSAGE: Final = 1024
"""What ztunnel reads of one."""
MAX_ANSWER: Final = 4096
"""What we read: an error's text is the rest of it."""
MAX_PEERS: Final = 16
"""One more is sent away."""
HELLO_S: Final = 10.0
ANSWER_S: Final = 60.0
"""To open a pod's listeners is quick; a node that is busy may take its time."""

_PEER: Final = struct.Struct("=iII")  # struct ucred
_VARINT, _BYTES = 0, 2  # wire types
_SKIPPED: Final = {1: 8, 5: 4}
"""Sizes of fixed wire types, which no message of ours has."""

log = logging.getLogger(__name__)


class ProtocolError(Exception):
    """What a ztunnel said is not what it has to say."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod, as ztunnel has to know it."""

    uid: str
    """Any name that no other pod has."""
    name: str
    namespace: str
    service_account: str

    def add(self) -> bytes:
        """The message that tells of it."""
        who = (self.name, self.namespace, self.service_account)
        info = b"".join(field(i, each.encode()) for i, each in enumerate(who, 1))
        return field(1, field(1, self.uid.encode()) + field(2, info))

    def delete(self) -> bytes:
        """The message that says that it is gone. Its uid is field 2 here."""
        return field(2, field(2, self.uid.encode()))


SNAPSHOT: Final = b"\x1a\x00"


@dataclass(frozen=True, slots=True, eq=False)
class _Pod:
    """A pod and its namespace's descriptor, ours."""

    workload: Workload
    fd: int


class Server:
    """Tells ztunnels of pods; an end of ZDS, istio-cni's.

    All methods belong to the event loop's thread.

    Args:
        path: where ztunnel connects to; only root, or our own user, may.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._listener = UnixListener(path, self._accept, kind=socket.SOCK_SEQPACKET)
        self._pods: dict[str, _Pod] = {}
        self._changed = asyncio.Event()
        """Set, and replaced, with each change of `_pods`."""
        self._peers: set[asyncio.Task[None]] = set()
        self.complete = 0
        """How often a ztunnel has had all pods."""
        self._lines = Throttle(
            lambda count: log.warning("%s: %d more lines", path, count)
        )

    @property
    def peers(self) -> int:
        """How many ztunnels are connected."""
        return len(self._peers)

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the socket can't be made; `filename` is set.
        """
        await self._listener.start()

    def add(self, workload: Workload, namespace: int) -> None:
        """Tell of a pod from now on.

        Args:
            workload: it; its message fits `MAX_MESSAGE`.
            namespace: a descriptor of its network namespace, which is duplicated.
        """
        self.remove(workload.uid)
        self._pods[workload.uid] = _Pod(workload, os.dup(namespace))
        self._tell()

    def remove(self, uid: str) -> None:
        """Say that a pod is gone, if it was there."""
        pod = self._pods.pop(uid, None)
        if pod is not None:
            os.close(pod.fd)
            self._tell()

    def close(self) -> None:
        """Stop; ztunnels go on with the pods that they have, and wait for us."""
        self._listener.close()
        for task in self._peers:
            task.cancel()
        for uid in list(self._pods):
            self.remove(uid)
        self._lines.flush()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _accept(self, conn: socket.socket) -> None:
        if len(self._peers) >= MAX_PEERS:
            self._warn(f"a ztunnel too many: {MAX_PEERS} are connected")
            conn.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(conn))
        self._peers.add(task)
        task.add_done_callback(self._peers.discard)

    async def _serve(self, conn: socket.socket) -> None:
        peer = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        name = f"ztunnel (pid {_PEER.unpack(peer)[0]})"
        with conn:
            try:
                await self._converse(conn, name)
            except EOFError:
                self._warn(f"{name} is gone; its pods keep what it serves")
            except ProtocolError as error:
                self._warn(f"{name} is left: {error}")
            except TimeoutError:
                self._warn(f"{name} is left: it says nothing")
            except OSError as error:
                self._warn(f"{name} is lost: {error.strerror}")

    async def _converse(self, conn: socket.socket, name: str) -> None:
        """Bring a ztunnel to what there is, and keep it there.

        Raises:
            EOFError: it is gone.
            ProtocolError: it talks nonsense.
            TimeoutError: it says nothing.
            OSError: the socket does not work.
        """
        async with asyncio.timeout(HELLO_S):
            check_hello(await _receive(conn))
        told: dict[str, _Pod] = {}
        complete = False
        while True:
            changed = self._changed
            pod = next(self._news(told), None)
            if pod is not None:
                await self._say(conn, name, pod, told)
            elif not complete:
                conn.send(SNAPSHOT)
                await self._answer(conn, name, "the snapshot")
                complete = True
                self.complete += 1
                if self._lines.admits():
                    log.info("%s: %s has all pods: %d", self._path, name, len(told))
            else:
                await _idle(conn, changed)

    def _news(self, told: dict[str, _Pod]) -> Iterator[_Pod]:
        """What a ztunnel has to be told: first what is gone."""
        for uid, pod in told.items():
            if self._pods.get(uid) is not pod:
                yield pod
        for uid, pod in self._pods.items():
            if uid not in told:
                yield pod

    async def _say(
        self, conn: socket.socket, name: str, pod: _Pod, told: dict[str, _Pod]
    ) -> None:
        uid = pod.workload.uid
        if told.pop(uid, None) is not None:
            conn.send(pod.workload.delete())
        else:
            told[uid] = pod
            socket.send_fds(conn, [pod.workload.add()], [pod.fd])
        await self._answer(conn, name, uid)

    async def _answer(self, conn: socket.socket, name: str, what: str) -> None:
        async with asyncio.timeout(ANSWER_S):
            error = read_answer(await _receive(conn))
        if error:
            self._warn(f"{name}: {what}: {error}")

    def _warn(self, text: str) -> None:
        if self._lines.admits():
            log.warning("%s: %s", self._path, text)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of protobuf."""
    size, head = len(data), [number << 3 | _BYTES]
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size]) + data


def check_hello(data: bytes) -> None:
    """Check a ZdsHello.

    Raises:
        ProtocolError: it is none, or of another version.
    """
    version = _read(data).get(1)
    if version != VERSION:
        raise ProtocolError(f"it speaks version {version!r}, not {VERSION}")


def read_answer(data: bytes) -> str:
    """Read a WorkloadResponse; return its error, empty if there is none.

    Raises:
        ProtocolError: it is none.
    """
    ack = _read(data).get(1)
    if not isinstance(ack, bytes):
        raise ProtocolError("its answer is none")
    error = _read(ack).get(1, b"")
    if not isinstance(error, bytes):
        raise ProtocolError("its answer's error is no text")
    text = error.decode(errors="replace")
    return "".join(char if char.isprintable() else " " for char in text)


def _read(data: bytes) -> dict[int, bytes | int]:
    """The fields of a message, the last of each number.

    Raises:
        ProtocolError: it is no message of protobuf.
    """
    found: dict[int, bytes | int] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            found[number], at = _varint(data, at)
            continue
        size, at = _varint(data, at) if kind == _BYTES else (_SKIPPED.get(kind, -1), at)
        if size < 0 or size > len(data) - at:
            raise ProtocolError("its message is malformed")
        if kind == _BYTES:
            found[number] = data[at : at + size]
        at += size
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ProtocolError("its message is malformed")


async def _receive(conn: socket.socket) -> bytes:
    """The next message.

    Raises:
        EOFError: the peer is gone.
        OSError: the socket does not work.
    """
    try:
        data = await asyncio.get_running_loop().sock_recv(conn, MAX_ANSWER)
    except ConnectionResetError as error:
        raise EOFError from error
    if not data:
        raise EOFError
    return data


async def _idle(conn: socket.socket, changed: asyncio.Event) -> None:
    """Wait for a change; the peer has nothing to say meanwhile.

    Raises:
        EOFError: it is gone.
        ProtocolError: it says something.
    """
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_receive(conn)), loop.create_task(changed.wait())]
    heard = tasks[0]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if heard.done():
            heard.result()
            raise ProtocolError("it speaks unasked")
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(Exception):
            await asyncio.gather(*tasks, return_exceptions=True)
