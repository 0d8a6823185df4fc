"""The proxy that comparisons hand connections to, and what it passes them on to."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading

from fastpath.commands.compare.sandboxes import NEAR, proxy_program
from tests.support.limits import LIMIT_S

SERVICE = "198.18.0.2"


@contextlib.contextmanager
def running(*kind_and_path, wrap=list, service=SERVICE, server="127.0.0.1"):
    """Run it until this is left; `wrap` makes its command line another."""
    reader, writer = os.pipe()
    argv = [str(proxy_program()), str(writer), NEAR, service, server]
    argv = wrap([*argv, *map(str, kind_and_path)])
    process = subprocess.Popen(argv, pass_fds=[writer], stderr=subprocess.PIPE)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as ready:
            if ready.readline() != b"\n":
                raise AssertionError(process.communicate(timeout=LIMIT_S)[1])
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT_S)


@contextlib.contextmanager
def echoing(make=socket.socket, address=("127.0.0.1", 0)):
    """Echo the bytes of each client in turn; yields the port."""
    with make(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen()

        def serve():
            while True:
                try:
                    client = listener.accept()[0]
                except OSError:
                    return
                with client:
                    while data := client.recv(65536):
                        client.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(LIMIT_S)


def exchange(client, data):
    """Send, half-close; return all that comes until the end."""
    client.settimeout(LIMIT_S)
    sender = threading.Thread(target=_send, args=(client, data))
    sender.start()
    came = bytearray()
    while more := client.recv(65536):
        came += more
    sender.join(LIMIT_S)
    return bytes(came)


def _send(client, data):
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
