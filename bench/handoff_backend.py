"""A back-end whose guest reaches the same server by each hand-off.

    python -m bench.handoff_backend SOCKET PROXY

To be run in a network namespace of its own, whose `lo` it sets up. `PROXY` is
bench/host/proxy.c's program, which runs once for each way, on our CPU:

    passthrough   TCP to it, in our own namespace
    pod           the same in a pod's namespace
    unix          a unix socket, a PROXY protocol v2 header first
    socks5        SOCKS5 in the pod's namespace

`port()` says which vsock port leads where.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import signal
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.datapath.netns import Namespace
from fastpath.handoff.namespace import PodNamespace
from fastpath.ztunnel.pods import Pod
from vhost_user.backend import Backend
from vhost_user.engine import Dial, Engine, Socks5Proxy, UnixProxy
from vhost_user.vsock.device import VsockDevice

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.engine import Target

CID: Final = 3
FROM: Final = ip_address("127.0.0.2")
"""The pod's IP."""
THERE: Final = ("192.0.2.7", 80)
"""What the other proxies are told: nobody goes there."""
IDENTITY: Final = "spiffe://cluster.local/ns/default/sa/bench"


class Way(enum.IntEnum):
    """How connections are handed over."""

    PASSTHROUGH = 1
    POD = 2
    UNIX = 3
    SOCKS5 = 4


class Deed(enum.IntEnum):
    """What the server does with their bytes."""

    ECHO = 1
    SINK = 2
    SOURCE = 3


HEARS: Final = {Way.UNIX: "header", Way.SOCKS5: "socks5"}


def port(way: Way, deed: Deed) -> int:
    """The vsock port that leads there."""
    return 2000 + 10 * way + deed


class Listeners:
    """The listening sockets of one way, and who serves them."""

    def __init__(
        self, way: Way, make: Callable[[int, int], socket.socket], folder: Path
    ) -> None:
        self._way = way
        self.sockets = {}
        for deed in Deed:
            if way is Way.UNIX:
                sock = socket.socket(socket.AF_UNIX)
                sock.bind(str(folder / deed.name))
            else:
                sock = make(socket.AF_INET, socket.SOCK_STREAM)
                sock.bind(("127.0.0.1", 0))
            sock.listen(1024)
            sock.setblocking(False)
            self.sockets[deed] = sock

    def serve(self, program: str, stack: contextlib.AsyncExitStack) -> None:
        """Run the server until the stack ends; it inherits the sockets."""
        fds = [sock.fileno() for sock in self.sockets.values()]
        argv = [program, HEARS.get(self._way, "plain"), *map(str, fds)]
        child = subprocess.Popen(argv, pass_fds=fds)
        stack.callback(child.wait)
        stack.callback(child.kill)

    def target(self, engine: Engine, deed: Deed, netns: int) -> Target:
        """What leads to one of them."""
        at = self.sockets[deed].getsockname()
        match self._way:
            case Way.PASSTHROUGH:
                return Dial(at)
            case Way.POD:
                return Dial(at, netns)
            case Way.UNIX:
                proxy = engine.add_handoff(UnixProxy(at, (FROM,), IDENTITY))
                return Dial(THERE, 0, proxy.id)
            case Way.SOCKS5:
                proxy = engine.add_handoff(Socks5Proxy(at))
                return Dial(THERE, netns, proxy.id)


def bring_up(pod: Namespace) -> None:
    """Set up the loopback interfaces of our own namespace and the pod's."""
    argv = ["ip", "link", "set", "lo", "up"]
    for each in (argv, pod.command(argv)):
        subprocess.run(each, check=True)


async def serve(path: Path, program: str) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        pod = stack.enter_context(Namespace())
        bring_up(pod)
        engine = await stack.enter_async_context(Engine())
        there = PodNamespace(Path(pod.path))
        stack.callback(there.close)
        await there.start()
        joined = Pod("bench", there, (FROM,))
        joined.join(engine)
        device = VsockDevice(engine, guest_cid=CID, on_event=print)
        stack.callback(device.close)
        for way in Way:
            inside = way in (Way.POD, Way.SOCKS5)
            make = pod.socket if inside else socket.socket
            listeners = Listeners(way, make, path.parent)
            listeners.serve(program, stack)
            for deed in Deed:
                target = listeners.target(engine, deed, joined.netns)
                device.handle.route(port(way, deed), target)
        backend = Backend(path, device, name="bench")
        stack.push_async_callback(backend.close)
        await backend.start()
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
