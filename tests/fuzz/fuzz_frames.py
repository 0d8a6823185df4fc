"""Anything at all where a guest or a client on the host is read by a parser in Python.

libFuzzer's bytes, through Atheris, are what init's stream brings while a command runs
(`fastpath.vm.execstream`), a hybrid socket's CONNECT line in pieces, or messages of an
agent cut anywhere.

What must hold: each costs a bounded CPU time; init's stream ends the command with a
status or with the error that a user may see, and nothing else is raised; what is shown
of a guest's words is text; it doesn't matter where bytes are cut.

`run.py` starts it.
"""

from __future__ import annotations

import asyncio
import struct

import atheris

with atheris.instrument_imports(include=["fastpath", "vhost_user"]):
    from fastpath.errors import FastpathError
    from fastpath.tsi import datagram_protocol, protocol
    from fastpath.vm import execstream
    from vhost_user.errors import ClientError
    from vhost_user.vsock.hybrid import MAX_LINE, ConnectLine

from tests.fuzz.budget import Budget
from tests.fuzz.input import fuzz

READY = struct.pack("<I", 3) + b"6.1\0tsc\0module\0"
WAIT_S = 20


class Nowhere:
    """Where what is sent to the guest goes."""

    def write(self, data):
        pass

    async def drain(self):
        pass

    def is_closing(self):
        return False

    def close(self):
        pass


def stream_of(first, data):
    """The host's end of a stream that brings a READY frame and `data`, then its end."""
    reader = asyncio.StreamReader()
    frame = struct.pack("<II", execstream.Frame.READY, len(first)) + first
    reader.feed_data(frame + data)
    reader.feed_eof()
    return execstream.ExecStream(reader, Nowhere())  # type: ignore[arg-type]


async def run_command(data):
    """Have a command run while a guest sends `data`; see what comes of it."""
    stream = stream_of(READY, data)
    command = stream.start(b"", stdin=None, stdout=lambda _: None, stderr=None)
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait({command})
        info = await stream.ready
    assert (info.kernel, info.clocksource, info.sockets) == ("6.1", "tsc", "module")
    error = command.exception()
    if error is None:
        assert 0 <= command.result() <= 255
        return
    assert isinstance(error, FastpathError)
    assert str(error).isprintable()
    assert len(str(error)) <= 2 * execstream.TEXT_MAX


async def say_who_it_is(data):
    """Have a guest send `data` before it is ready."""
    stream = stream_of(data, b"")
    try:
        info = await stream.ready
    except execstream.GuestGoneError:
        return
    assert (info.kernel + info.clocksource + info.sockets).isprintable()


def connect_line(data):
    """Read a CONNECT line in pieces of every size; return the port or None."""
    results: list[tuple[int, bytes] | None] = []
    for size in (1, 2, 5, MAX_LINE):
        line, rest, port = ConnectLine(), data, None
        try:
            while port is None:
                peeked = rest[: min(line.room, size)]
                wanted = line.wanted(peeked)
                port = line.feed(rest[:wanted])
                rest = rest[wanted:]
        except ClientError:
            results.append(None)
        else:
            assert 0 <= port < 2**32 - 1
            results.append((port, rest))
    assert all(result == results[0] for result in results), results


def messages(data):
    """Read an agent's messages in one piece, in pieces, and stopping after each."""
    for made in (protocol.Decoder, datagram_protocol.DatagramDecoder):
        pieces = [data[i : i + 7] for i in range(0, len(data), 7)]
        whole = decoded(made(), [data])
        assert decoded(made(), pieces) == whole
        assert decoded(made(), [data, *[b""] * len(whole[0])], stop=True) == whole


def decoded(decoder, pieces, *, stop=False):
    found = []
    try:
        for piece in pieces:
            for message in decoder.feed(piece):
                found.append(message)
                if stop:
                    break
    except protocol.ProtocolError as error:
        return found, error.code, error.text
    return found, None, ""


class Target:
    """What is made once, for all inputs."""

    def __init__(self):
        self.budget = Budget()
        self.loop = asyncio.new_event_loop()

    def __call__(self, data):
        """Run one input."""
        kind, rest = data[:1], data[1:]
        with self.budget.measured():
            match ord(kind or b"\0") % 4:
                case 0:
                    self.loop.run_until_complete(run_command(rest))
                case 1:
                    self.loop.run_until_complete(say_who_it_is(rest))
                case 2:
                    connect_line(rest)
                case _:
                    messages(rest)


def seeds():
    """Yield inputs that reach each parser."""

    def frame(kind, payload):
        return struct.pack("<II", kind, len(payload)) + payload

    yield b"\0" + frame(17, b"out") + frame(18, b"err") + frame(19, bytes(4))
    yield b"\0" + frame(21, b"\xff" * 4) * 3 + frame(19, b"\0\1\0\0")
    yield b"\0" + frame(20, b"\x1b[2J failed")
    yield b"\0" + frame(17, b"") * 300
    yield b"\1" + READY
    yield b"\2CONNECT 1024\nrest"
    yield b"\2connect 4294967294\n"
    hello = struct.pack("<HHIHH", 1, 8, 0x41495354, 1, 1)
    yield b"\3" + hello + struct.pack("<HHIHH16s", 4, 24, 65536, 4, 80, b"\x0a\0\0\1")
    yield b"\3" + hello + struct.pack("<HHHHI", 35, 12, 4000, 0, 1) + b"data"


def main():
    fuzz(Target(), seeds())


if __name__ == "__main__":
    main()
