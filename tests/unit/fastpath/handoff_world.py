"""Other proxies, written by hand, and sandboxes whose connections go to them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from fastpath.ztunnel.model import Handoff, ListenAddress
from tests.support.limits import LIMIT_S
from tests.unit.fastpath.tsi_guest import config

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
POD = "10.0.0.2"


def handed(tmp_path, handoff, **more):
    """`config()`, whose sandbox `a` has a hand-off."""
    there = config(tmp_path, **more)
    first, *others = there.fastpath.sandboxes
    sandboxes = (replace(first, handoff=handoff), *others)
    return replace(there, fastpath=replace(there.fastpath, sandboxes=sandboxes))


class Proxy:
    """Reads what precedes the bytes, and echoes them. `said`: of each connection."""

    def __init__(self, family, address):
        self._listener = socket.socket(family)
        self._listener.bind(address)
        self._listener.listen()
        self.address = self._listener.getsockname()
        self.said = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def hear(self, client):
        raise NotImplementedError

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, client):
        client.settimeout(LIMIT_S)
        with client:
            self.said.append(self.hear(client))
            with contextlib.suppress(ConnectionResetError):
                while data := client.recv(65536):
                    client.sendall(data)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if isinstance(self.address, str):
            Path(self.address).unlink()
        for thread in self._threads:
            thread.join(LIMIT_S)


class Server(Proxy):
    """What connections go on to: nothing precedes their bytes."""

    def __init__(self):
        super().__init__(socket.AF_INET, ("127.0.0.1", 0))

    def hear(self, client):
        return client.getpeername()


class HeaderReader(Proxy):
    """What Envoy's proxy_protocol filter does; says source, destination, TLVs."""

    def __init__(self, tmp_path):
        super().__init__(socket.AF_UNIX, str(tmp_path / "proxy"))
        self.handoff = Handoff(unix=tmp_path / "proxy")

    def hear(self, client):
        head = exactly(client, 16)
        assert head[:13] == SIGNATURE + b"\x21"
        size = {0x11: 4, 0x21: 16}[head[13]]
        rest = exactly(client, struct.unpack("!H", head[14:])[0])
        ips = [str(ip_address(rest[at : at + size])) for at in (0, size)]
        ports = struct.unpack_from("!HH", rest, 2 * size)
        return [*zip(ips, ports, strict=True), fields(rest[2 * size + 4 :])]


class Socks5(Proxy):
    """Grants all; says the destination."""

    def __init__(self, tmp_path=None, reply=0):
        super().__init__(socket.AF_INET, ("127.0.0.1", 0))
        self.reply = reply
        host, port = self.address
        self.handoff = Handoff(socks5=ListenAddress(ip_address(host), port))

    def hear(self, client):
        assert exactly(client, 6) == bytes([5, 1, 0, 5, 1, 0])
        size = {1: 4, 4: 16}[exactly(client, 1)[0]]
        there = str(ip_address(exactly(client, size)))
        (port,) = struct.unpack("!H", exactly(client, 2))
        client.sendall(bytes([5, 0, 5, self.reply, 0, 1, 0, 0, 0, 0, 0, 0]))
        return there, port


def exactly(client, size):
    data = client.recv(size, socket.MSG_WAITALL)
    assert len(data) == size
    return data


def fields(data):
    """TLVs by type."""
    found = {}
    while data:
        kind, size = struct.unpack_from("!BH", data)
        found[kind] = data[3 : 3 + size]
        data = data[3 + size :]
    return found
