"""What Python programs do with TCP: urllib, socket timeouts, selectors, asyncio.

    python3 -m tests.vm.tsi_client IPV4

The peer is as for tsi_client.go, and so is what is printed.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import selectors
import socket
import sys
import threading
import urllib.request

from tests.support.limits import LIMIT_S
from tests.vm import checks

HOST = sys.argv[1] if len(sys.argv) > 1 else "192.0.2.1"
ECHO, HTTP, REFUSING, SILENT = 7007, 8080, 8081, 9999


def check_urllib():
    with urllib.request.urlopen(f"http://{HOST}:{HTTP}/", timeout=LIMIT_S) as answer:
        assert answer.status == 200
        assert answer.read()


def check_http_client_keeps_going():
    for _ in range(5):
        connection = http.client.HTTPConnection(HOST, HTTP, timeout=LIMIT_S)
        connection.request("GET", "/")
        assert connection.getresponse().read()
        connection.close()


def check_create_connection():
    with socket.create_connection((HOST, ECHO), timeout=LIMIT_S) as sock:
        assert sock.getpeername() == (HOST, ECHO)
        assert sock.getsockname()[0] != "0.0.0.0"
        sock.sendall(b"ping")
        assert sock.recv(4, socket.MSG_WAITALL) == b"ping"


def check_refused():
    for timeout in (None, LIMIT_S):
        try:
            socket.create_connection((HOST, REFUSING), timeout=timeout)
        except ConnectionRefusedError:
            continue
        raise AssertionError(timeout)


def check_unreachable():
    with socket.socket() as sock:
        assert sock.connect_ex(("198.51.100.1", 80)) == errno.EHOSTUNREACH


def check_timeout():
    try:
        socket.create_connection((HOST, SILENT), timeout=0.3)
    except TimeoutError:
        return
    raise AssertionError


def check_selectors_before_connect():
    with socket.socket() as sock, selectors.DefaultSelector() as selector:
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_WRITE)
        assert sock.connect_ex((HOST, ECHO)) == errno.EINPROGRESS
        assert selector.select(LIMIT_S)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.connect_ex((HOST, ECHO)) == 0
        assert sock.connect_ex((HOST, ECHO)) == errno.EISCONN


def check_asyncio_100():
    async def one(number):
        reader, writer = await asyncio.open_connection(HOST, ECHO)
        message = b"%d" % number * 100
        for _ in range(3):
            writer.write(message)
            await writer.drain()
            assert await reader.readexactly(len(message)) == message
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    async def main():
        await asyncio.gather(*(one(i) for i in range(100)))

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def check_asyncio_refused_and_unreachable():
    async def main():
        for address, number in (
            ((HOST, REFUSING), errno.ECONNREFUSED),
            (("198.51.100.1", 80), errno.EHOSTUNREACH),
        ):
            try:
                await asyncio.open_connection(*address)
            except OSError as error:
                found = error.errno
            else:
                found = 0
            assert found == number, address

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def check_server_on_loopback():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(10))

        thread = threading.Thread(target=serve)
        thread.start()
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as sock:
            sock.sendall(b"inside")
            assert sock.recv(10) == b"inside"
        thread.join()


def check_large_upload_and_download():
    data = bytes(range(256)) * 8192
    with socket.create_connection((HOST, ECHO), timeout=LIMIT_S) as sock:
        thread = threading.Thread(target=sock.sendall, args=(data,))
        thread.start()
        back = bytearray()
        while len(back) < len(data):
            piece = sock.recv(1 << 20)
            assert piece
            back += piece
        thread.join()
    assert back == data


if __name__ == "__main__":
    sys.exit(checks.run(globals()))
