"""Network devices, namespaces and families of addresses, to sockets of tsi_inet."""

from __future__ import annotations

import asyncio
import functools
from typing import ClassVar

import pytest

from tests.support.limits import until
from tests.vm.world import (
    ECHO,
    HOST4,
    HOST6,
    HTTP,
    POD6,
    ServiceWorld,
    open_world,
)

pytestmark = pytest.mark.vm

LISTENED = 7292
PRELUDE = """
import errno, socket, sys

def result(call, *arguments):
    try:
        return call(*arguments)
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode[error.errno]

def bound(device, family=socket.AF_INET, timeout_s=None):
    sock = socket.socket(family)
    sock.settimeout(timeout_s)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    return sock

V4, V6 = socket.AF_INET, socket.AF_INET6
"""


class EchoProtocol(asyncio.DatagramProtocol):
    """Sends each datagram back."""

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, data, addr):
        self._transport.sendto(data, addr)


class World(ServiceWorld):
    """One VM, with echoes of datagrams on the host, too."""

    async def start(self, stack):
        await super().start(stack)
        loop = asyncio.get_running_loop()
        for host in (HOST4, HOST6):
            transport, _ = await loop.create_datagram_endpoint(
                EchoProtocol, local_addr=(host, ECHO)
            )
            stack.callback(transport.close)


class V6World(World):
    """One whose pod has an IPv6 address only."""

    addresses: ClassVar[tuple[str, ...]] = (POD6,)


@pytest.fixture(scope="module")
def world(request, apps_image, accelerator, namespace):
    kind = getattr(request, "param", World)
    with open_world(apps_image, accelerator, {}, namespace, kind=kind) as there:
        yield there


def python(world, script, **options):
    status, said = world.run("python3", "-c", PRELUDE + script, **options)
    assert status == 0, said
    return said.split()


def test_a_socket_bound_to_the_way_out_connects(world):
    script = f"""
print(result(bound(b"tsi0").connect, ("{HOST4}", {HTTP})))
print(result(bound(b"tsi0", V6).connect, ("{HOST6}", {HTTP})))
"""
    assert python(world, script) == ["None", "None"]


def test_a_socket_bound_to_another_device_does_not_get_out(world):
    """As with TCP, which sends on the device, or knows no way there."""
    script = f"""
print(result(bound(b"lo", timeout_s=2).connect, ("{HOST4}", {HTTP})))
print(result(bound(b"lo", V6).connect, ("{HOST6}", {HTTP})))
server = socket.create_server(("127.0.0.1", 0))
print(result(bound(b"lo").connect, server.getsockname()))
print(result(bound, b"no"))
"""
    assert python(world, script) == ["timeout", "ENETUNREACH", "None", "ENODEV"]


def test_a_listener_bound_to_another_device_is_not_published(world):
    script = f"""
for device in (b"lo", b"tsi0"):
    server = bound(device)
    server.bind(("0.0.0.0", {LISTENED}))
    server.listen()
    print(device.decode(), flush=True)
    sys.stdin.readline()
    server.close()
"""
    machine, guest = world.vm()

    async def announced():
        stdin, heard = asyncio.StreamReader(), bytearray()
        run = asyncio.create_task(
            guest.run(
                ["python3", "-c", PRELUDE + script],
                tsi=True,
                stdin=stdin,
                stdout=heard.extend,
                stderr=heard.extend,
            )
        )
        counts = []
        for device in (b"lo\n", b"tsi0\n"):
            await until(functools.partial(heard.endswith, device))
            counts.append(world.service.stats().listeners)
            stdin.feed_data(b"\n")
        assert await machine.watch(run) == 0, heard.decode()
        return counts

    assert world.call(announced()) == [0, 1]


def test_what_proc_shows_is_the_guests_own(world):
    """Listeners are TCP's; a connection to outside is vsock's alone."""
    script = f"""
import pathlib
server = socket.create_server(("0.0.0.0", {LISTENED}))
out = socket.create_connection(("{HOST4}", {ECHO}))
inside = socket.create_connection(("127.0.0.1", {LISTENED}))
lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
rows = [line.split() for line in lines]
port = "{LISTENED:04X}"
print(*[row[3] for row in rows if row[1].endswith(":" + port)][:1])
print(sum(row[2].endswith(":" + port) for row in rows))
print(sum(row[2].endswith(":{ECHO:04X}") for row in rows))
"""
    assert python(world, script) == ["0A", "1", "0"]


def test_datagrams_of_another_network_namespace_find_no_way(world):
    """As in any namespace that nobody gave a device."""
    script = f"""
sock = socket.socket(V4, socket.SOCK_DGRAM)
print(result(sock.sendto, b"x", ("{HOST4}", {ECHO})))
"""
    command = ["unshare", "-n", "python3", "-c", PRELUDE + script]
    assert world.run(*command) == (0, "ENETUNREACH\n")
    assert python(world, script) == ["1"]


@pytest.mark.parametrize("world", [V6World], indirect=True, ids=["IPv6"])
def test_a_pod_with_an_ipv6_address_only_reaches_ipv6(world):
    script = f"""
for family, host in ((V6, "{HOST6}"), (V4, "{HOST4}"), (V6, "::ffff:{HOST4}")):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        sock = socket.socket(family, kind)
        print(result(sock.connect, (host, {ECHO})))
        if family == V6 and ":ffff" not in host:
            print(sock.getsockname()[0], result(sock.send, b"x"), sock.recv(1) == b"x")
"""
    assert python(world, script) == [
        *("None", POD6, "1", "True"),
        *("None", POD6, "1", "True"),
        *["ENETUNREACH"] * 4,
    ]
