"""What Python programs do with UDP and names.

    python3 -m tests.vm.udp_client IPV4

The peer is as for udp/main.c; names are test_tsi_udp.py's.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from tests.support.limits import LIMIT_S as WAIT_S
from tests.vm import checks

HOST = sys.argv[1]
ECHO, OTHER = 7007, 7008


def addresses(name):
    found = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
    return {address[0] for *_, address in found}


def check_service_names():
    for name in (
        "web",
        "web.default",
        "web.default.svc",
        "WEB.default.svc.cluster.local",
    ):
        assert addresses(name + ".") == {"10.96.0.10"}, name
    assert addresses("db.default.svc.cluster.local") == {"192.0.2.1", "2001:db8::1"}


def check_forwarded_names():
    assert addresses("one.example") == {"192.0.2.1", "2001:db8::1"}


def check_answers_too_large_for_udp():
    assert addresses("big.example") == {f"10.1.0.{i}" for i in range(100)}


def check_names_that_are_nobodys():
    for name in ("no.example", "web.other.svc.cluster.local"):
        try:
            addresses(name)
        except socket.gaierror as error:
            if error.errno == socket.EAI_NONAME:
                continue
            raise
        raise AssertionError(name)


def check_connected():
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(WAIT_S)
        sock.connect((HOST, ECHO))
        assert sock.getpeername() == (HOST, ECHO)
        for size in (1, 1400, 60000):
            sock.send(bytes(size))
            assert sock.recv(65536) == bytes(size)


def check_unconnected():
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(WAIT_S)
        for port in (ECHO, OTHER, ECHO):
            sock.sendto(b"%d" % port, (HOST, port))
            assert sock.recvfrom(100) == (b"%d" % port, (HOST, port))


def check_asyncio():
    class Client(asyncio.DatagramProtocol):
        def __init__(self):
            self.got: asyncio.Queue[object] = asyncio.Queue()

        def datagram_received(self, data, addr):
            self.got.put_nowait((data, addr))

    async def main():
        loop = asyncio.get_running_loop()
        for remote in ((HOST, ECHO), None):
            transport, client = await loop.create_datagram_endpoint(
                Client, remote_addr=remote, family=socket.AF_INET
            )
            for i in range(20):
                transport.sendto(b"%d" % i, remote or (HOST, OTHER))
            async with asyncio.timeout(WAIT_S):
                got = [await client.got.get() for _ in range(20)]
            assert got == [(b"%d" % i, remote or (HOST, OTHER)) for i in range(20)]
            transport.close()

    asyncio.run(main())


if __name__ == "__main__":
    sys.exit(checks.run(globals()))
