"""Peers of a mesh, by `ssl` and python-h2, and a sandbox that they reach by HBONE.

The whole process runs, with its real engine; the guest is one in user space, whose
side of the control stream is written out by hand, from docs/tsi-protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from ipaddress import ip_address

from fastpath.identity import Identity
from fastpath.ztunnel.istio import file as istio
from fastpath.ztunnel.model import (
    CertificateFiles,
    Certificates,
    Config,
    Fastpath,
    Sandbox,
)
from fastpath.ztunnel.process import Ztunnel
from fastpath.ztunnel.reload import Mesh
from tests.conformance.peers import GoneError, Peer
from tests.support import pki
from tests.support.limits import LIMIT_S
from tests.unit.fastpath.tsi_guest import Stream, settled
from vhost_user.vsock.driver import Connection, VsockGuest
from vhost_user.vsock.packet import Op, Shutdown

HBONE = 15008
DATA = bytes(range(256)) * 1024
WEB = "spiffe://cluster.local/ns/default/sa/web"
CLIENT = "spiffe://cluster.local/ns/default/sa/client"
FIRST_LISTENER = 0x100000
LISTENING, CALLER, INTRODUCED = 17, 18, 20
_ID = os.getpid()
POD = f"127.{1 + _ID % 250}.{1 + (_ID >> 8) % 250}.9"
"""Of lo, as all of 127.0.0.0/8 is; each process of a test run has its own."""
PEER = "127.0.0.2"
WORKLOADS = f"""
workloads:
- {{uid: web, name: web, namespace: default, serviceAccount: web, protocol: HBONE,
   workloadName: web-v1, clusterId: c1, canonicalName: web, workloadType: deployment,
   trustDomain: cluster.local, workloadIps: [{POD}],
   services: {{default/web.default: {{80: 8080}}}}}}
- {{uid: client, name: client-1, namespace: default, serviceAccount: client,
   trustDomain: cluster.local, workloadName: client, workloadIps: [{PEER}],
   services: {{}}}}
services:
- {{name: web, namespace: default, hostname: web.default, vips: [/10.96.0.1],
   ports: {{80: 80}}}}
"""


def policy(name, rules, action="Deny", dry="false"):
    """One of Istio's, for the sandbox."""
    head = f"name: {name}, namespace: default, scope: Namespace, action: {action}"
    return f"- {{{head}, dryRun: {dry}, rules: {rules}}}\n"


HERE = f"{POD}:8080"
STRANGER = "spiffe://cluster.local/ns/other/sa/stranger"
DENIES = policy("strangers", "[[[{namespaces: [!Exact other]}]]]")
"""Those of another namespace."""


class World:
    """A process with one sandbox, and what is around it.

    Args:
        folder: of the test.
        mesh: Istio's file.
        published: what the sandbox's policy publishes.
        sandbox: more of its settings.
        own: more of the process's.
    """

    def __init__(
        self, folder, mesh=WORKLOADS, *, published="8080", sandbox=None, **own
    ):
        self.folder = folder
        self.ca = pki.Ca()
        self.policy = folder / "policy.yaml"
        self.policy.write_text(f'published: ["{published}"]\n')
        self.crls = folder / "crls.pem"
        self._leaf(folder / "web", self.ca.issue(WEB))
        files = CertificateFiles(identity=Identity.parse(WEB), directory=folder / "web")
        box = Sandbox(
            name="box",
            workload="web",
            socket=folder / "s",
            cid=3,
            policy=self.policy,
            **(sandbox or {}),
        )
        settings = {
            "sandboxes": (box,),
            "certificates": Certificates(files=(files,), crls=self.crls),
            "access_log": folder / "access.log",
            "drain_s": 1,
        }
        self._own = Fastpath(**(settings | own))
        self.config = self._config(mesh)
        self._kept = contextlib.ExitStack()
        self.ztunnel: Ztunnel
        self._loop: asyncio.AbstractEventLoop

    def _config(self, mesh):
        file, _ = istio.parse(mesh.encode(), "mesh.yaml")
        return Config(
            workloads=file.workloads,
            services=file.services,
            policies=file.policies,
            fastpath=self._own,
        )

    def _leaf(self, folder, leaf):
        folder.mkdir(exist_ok=True)
        (folder / "cert-chain.pem").write_bytes(leaf.chain)
        (folder / "root-cert.pem").write_bytes(self.ca.roots)
        key = folder / "key.pem"
        key.touch(0o600)
        key.write_bytes(leaf.key)

    def run(self, play):
        """Run `play(world)` on a thread beside the process; return the log's lines."""

        async def main():
            self._loop = asyncio.get_running_loop()
            async with asyncio.timeout(LIMIT_S), Ztunnel(self.config) as self.ztunnel:
                try:
                    await asyncio.to_thread(play, self)
                finally:
                    self._kept.close()
                await settled(self.ztunnel)
                self.metrics = self.ztunnel.metrics.text().decode()

        asyncio.run(main())
        return (self.folder / "access.log").read_text().splitlines()

    def call(self, function, *args):
        """Call in the process's loop."""

        async def do():
            return function(*args)

        return asyncio.run_coroutine_threadsafe(do(), self._loop).result(LIMIT_S)

    def renew(self):
        """Have another certificate in the sandbox's files."""
        self._leaf(self.folder / "web", self.ca.issue(WEB))

    def set_mesh(self, text):
        """Have another content of Istio's file."""
        self.call(self.ztunnel._set_mesh, Mesh.of(self._config(text)))

    def deliver(self):
        """Let the events that there are reach their handlers."""
        for engine in self.ztunnel._engines:
            self.call(engine.deliver)

    def sample(self, name, **labels):
        """One counter's value; its other labels are any."""
        total = 0.0
        for family in self.ztunnel.metrics.registry().collect():
            for each in family.samples:
                if each.name == name and labels.items() <= each.labels.items():
                    total += each.value
        return total

    def stats(self):
        """The gate's counters."""
        return self.call(self.ztunnel._gates.stats)["box"]

    def guest(self, *ports):
        """Attach a guest that listens on some ports."""
        guest = Guest(self._own.sandboxes[0].socket)
        self._kept.callback(guest.close)
        for port in ports or (8080,):
            guest.listen(port)
        return guest

    def dial(self, *uris, leaf=None, source=PEER, pod=POD, **options):
        """Connect by TLS; the handshake's rest may come later."""
        leaf = leaf or self.ca.issue(*(uris or (CLIENT,)))
        made = pki.context(self.folder, leaf, self.ca.roots, server=False, **options)
        raw = socket.create_connection((pod, HBONE), LIMIT_S, (source, 0))
        self._kept.callback(raw.close)
        sock = made.wrap_socket(raw)
        self._kept.callback(sock.close)
        return sock

    def tunnel(self, *uris, **options):
        """Make a tunnel."""
        return Peer(self.dial(*uris, **options), client=True)

    def turned_away(self, *uris, **options):
        """Whether a tunnel ends before anything is said."""
        with contextlib.suppress(GoneError, OSError):
            self.tunnel(*uris, **options).fence()
            return False
        return True


def asks(authority, **headers):
    """The headers of a CONNECT."""
    return [(":method", "CONNECT"), (":authority", authority), *headers.items()]


class Guest:
    """A guest with one control stream that was welcomed; it knows all clients."""

    def __init__(self, path):
        self.vsock = VsockGuest(path)
        self.control = Stream(self.vsock)
        self.control.greet()
        self.close = self.vsock.close
        self.known = {}
        """IPs, by the first of their ports."""

    def listen(self, port, backlog=5):
        """Announce a listener; return the port that it is reached at."""
        fields = (FIRST_LISTENER | port, backlog, port, 4, 0, 0, bytes(16))
        self.control.send(struct.pack("<HHIIHHHH16s", 16, 32, *fields))
        kind, payload = self.control.receive()
        assert kind == LISTENING
        _, reached, _, error = struct.unpack("<IHHI", payload)
        assert error == 0
        return reached

    def introduce(self):
        """Hear whose a range of ports is, and say that it is known."""
        kind, payload = self.control.receive()
        assert kind == CALLER
        ports, family, _, address = struct.unpack("<IHH16s", payload)
        self.known[ports] = str(ip_address(address[: 4 if family == 4 else 16]))
        self.control.send(struct.pack("<HHI", INTRODUCED, 4, ports))

    def accept(self, *, first=True):
        """Take a client; `first` of its IP: be told of that before."""
        if first:
            self.introduce()
        return self.vsock.accept(buf_alloc=1 << 20)

    def peer(self, conn):
        """What getpeername() says."""
        return self.known[conn.host_port & ~0xFFFF], conn.host_port & 0xFFFF

    def refuse(self):
        """Answer the next packet, a REQUEST, as a full backlog does."""
        header = self.vsock.receive().header
        assert header.op == Op.REQUEST
        Connection(
            self.vsock,
            header.dst_port,
            header.src_port,
            buf_alloc=0,
            cid=header.src_cid,
            kind=header.type,
        ).say(Op.RST)


def finish(conn):
    """Have a program end a connection whose client sends no more."""
    conn.expect(Op.SHUTDOWN)
    conn.shutdown(Shutdown.BOTH)


def served(world, guest, peer, *, first=True, **headers):
    """Make a connection; return its stream and the guest's end."""
    stream = peer.connect(asks(HERE, **headers))
    conn = guest.accept(first=first)
    assert peer.status(stream) == "200"
    return stream, conn


def fields(line):
    """A line of the access log: its level, message and pairs."""
    _, level, _, message, rest = line.split("\t")
    pairs = {}
    while rest:
        name, _, rest = rest.partition("=")
        if rest.startswith('"'):
            value, _, rest = rest[1:].partition('"')
            rest = rest.removeprefix(" ")
        else:
            value, _, rest = rest.partition(" ")
        pairs[name] = value
    return {"level": level, "message": message} | pairs
