"""A pool of ours in the namespace of Istio's ztunnel: an echo through its HBONE port.

    python -m tests.netns.hbone_peer FOLDER PEER

FOLDER has chain.pem, key.pem and roots.pem; PEER is ztunnel's identity.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from pathlib import Path

from vhost_user.engine import Engine, EventKind, Hbone
from vhost_user.hbone import Headers, Pool, Reason, Tls

DATA = bytes(range(256)) * 8192  # 2 MiB


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def on_event(event):
    if event.kind in {EventKind.FAILED, EventKind.TUNNEL}:
        name = errno.errorcode.get(event.error, "0")
        say(f"{event.kind.name} {Reason(event.reason).name} {name}")


def way(engine, pool, port):
    """Listen for clients of a stream to a port of ztunnel's workload."""
    headers = Headers(engine, authority=f"127.0.0.1:{port}", baggage="k=v")
    sock = socket.create_server(("127.0.0.1", 0))
    name = sock.getsockname()
    engine.add_listener(sock, Hbone(pool.id, headers.id), on_event=on_event)
    return name


async def through(address):
    """Send and read at once, then end; return what came back."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(DATA)
    writer.write_eof()
    data = await reader.read(-1)
    writer.close()
    return data


async def refused(address):
    """Connect, and wait for the end; return whether that is a reset."""
    try:
        reader, _ = await asyncio.open_connection(*address)
        await reader.read(1)
    except ConnectionResetError:
        return True
    return False


async def main(folder, peer):
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pem = {
        name: (folder / f"{name}.pem").read_bytes()
        for name in ("chain", "key", "roots")
    }
    async with Engine(poll_us=0) as engine:
        tls = Tls(engine, **pem)
        pool = Pool(engine, tls, ("127.0.0.1", 15008), [peer], on_event=on_event)
        address = way(engine, pool, port)
        for _ in range(3):
            assert await through(address) == DATA
        say(f"echoed over {pool.stats().opened} tunnel")
        assert await refused(way(engine, pool, 1))
        say("refused")
        other = Pool(engine, tls, ("127.0.0.1", 15008), [peer + "x"], on_event=on_event)
        assert await refused(way(engine, other, port))
        say(f"not {other.failed_peer()}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
