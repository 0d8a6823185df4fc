"""Pods' network namespaces, servers in them, and sandboxes whose pods they are.

All addresses of a pod's namespace are of its `lo`; nothing else reaches them.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from fastpath.datapath.netns import Namespace
from fastpath.ztunnel.model import Config, Fastpath, Sandbox, Workload
from tests.support.limits import LIMIT_S
from tests.unit.fastpath.tsi_guest import Guest

POD4, POD6 = "10.0.0.5", "fd00::5"
SERVER4, SERVER6 = "10.0.1.1", "fd00:1::1"
NETWORK = f"""
ip link set lo up
for each in {POD4} 10.0.0.6 {SERVER4}; do ip addr add $each/32 dev lo; done
for each in {POD6} fd00::6 {SERVER6}; do ip addr add $each/128 dev lo nodad; done
ip route add prohibit 198.51.100.1
"""
PUBLISHED = 8080
POLICY = f'published: ["{PUBLISHED}"]\nudp: true\n'
LISTENER = 0x100050
LISTEN = struct.pack("<IIHHHH16s", LISTENER, 5, PUBLISHED, 6, 0, 0, bytes(16))
DATAGRAM_PORT = 21588


def pod():
    """A namespace with the addresses; it goes away when it is closed."""
    namespace = Namespace()
    subprocess.run(namespace.command(["sh", "-ec", NETWORK]), check=True)
    return namespace


class Echo:
    """A server in a namespace that sends back what it gets, and keeps its peers."""

    def __init__(self, namespace, host=SERVER4, port=0):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = namespace.socket(family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(512)
        self.address = self._listener.getsockname()[:2]
        self.peers = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, peer = self._listener.accept()
                self.peers.append(peer[0])
                threading.Thread(target=self._echo, args=(client,), daemon=True).start()

    def _echo(self, client):
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)
            client.sendall(b"bye")  # the other direction is open still

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(LIMIT_S)


class NameServer:
    """Says 192.0.2.7 to each question, by UDP and TCP, and keeps who asked."""

    def __init__(self, namespace, host=SERVER4, port=53):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.peers = []
        self._udp = namespace.socket(family, socket.SOCK_DGRAM)
        self._udp.bind((host, port))
        self._tcp = namespace.socket(family)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((host, port))
        self._tcp.listen()
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def _serve_udp(self):
        with contextlib.suppress(OSError):
            while True:
                query, peer = self._udp.recvfrom(4096)
                self.peers.append(("udp", peer[0]))
                self._udp.sendto(answer(query), peer)

    def _serve_tcp(self):
        with contextlib.suppress(OSError):
            while True:
                client, peer = self._tcp.accept()
                with client:
                    self.peers.append(("tcp", peer[0]))
                    said = answer(client.recv(4096)[2:])
                    client.sendall(struct.pack("!H", len(said)) + said)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._tcp.shutdown(socket.SHUT_RDWR)
        for sock in (self._udp, self._tcp):
            sock.close()


def query(name, number=0x1234):
    """A question for A records (RFC 1035 section 4)."""
    labels = b"".join(bytes([len(it)]) + it.encode() for it in name.split("."))
    head = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0)
    return head + labels + b"\0" + struct.pack("!HH", 1, 1)


def answer(asked):
    """The same with one record; what is behind the question (EDNS) is left out."""
    end = asked.index(b"\0", 12) + 5
    head = asked[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
    record = struct.pack("!HHHIH4B", 0xC00C, 1, 1, 60, 4, 192, 0, 2, 7)
    return head + asked[12:end] + record


def sandboxes(tmp_path, **paths):
    """A configuration: sandboxes by name, each with the path of its namespace.

    Each has addresses of its own; the first ones are those of `POD4`.
    """
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    workloads, found = [], []
    for index, (name, path) in enumerate(paths.items()):
        ips = tuple(ip_address(ip) + index for ip in (POD4, POD6))
        workloads.append(Workload(workload_ips=ips, namespace="default", name=name))
        found.append(
            Sandbox(
                name=name,
                workload=f"default/{name}",
                socket=tmp_path / f"{name}.sock",
                cid=3 + index,
                policy=policy,
                netns=Path(path) if path else None,
            )
        )
    own = Fastpath(sandboxes=tuple(found), access_log=tmp_path / "access.log")
    return Config(workloads=tuple(workloads), fastpath=own)


def sandbox(ztunnel, name="box"):
    """A guest in user space, in place of a sandbox's VM."""
    return Guest(next(s for s in ztunnel.config.fastpath.sandboxes if s.name == name))


def makers(ztunnel):
    """The processes in namespaces."""
    return [each.pid for each in ztunnel._pods._namespaces.values()]


def with_ips(there, *ips):
    """The same, its one sandbox's pod has other addresses."""
    (workload,) = there.workloads
    found = tuple(map(ip_address, ips))
    return replace(there, workloads=(replace(workload, workload_ips=found),))


def is_over(pid):
    """Whether a process has ended and is reaped."""
    return not Path(f"/proc/{pid}").exists()
