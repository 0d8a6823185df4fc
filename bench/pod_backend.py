"""A back-end whose guest reaches a server in a pod's namespace, and one in our own.

    python -m bench.pod_backend SOCKET

To be run in a network namespace of its own, whose `lo` it sets up. Vsock port `POD` is
dialled as a sandbox with `netns` is, `OWN` as one without: the same device, engine and
kind of server, both over a loopback interface. The servers, and the process that makes
sockets, share the CPU of the engine.

`WAYS` lead to an echo, a sink and a source (hop.c): directly in our own namespace, in
a pod's, and in another pod's behind netfilter's REDIRECT and a proxy, as in a mesh.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.harness import program
from fastpath.datapath.netns import Namespace
from fastpath.handoff.namespace import PodNamespace
from fastpath.ztunnel.pods import Pod
from vhost_user.backend import Backend
from vhost_user.engine import Dial, Engine
from vhost_user.vsock.device import VsockDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

OWN: Final = 2001
POD: Final = 2002
WAYS: Final = {"own": 3000, "pod": 4000, "hop": 5000}
"""Vsock ports: these and one of `PEERS`."""
PEERS: Final = {"echo": 107, "sink": 109, "source": 119}
"""TCP ports."""
CID: Final = 3
LISTEN: Final = ("127.0.0.1", 7)
FROM: Final = ip_address("127.0.0.2")
"""The pod's IP."""
PROXIED: Final = "127.0.0.3"
"""What is redirected to the proxy."""
PROXY: Final = 15001
RULE: Final = (
    f"iptables -w -t nat -A OUTPUT -p tcp -d {PROXIED} -m mark ! --mark 0x539/0xfff"
    f" -j REDIRECT --to-ports {PROXY}"
)
SERVER: Final = """\
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as listener:
    while True:
        with listener.accept()[0] as client:
            while client.recv(4096):
                pass
"""


@contextlib.contextmanager
def serving(
    make: Callable[[], socket.socket],
    argv: Sequence[str] = (sys.executable, "-c", SERVER),
    address: tuple[str, int] = LISTEN,
) -> Iterator[None]:
    """Run a server; without `argv` it takes one client after the other."""
    with make() as listener:
        listener.bind(address)
        listener.listen(1024)
        fd = listener.fileno()
        child = subprocess.Popen([*argv, str(fd)], pass_fds=[fd])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def start_servers(
    pod: Namespace, mesh: Namespace, stack: contextlib.AsyncExitStack
) -> None:
    """Start them in our own namespace and in the pods'; the mesh's has a proxy, too."""
    up = ["ip", "link", "set", "lo", "up"]
    hop = str(program("hop"))
    for argv in (up, pod.command(up), mesh.command(up), mesh.command(RULE.split())):
        subprocess.run(argv, check=True)
    for make in (socket.socket, pod.socket, mesh.socket):
        stack.enter_context(serving(make))
        for what, port in PEERS.items():
            stack.enter_context(serving(make, (hop, what), ("0.0.0.0", port)))
    stack.enter_context(serving(mesh.socket, (hop, "relay"), ("0.0.0.0", PROXY)))


async def enter(
    engine: Engine, namespace: Namespace, stack: contextlib.AsyncExitStack
) -> int:
    """Have the engine dial there; return what `Dial.netns` is."""
    there = PodNamespace(Path(namespace.path))
    stack.callback(there.close)
    await there.start()
    joined = Pod("bench", there, (FROM,))
    joined.join(engine)
    return joined.netns


def routes(pod: int, mesh: int) -> Iterator[tuple[int, Dial]]:
    """Vsock ports, and where they lead."""
    yield OWN, Dial(LISTEN)
    yield POD, Dial(LISTEN, pod)
    for port in PEERS.values():
        yield WAYS["own"] + port, Dial(("127.0.0.1", port))
        yield WAYS["pod"] + port, Dial(("127.0.0.1", port), pod)
        yield WAYS["hop"] + port, Dial((PROXIED, port), mesh)


async def serve(path: Path) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        pod, mesh = (stack.enter_context(Namespace()) for _ in range(2))
        start_servers(pod, mesh, stack)
        engine = await stack.enter_async_context(Engine())
        netns = [await enter(engine, each, stack) for each in (pod, mesh)]
        device = VsockDevice(engine, guest_cid=CID, on_event=print)
        stack.callback(device.close)
        for port, target in routes(*netns):
            device.handle.route(port, target)
        backend = Backend(path, device, name="bench")
        stack.push_async_callback(backend.close)
        await backend.start()
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
