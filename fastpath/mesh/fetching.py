"""The process that `fetcher` has what touches certificates done by.

    python -m fastpath.mesh.fetching < REQUESTS > ANSWERS

Both are frames: a length of 4 bytes, little endian, and a pickle. A request is
(number, source, now); an answer is (number, `Plain`), or (number, (what, why, hint)) of
a `FastpathError`. It ends with its input.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

from fastpath.errors import FastpathError
from fastpath.mesh.issued import Plain

if TYPE_CHECKING:
    from datetime import datetime

    from fastpath.mesh.sources import Source

LENGTH: Final = struct.Struct("<I")
_log = logging.getLogger(__name__)


def frame(*parts: object) -> bytes:
    """Put a message into its form."""
    data = pickle.dumps(parts)
    return LENGTH.pack(len(data)) + data


async def read_frame(reader: asyncio.StreamReader) -> tuple[Any, ...]:
    """Wait for a message of the other end, which is a process of ours.

    Raises:
        asyncio.IncompleteReadError: it has ended.
    """
    (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    parts = pickle.loads(await reader.readexactly(size))  # noqa: S301  nobody else's
    assert isinstance(parts, tuple)
    return parts


async def serve(requests: int, answers: int) -> None:
    """Answer requests until they end; several at a time.

    Args:
        requests: a pipe's reading end.
        answers: a pipe's writing end, which is emptied as fast as it is filled.
    """
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    pipe = os.fdopen(requests, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: protocol, pipe
    )
    tasks: set[asyncio.Task[None]] = set()
    try:
        while True:
            number, source, now = await read_frame(reader)
            task = asyncio.create_task(_answer(answers, number, source, now))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except asyncio.IncompleteReadError:
        return
    finally:
        transport.close()
        for task in tasks:
            task.cancel()


async def _answer(answers: int, number: int, source: Source, now: datetime) -> None:
    found: Plain | tuple[str, str, str | None]
    try:
        found = Plain.of(await source.fetch(now))
    except FastpathError as exc:
        found = exc.what, exc.why, exc.hint
    except Exception as exc:
        _log.exception("%s", source)
        found = "certificates", f"{type(exc).__name__}: {exc}", None
    left = memoryview(frame(number, found))
    while left:
        left = left[os.write(answers, left) :]


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # what is to be warned of, others do
    sys.exit(asyncio.run(serve(0, 1)))
