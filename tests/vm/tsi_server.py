"""Servers in a guest, in Python: each connection is told whom the server sees.

    tsi_server.py blocking|asyncio HOST PORT CONNECTIONS

Says `ready PORT`. The line to each client: its address as accept() and getpeername()
have it, and the socket's own name.
"""

from __future__ import annotations

import asyncio
import socket
import sys


def line(accepted, sock):
    names = (accepted, sock.getpeername(), sock.getsockname())
    return " ".join(f"{name[0]}/{name[1]}" for name in names).encode() + b"\n"


def listen(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(128)
    sys.stdout.write(f"ready {sock.getsockname()[1]}\n")
    sys.stdout.flush()
    return sock


def blocking(listener, count):
    for _ in range(count):
        sock, address = listener.accept()
        sock.sendall(line(address, sock))
        sock.close()


async def asynchronous(listener, count):
    done = asyncio.Event()
    served = 0

    async def serve(reader, writer):
        nonlocal served
        sock = writer.get_extra_info("socket")
        writer.write(line(writer.get_extra_info("peername"), sock))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        served += 1
        if served == count:
            done.set()

    await asyncio.start_server(serve, sock=listener)
    await done.wait()


if __name__ == "__main__":
    kind, host, port, count = sys.argv[1:]
    listener = listen(host, int(port))
    if kind == "blocking":
        blocking(listener, int(count))
    else:
        asyncio.run(asynchronous(listener, int(count)))
