"""Nodes of one mesh, and programs on them that speak to each other by HBONE.

    program -- what node a has -- HBONE, mutual TLS -- what node b has -- program

A node is a network namespace; a veth joins each to node a. Kinds of a node:

    ours     `fastpath ztunnel`; the program is a guest's, in user space (no VM)
    vm       the same, but for a microVM, which the test boots
    pod      the same; the guest's pod has a namespace (`netns`), behind a veth
    capture  `fastpath ztunnel` too; the program is in a pod behind a veth, whose
             connections TPROXY leads to it: the standard path. Its IP has no gate
    istio    Istio's ztunnel in in-pod mode (`--ztunnel BIN`); the program is in the pod
    envoy    Envoy; the program is beside it
    plain    nothing; the workload is no HBONE one
    gateway  Envoy; it ends node a's tunnels, and leads what is in them to node c

With a gateway, node c is on a network `far`: the others know its service only, by that.

Certificates are those of one directory, as `fastpath ca --dir` has it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import socket
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from types import SimpleNamespace

from fastpath.datapath.netns import Namespace
from fastpath.identity import Identity
from fastpath.mesh.authority import Authority
from tests.netns.istio_world import IN_POD, Node, access_line, identity
from tests.support import envoy
from tests.support.limits import LIMIT_S, wait_until
from tests.support.pki import Leaf
from tests.unit.fastpath.tsi_guest import Guest
from vhost_user.vsock.packet import Op, Shutdown

PODS = {"a": "10.0.0.5", "b": "10.0.0.6", "c": "10.0.0.7", "d": "10.0.0.8"}
NODES = {"a": "10.0.9.1", "b": "10.0.9.2", "c": "10.0.9.3", "d": "10.0.9.4"}
VIPS = {"a": "10.96.0.11", "b": "10.96.0.10", "c": "10.96.0.12", "d": "10.96.0.13"}
VIP = VIPS["b"]
PORT, SERVICE = 8080, 80
OUT, HBONE = 15001, 15008
BULK = 8 << 20
HARD = struct.pack("ii", 1, 0)
LISTENER = 0x100050
LISTEN = struct.pack("<IIHHHH16s", LISTENER, 5, PORT, 4, 0, 0, bytes(16))
POLICY = f'published: ["{PORT}"]\n'
IN_THE_MESH = {"ours", "vm", "pod", "istio", "envoy", "gateway"}
FAR = "far"

NETWORK = """
ip link set lo up; ip link set e0 up
ip addr add {node}/24 dev e0; ip addr add {pod}/32 dev e0
ip route add {other}/32 via {next} src {pod}
ip route add default dev e0
"""
ONE_MORE = """
ip link set {link} up; ip route add {next}/32 dev {link} src {node}
ip route add {other}/32 via {next} src {pod}
"""
POD_NODE = """
ip link set lo up; ip link set e0 up; ip link set p0 up
ip addr add {node}/24 dev e0; ip addr add 10.0.8.1/32 dev p0
ip route add {pod}/32 dev p0; ip route add {other}/32 via {next}
ip route add default dev e0
"""
CAPTURE = """
ip rule add fwmark 0x400/0xfff lookup 100
ip route add local default dev lo table 100
iptables -w -t mangle -A PREROUTING -i p0 -p tcp -j TPROXY --on-port 15001 \
  --tproxy-mark 0x400/0xfff
"""
POD = """
ip link set lo up; ip link set p1 up; ip addr add {pod}/32 dev p1
ip route add 10.0.8.1 dev p1; ip route add default via 10.0.8.1
"""
BY_A = """
ip route add {pod}/32 via {next} src {source}
"""
OURS = """
mesh: FOLDER/mesh.yaml
network: NETWORK
certificates: {embedded: CA}
accessLog: FOLDER/access.log
"""
SANDBOX = """
sandboxes:
  - {name: NAME, workload: default/NAME, socket: FOLDER/s, cid: 3,
     policy: FOLDER/policy.yaml}
"""


def networks(kinds):
    """The network of each node."""
    return {
        name: FAR if "gateway" in kinds.values() and name == "c" else ""
        for name in kinds
    }


def mesh(kinds, network=""):
    """Istio's file: the nodes' pods, each with a service whose endpoint it is.

    Its VIP is on `network`, whose nodes get the file.
    """
    there = networks(kinds)
    gateway = f"networkGateway: {{destination: /{PODS['b']}, hboneMtlsPort: {HBONE}}},"
    workloads = "".join(
        f"""
- {{uid: cluster1//v1/Pod/default/{name}, name: {name}, namespace: default,
   serviceAccount: {name}, trustDomain: cluster.local, workloadIps: [{PODS[name]}],
   protocol: {"HBONE" if kind in IN_THE_MESH else "TCP"}, node: node-{name},
   network: "{there[name]}", {gateway if there[name] else ""}
   clusterId: Kubernetes, services: {{
   "default/{name}.default.svc.cluster.local": {{{SERVICE}: {PORT}}}}}}}
"""
        for name, kind in kinds.items()
    )
    services = "".join(
        f"""
- {{name: {name}, namespace: default, hostname: {name}.default.svc.cluster.local,
   vips: ["{network}/{VIPS[name]}"], ports: {{{SERVICE}: {PORT}}},
   subjectAltNames: ["{identity(name)}"]}}
"""
        for name in kinds
    )
    return f"workloads:{workloads}\nservices:{services}"


# ---- ends of a connection ----


class SocketEnd:
    """A connection of a program in a namespace."""

    def __init__(self, sock):
        self._sock = sock
        sock.settimeout(LIMIT_S)
        self.send = sock.sendall

    def read(self, size):
        data = b""
        while len(data) < size:
            more = self._sock.recv(size - len(data))
            assert more, f"the end after {len(data)} of {size} bytes"
            data += more
        return data

    def end(self):
        self._sock.shutdown(socket.SHUT_WR)

    def ended(self):
        assert self._sock.recv(1) == b""

    def reset(self):
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, HARD)
        self._sock.close()

    def is_over(self):
        """Read until the end, or a reset; return which."""
        try:
            while self._sock.recv(65536):
                pass
        except ConnectionResetError:
            return "reset"
        return "end"


class GuestEnd:
    """A connection of a program in a guest."""

    def __init__(self, conn):
        self._conn = conn
        self.send, self.read = conn.send, conn.receive_bytes

    def end(self):
        self._conn.shutdown(Shutdown.SEND)

    def ended(self):
        packet = self._conn.expect(Op.SHUTDOWN, Op.CREDIT_UPDATE)
        while packet.op is not Op.SHUTDOWN:
            packet = self._conn.expect(Op.SHUTDOWN, Op.CREDIT_UPDATE)
        assert packet.header.flags & Shutdown.SEND

    def reset(self):
        self._conn.say(Op.RST)

    def is_over(self):
        while (packet := self._conn.receive()).op not in {Op.SHUTDOWN, Op.RST}:
            pass
        return "reset" if packet.op is Op.RST else "end"


def check_bulk(near, far):
    """Megabytes of random bytes each way, and that they arrive as they were sent."""
    for source, sink in ((near, far), (far, near)):
        data = os.urandom(BULK)
        with ThreadPoolExecutor(1) as threads:
            sent = threads.submit(source.send, data)
            found = hashlib.sha256(sink.read(BULK)).hexdigest()
            sent.result()
        assert found == hashlib.sha256(data).hexdigest()


# ---- programs ----


class SocketProgram:
    """In a namespace; `through`: whom it has to ask instead (Envoy)."""

    def __init__(self, namespace, stack, through=None):
        self._namespace, self._stack, self._through = namespace, stack, through
        self._listener: socket.socket

    def _socket(self):
        return self._stack.enter_context(self._namespace.socket())

    def connect(self, address):
        sock = self._socket()
        sock.settimeout(LIMIT_S)
        sock.connect(self._through or address)
        return SocketEnd(sock)

    def listen(self, ip):
        self._listener = self._socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((ip, PORT))
        self._listener.listen(1024)
        self._listener.settimeout(LIMIT_S)

    def accept(self, client_ip):
        """Take a client; return its connection and its IP."""
        del client_ip
        sock, peer = self._listener.accept()
        return SocketEnd(self._stack.enter_context(sock)), peer[0]


class GuestProgram:
    """In a guest, in user space."""

    def __init__(self, guest):
        self._guest = guest

    def connect(self, address):
        return GuestEnd(self._guest.connect(address))

    def listen(self, ip):
        del ip
        self._guest.control.send(struct.pack("<HH", 16, len(LISTEN)) + LISTEN)
        self._guest.control.receive()
        self._known = {}

    def accept(self, client_ip):
        """Take a client; return its connection and its IP.

        Of an IP that is new the agent is told first.
        """
        if client_ip not in self._known:
            kind, payload = self._guest.control.receive()
            ports, _, _, address = struct.unpack("<IHH16s", payload)
            assert kind == 18
            self._guest.control.send(struct.pack("<HHI", 20, 4, ports))
            self._known[client_ip] = str(ip_address(address[:4]))
        return GuestEnd(self._guest.guest.accept()), self._known[client_ip]


# ---- the world ----


class World:
    """The nodes, with what is on them; `programs` by name.

    Args:
        folder: for files; a short path.
        kinds: what each node is, by name.
        stack: what is made is undone by it.
        binary: Istio's ztunnel, if a kind is it.
    """

    def __init__(self, folder, kinds, stack, binary=None):
        self.folder, self.kinds, self._stack = folder, kinds, stack
        self._binary = binary
        self.nodes = {name: stack.enter_context(Namespace()) for name in kinds}
        self.pods = dict(self.nodes)
        self.logs, self.programs, self.processes = {}, {}, {}
        now = dt.datetime.now(dt.UTC)
        self._authority = Authority.open(folder / "ca", "cluster.local", now)
        self._network()
        for name in reversed(kinds):  # b takes clients before a has any
            getattr(self, f"_start_{kinds[name]}")(name)

    def _network(self):
        a, *others = (node.path for node in self.nodes.values())
        for index, b in enumerate(others):
            _run(f"ip link add e{index} netns {a} type veth peer e0 netns {b}")
        for name, kind in self.kinds.items():
            other, *more = self._others(name)
            fields = _addresses(name, other)
            node = self.nodes[name]
            if kind in {"capture", "pod"}:
                pod = self.pods[name] = self._stack.enter_context(Namespace())
                ends = f"p0 netns {node.path} type veth peer p1 netns {pod.path}"
                _run(f"ip link add {ends}")
                _run_in(node, "sysctl -qw net.ipv4.ip_forward=1")
                _run_in(pod, POD.format(**fields))
                _run_in(node, POD_NODE.format(**fields))
            else:
                _run_in(node, NETWORK.format(**fields))
            for index, each in enumerate(more, 1):
                fields = _addresses(name, each) | {"link": f"e{index}"}
                _run_in(node, ONE_MORE.format(**fields))

        if "gateway" in self.kinds.values():
            _run_in(self.nodes["a"], "sysctl -qw net.ipv4.ip_forward=1")
            for name, other in (("b", "c"), ("c", "b")):
                way = {"next": NODES["a"], "pod": PODS[other], "source": PODS[name]}
                _run_in(self.nodes[name], BY_A.format(**way))

    def _others(self, name):
        """Those that a node is joined to: the first, and of that one all others."""
        first, *others = self.kinds
        return others if name == first else [first]

    def _start_plain(self, name):
        self.programs[name] = SocketProgram(self.pods[name], self._stack)

    def _start_pod(self, name):
        more = f", hbone: true, netns: {self.pods[name].path}}}"
        self._start_ours(name, SANDBOX.replace("}", more))

    def _start_ours(self, name, sandboxes=SANDBOX):
        folder = self._ours(name, sandboxes)
        sandbox = SimpleNamespace(socket=folder / "s", cid=3)
        guest = self._stack.enter_context(Guest(sandbox))
        self.programs[name] = GuestProgram(guest)

    def _start_vm(self, name):
        more = ", udsPath: FOLDER.vsock}"
        self._ours(name, SANDBOX.replace("}", more))

    def _start_capture(self, name):
        _run_in(self.nodes[name], CAPTURE)
        self._ours(name, f'outbound: {{tproxy: "0.0.0.0:{OUT}"}}\n')
        self.programs[name] = SocketProgram(self.pods[name], self._stack)

    def _ours(self, name, more):
        """Start `fastpath ztunnel`; return its folder."""
        folder = self.folder / name
        folder.mkdir()
        network = networks(self.kinds)[name]
        (folder / "mesh.yaml").write_text(mesh(self.kinds, network))
        (folder / "policy.yaml").write_text(POLICY)
        text = (OURS + more).replace("FOLDER", str(folder)).replace("NAME", name)
        text = text.replace("NETWORK", f'"{network}"')
        config = folder / "z.yaml"
        config.write_text(text.replace("CA", str(self.folder / "ca")))
        argv = [sys.executable, "-m", "fastpath", "ztunnel", "--config", str(config)]
        said = self._stack.enter_context((folder / "said").open("w"))
        process = subprocess.Popen(
            self.nodes[name].command(argv), stdout=said, stderr=said
        )
        self._stack.callback(process.wait, LIMIT_S)
        self._stack.callback(process.terminate)
        wait_until(
            lambda: process.poll() is not None or "ready" in _read(folder / "said"),
            what="fastpath ztunnel",
        )
        assert process.poll() is None, _read(folder / "said")
        self.logs[name] = folder / "access.log"
        self.processes[name] = process
        return folder

    def _start_istio(self, name):
        _run_in(self.nodes[name], IN_POD)
        network = networks(self.kinds)[name]
        node = Node(
            name=f"node-{name}",
            pod=name,
            namespace=self.nodes[name],
            folder=self.folder / name,
            ca=self.folder / "ca",
            workloads=mesh(self.kinds, network),
            ttl_s=3600,
            network=network,
        )
        node.start(self._binary, self._stack)
        self.processes[name] = node.processes["ztunnel"]
        self.logs[name] = node.log
        self.programs[name] = SocketProgram(self.nodes[name], self._stack)

    def _start_envoy(self, name):
        """Envoy takes what comes to the pod's 15008, and asks b's for its clients."""
        folder = self.folder / name
        folder.mkdir()
        other = self._others(name)[0]
        leaf, roots = self.leaf(name)
        server = envoy.tls(leaf, roots, identity(other), server=True)
        inside = envoy.by_authority("in")
        resources = envoy.terminating(folder, server, inside, (PODS[name], HBONE))
        client = envoy.tls(leaf, roots, identity(other), server=False)
        more = envoy.originating(
            folder,
            client,
            (PODS[other], HBONE),
            f"{PODS[other]}:{PORT}",
            (PODS[name], OUT),
        )
        both = {key: resources[key] + more[key] for key in resources}
        node = self.nodes[name]
        run = envoy.running(folder, both, node.command([]))
        there = self._stack.enter_context(run)
        wait_until(lambda: "LIVE" in node.run(there.ask, "/ready"), what="Envoy")
        self.logs[name] = folder / "envoy.log"
        self.programs[name] = SocketProgram(node, self._stack, (PODS[name], OUT))

    def _start_gateway(self, name):
        folder = self.folder / name
        folder.mkdir()
        leaf, roots = self.leaf(name)
        server = envoy.tls(leaf, roots, identity("a"), server=True)
        inside = envoy.static("in", (PODS["c"], HBONE))
        resources = envoy.terminating(folder, server, inside, (PODS[name], HBONE))
        run = envoy.running(folder, resources, self.nodes[name].command([]))
        there = self._stack.enter_context(run)
        node = self.nodes[name]
        wait_until(lambda: "LIVE" in node.run(there.ask, "/ready"), what="Envoy")
        self.logs[name] = folder / "envoy.log"

    def leaf(self, name):
        """A pod's certificate, and the root."""
        made = self._authority.workload(
            Identity("cluster.local", "default", name),
            dt.timedelta(hours=1),
            dt.datetime.now(dt.UTC),
        )
        return Leaf(made.chain_pem, made.key_pem, 0), made.roots_pem

    def connected(self, client="a", server="b", address=None):
        """Connect; return both ends, and the client's IP as the server sees it."""
        near, far = [], self.programs[server]
        going = threading.Thread(
            target=lambda: near.append(
                self.programs[client].connect(address or (PODS[server], PORT))
            )
        )
        going.start()
        end, seen = far.accept(PODS[client])
        going.join(LIMIT_S)
        return near[0], end, seen

    def said(self, name, pattern):
        """Wait for a line of a node's access log."""
        return access_line(self.logs[name], pattern)


def _addresses(name, other):
    return {
        "node": NODES[name],
        "pod": PODS[name],
        "other": PODS[other],
        "next": NODES[other],
    }


def _read(path):
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    return ""


def _run(line):
    subprocess.run(line.split(), check=True)


def _run_in(namespace, script):
    subprocess.run(namespace.command(["sh", "-ec", script]), check=True)
