"""A guest without an agent: it writes control bytes and vsock packets by itself.

Spec: docs/tsi-protocol.md, section 3 "Messages".
"""

from __future__ import annotations

import asyncio
import struct
from ipaddress import ip_address

from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel.model import Config, Fastpath, Sandbox, Workload
from fastpath.ztunnel.process import Ztunnel
from tests.support.limits import LIMIT_S, until
from vhost_user.vsock.driver import VsockGuest
from vhost_user.vsock.packet import Op

TIMEOUT_S = LIMIT_S
TSI_PORT = 21587
WELCOME, REFUSED, FAILED = 2, 3, 5
ECHO = ("198.18.0.1", 7)


def message(kind, payload, size=None):
    """A message; `size` lies about its payload."""
    return struct.pack("<HH", kind, len(payload) if size is None else size) + payload


def hello(low=1, high=1, magic=0x41495354):
    return message(1, struct.pack("<IHH", magic, low, high))


def route(token, destination, family=None):
    address = ip_address(destination[0])
    packed = address.packed.ljust(16, b"\0")
    family = address.version if family is None else family
    return message(4, struct.pack("<IHH", token, family, destination[1]) + packed)


class Stream:
    """A control stream, from the guest's side."""

    def __init__(self, guest):
        self.conn = guest.connect_privileged(TSI_PORT)
        self._bytes = b""

    def send(self, data):
        self.conn.send(data)

    def receive(self):
        """The next message: type and payload."""
        head = self._read(4)
        kind, size = struct.unpack("<HH", head)
        return kind, self._read(size)

    def greet(self):
        """Say HELLO; return the first token."""
        self.send(hello())
        kind, payload = self.receive()
        assert kind == WELCOME
        return struct.unpack_from("<I", payload, 4)[0]

    def refused(self):
        """The code and text of REFUSED, and the end of the stream."""
        kind, payload = self.receive()
        assert kind == REFUSED
        self.conn.expect(Op.SHUTDOWN, Op.RST)
        return struct.unpack_from("<I", payload)[0], payload[4:].decode("ascii")

    def _read(self, size):
        while len(self._bytes) < size:
            packet = self.conn.expect(Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST)
            self._bytes += packet.payload
        data, self._bytes = self._bytes[:size], self._bytes[size:]
        return data


class Guest:
    """A guest with one control stream that was welcomed."""

    def __init__(self, sandbox):
        self.guest = VsockGuest(sandbox.socket, cid=sandbox.cid)
        self.control = Stream(self.guest)
        self.token = self.control.greet()
        self._tokens = {}

    def request(self, destination):
        """Ask for a connection, with one token for each destination."""
        if destination not in self._tokens:
            self._tokens[destination] = self.token
            self.control.send(route(self.token, destination))
            self.token += 1
        return self.guest.request(self._tokens[destination])

    def connect(self, destination):
        conn = self.request(destination)
        conn.expect(Op.RESPONSE)
        return conn

    def echoes(self, conn=None, data=b"ping"):
        """Send and get it back, on a new connection to the echo address or `conn`."""
        conn = conn or self.connect(ECHO)
        conn.send(data)
        assert conn.receive_bytes(len(data)) == data
        return conn

    def failed(self):
        """The errno of the next FAILED."""
        kind, payload = self.control.receive()
        assert kind == FAILED
        return struct.unpack("<III", payload)[2]

    def refused(self, destination):
        """The errno of a refused connect."""
        self.request(destination).expect(Op.RST)
        return self.failed()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.guest.close()


def config(tmp_path, *, policy=None, egress=None):
    """Two sandboxes, `a` with a policy or rules, `b` with the default policy."""
    names = ("a", "b")
    workloads = tuple(
        Workload(
            workload_ips=(ip_address(f"10.0.0.{2 + i}"),),
            namespace="default",
            name=name,
            service_account=name,
        )
        for i, name in enumerate(names)
    )
    sandboxes = tuple(
        Sandbox(
            name=name,
            workload=f"default/{name}",
            socket=tmp_path / f"{name}.sock",
            cid=3 + i,
            policy=policy if name == "a" else None,
            egress=egress if name == "a" else Egress() if name == "b" else None,
        )
        for i, name in enumerate(names)
    )
    own = Fastpath(
        sandboxes=sandboxes,
        echo=ip_address(ECHO[0]),
        access_log=tmp_path / "access.log",
    )
    return Config(workloads=workloads, fastpath=own)


async def settled(ztunnel):
    """Wait until the guests that left are forgotten, and all heard of it."""
    backends = [sandbox.backend for sandbox in ztunnel.sandboxes.values()]
    await until(lambda: not any(each.connected.is_set() for each in backends))
    for engine in ztunnel._engines:
        engine.deliver()


def run(there, play):
    """Run `play(ztunnel)` on a thread beside the process; return the access log."""

    async def main():
        async with asyncio.timeout(TIMEOUT_S), Ztunnel(there) as ztunnel:
            await asyncio.to_thread(play, ztunnel)
            await settled(ztunnel)

    asyncio.run(main())
    return there.fastpath.access_log.read_text().splitlines()


def sample(ztunnel, name, **labels):
    """One counter's value."""
    return ztunnel.metrics.registry().get_sample_value(name, labels) or 0
