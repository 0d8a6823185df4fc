"""Two nodes by HBONE for bench_two_nodes.py: of ours, and of Istio's ztunnel.

    client (CPU 0) -- ztunnel a (CPU 1) -- HBONE -- ztunnel b (CPU 1) -- server (CPU 0)

The server is the same (host/proxy.c), and so is what a node is: a network namespace.

ours     a is `fastpath ztunnel`, whole, with a sandbox; its client is a guest in user
         space. b is a gate of the engine that dials the server by TCP, as Istio's does
istio    both are Istio's ztunnel in in-pod mode, with certificates of `fastpath ca`;
         the client is a program in pod a
"""

from __future__ import annotations

import os
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from bench import procfs
from bench.harness import Guest, program
from fastpath.tsi.agents import RANGE_SIZE
from fastpath.tsi.protocol import Welcome
from tests.netns.mesh_world import PODS, SANDBOX, World
from tests.support.limits import LIMIT_S

if TYPE_CHECKING:
    import contextlib

TSI_PORT: Final = 21587
MAGIC: Final = 0x41495354
WELCOME: Final = Welcome(
    first_token=RANGE_SIZE, token_count=1, window=1, connect_timeout_ms=1
)
"""An agent's first one: of this length, with that token."""
ECHO, SINK, SOURCE = 8101, 8102, 8103
PORTS: Final = (ECHO, SINK, SOURCE)
CLIENT_CPU, PROXY_CPU = 0, 1
CHUNK: Final = 1 << 16
IN_FLIGHT: Final = 32


class Nodes(World):
    """A world whose node b has the servers; `bench` is a kind of it."""

    def __init__(
        self,
        folder: Path,
        kinds: dict[str, str],
        stack: contextlib.ExitStack,
        binary: Path | None = None,
    ) -> None:
        super().__init__(folder, kinds, stack, binary)
        self._serve()
        for each in self.processes.values():
            for task in Path(f"/proc/{each.pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), {PROXY_CPU})

    def _start_ours(self, name: str, sandboxes: str = SANDBOX) -> None:
        self.socket = self._ours(name, sandboxes) / "s"

    def _start_bench(self, name: str) -> None:
        folder = self.folder / name
        folder.mkdir()
        leaf, roots = self.leaf(name)
        for what, pem in (("chain", leaf.chain), ("key", leaf.key), ("roots", roots)):
            (folder / f"{what}.pem").write_bytes(pem)
        argv = [sys.executable, "-m", "bench.two_nodes_backend", folder, PODS[name]]
        process = subprocess.Popen(
            self.nodes[name].command([*map(str, argv)]), stdout=subprocess.PIPE
        )
        self._stack.callback(process.wait, LIMIT_S)
        self._stack.callback(process.terminate)
        assert process.stdout is not None
        self._stack.callback(process.stdout.close)
        assert process.stdout.readline() == b"ready\n"
        self.processes[name] = process

    def _serve(self) -> None:
        """Run the servers in pod b."""
        fds = []
        for port in PORTS:
            sock = self._stack.enter_context(self.pods["b"].socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((PODS["b"], port))
            sock.listen(4096)
            sock.setblocking(False)
            fds.append(sock.fileno())
        argv = ["taskset", "-c", str(CLIENT_CPU), program("proxy"), "plain", *fds]
        process = subprocess.Popen([*map(str, argv)], pass_fds=fds)
        self._stack.callback(process.wait, LIMIT_S)
        self._stack.callback(process.kill)

    def cpu_s(self) -> float:
        """Return the CPU time that both proxies have taken."""
        pids = (each.pid for each in self.processes.values())
        return sum(map(procfs.cpu_ns, pids)) / 1e9

    def rss_mb(self, name: str) -> float:
        """Return the resident memory of a node's proxy."""
        return procfs.kib(self.processes[name].pid, "VmRSS") / 1024


class Client(Protocol):
    """A program on node a."""

    def round_trips(self, count: int) -> float:
        """Return a round trip of 64 bytes in us, p50."""
        ...

    def connects(self, count: int) -> float:
        """Return what connect() and one byte echoed take in us, p50."""
        ...

    def churn(self, count: int) -> float:
        """Return connections a second, made and closed, `IN_FLIGHT` at a time."""
        ...

    def up(self, time_s: float) -> float:
        """Send by one stream for a time; return the bytes."""
        ...

    def hold(self, count: int) -> None:
        """Have so many connections, and leave them open."""
        ...


class GuestClient:
    """In a sandbox of ours: its agent's words are said by hand."""

    def __init__(self, path: Path) -> None:
        self._guest = guest = Guest(path)
        self.close = guest.close
        control = guest.connect(TSI_PORT)
        hello = struct.pack("<IHH", MAGIC, 1, 1)
        guest.say(control, struct.pack("<HH", 1, len(hello)) + hello)
        guest.receive_ns(control, len(WELCOME.encode()))
        packed = ip_address(PODS["b"]).packed.ljust(16, b"\0")
        self._tokens = {}
        for token, port in enumerate(PORTS, RANGE_SIZE):
            route = struct.pack("<IHH", token, 4, port) + packed
            guest.say(control, struct.pack("<HH", 4, len(route)) + route)
            self._tokens[port] = token

    def round_trips(self, count: int) -> float:
        conn = self._guest.connect(self._tokens[ECHO])
        found = statistics.median(self._guest.rtt_ns(conn, 64, count)) / 1e3
        self._guest.close_conn(conn)
        return found

    def connects(self, count: int) -> float:
        found = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            conn = self._guest.connect(self._tokens[ECHO])
            self._guest.rtt_ns(conn, 1, 1)
            found.append(time.perf_counter_ns() - begin)
            self._guest.leave(conn)
        return statistics.median(found) / 1e3

    def churn(self, count: int) -> float:
        self._guest.close_conn(self._guest.connect(self._tokens[ECHO]))  # it can be
        return count * 1e9 / self._guest.churn_ns(self._tokens[ECHO], IN_FLIGHT, count)

    def up(self, time_s: float) -> float:
        conn = self._guest.connect(self._tokens[SINK])
        found = self._guest.send_for(conn, CHUNK, time_s)
        self._guest.close_conn(conn)
        return found

    def hold(self, count: int) -> None:
        self._guest.connect(self._tokens[ECHO], count)


class SocketClient:
    """In a pod's namespace. Istio's says connected at once, so a byte is echoed."""

    def __init__(self, nodes: Nodes) -> None:
        self._pod = nodes.pods["a"]
        self._held: list[socket.socket] = []

    def _connect(self, port: int) -> socket.socket:
        sock = socket.create_connection((PODS["b"], port), LIMIT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def close(self) -> None:
        """Close what is open."""
        for sock in self._held:
            sock.close()

    def round_trips(self, count: int) -> float:
        return float(self._pod.run(self._round_trips, count))

    def _round_trips(self, count: int) -> float:
        found, data = [], bytes(64)
        with self._connect(ECHO) as sock:
            for _ in range(count):
                begin = time.perf_counter_ns()
                sock.sendall(data)
                assert len(sock.recv(64, socket.MSG_WAITALL)) == 64
                found.append(time.perf_counter_ns() - begin)
        return statistics.median(found) / 1e3

    def connects(self, count: int) -> float:
        return float(self._pod.run(self._connects, count))

    def _connects(self, count: int) -> float:
        found = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            with self._connect(ECHO) as sock:
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
                found.append(time.perf_counter_ns() - begin)
        return statistics.median(found) / 1e3

    def churn(self, count: int) -> float:
        return float(self._pod.run(self._churn, count))

    def _churn(self, count: int) -> float:
        begin = time.perf_counter_ns()
        begun = done = 0
        with selectors.DefaultSelector() as selector:
            while done < count:
                while begun < count and begun - done < IN_FLIGHT:
                    sock = self._connect(ECHO)
                    sock.sendall(b"x")
                    selector.register(sock, selectors.EVENT_READ, sock)
                    begun += 1
                for key, _ in selector.select(LIMIT_S):
                    selector.unregister(key.data)
                    assert key.data.recv(1) == b"x"
                    key.data.close()
                    done += 1
        return count * 1e9 / (time.perf_counter_ns() - begin)

    def up(self, time_s: float) -> float:
        return float(self._pod.run(self._up, time_s))

    def _up(self, time_s: float) -> float:
        data, sent, end = bytes(CHUNK), 0, time.perf_counter() + time_s
        with self._connect(SINK) as sock:
            while time.perf_counter() < end:
                sock.sendall(data)
                sent += CHUNK
        return sent

    def hold(self, count: int) -> None:
        self._pod.run(self._hold, count)

    def _hold(self, count: int) -> None:
        for _ in range(count):
            sock = self._connect(ECHO)
            self._held.append(sock)
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"


def our_nodes(folder: Path, stack: contextlib.ExitStack) -> tuple[Nodes, Any]:
    """Start nodes of ours; return them, and the client on a."""
    nodes = Nodes(folder, {"a": "ours", "b": "bench"}, stack)
    client = GuestClient(nodes.socket)
    stack.callback(client.close)
    return nodes, client


def istios_nodes(
    folder: Path, stack: contextlib.ExitStack, binary: Path
) -> tuple[Nodes, Any]:
    """Start nodes of Istio's; return them, and the client on a."""
    nodes = Nodes(folder, {"a": "istio", "b": "istio"}, stack, binary)
    client = SocketClient(nodes)
    stack.callback(client.close)
    return nodes, client
