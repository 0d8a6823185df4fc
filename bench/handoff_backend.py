"""A back-end whose guest reaches the same server by each hand-off.

    python -m bench.handoff_backend SOCKET POLL_US PROXY [ZTUNNEL]

To be run in a network namespace of its own, whose `lo` it sets up. `PROXY` is
bench/host/proxy.c's program, which runs once for each way, on our CPU:

    passthrough   TCP to it, in our own namespace
    pod           the same in a pod's namespace
    unix          a unix socket, a PROXY protocol v2 header first
    socks5        SOCKS5 in the pod's namespace
    istio_inpod   a server behind a veth, by Istio's ztunnel and its in-pod rules
    istio_socks5  the same by its SOCKS5

The last two need `ZTUNNEL`, its program, which is told of the pod by our ZDS.
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

from fastpath.datapath import inpod
from fastpath.datapath.netns import Namespace
from fastpath.handoff.namespace import PodNamespace
from fastpath.handoff.zds import Server, Workload
from fastpath.ztunnel.pods import Pod
from tests.netns.inpod_world import SERVER, istios_ztunnel, pod_and_server
from tests.netns.pod_world import POD4
from tests.support.limits import until
from vhost_user.backend import Backend
from vhost_user.engine import Dial, Engine, Socks5Proxy, UnixProxy
from vhost_user.vsock.device import VsockDevice

if TYPE_CHECKING:
    from collections.abc import Callable

    from vhost_user.engine import Target

    Place = tuple[Callable[..., socket.socket], str, int]
    """What makes sockets there, at which address, and what `Dial.netns` is."""

CID: Final = 3
FROM: Final = "127.0.0.2"
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
    ISTIO_INPOD = 5
    ISTIO_SOCKS5 = 6


OURS: Final = (Way.PASSTHROUGH, Way.POD, Way.UNIX, Way.SOCKS5)
ISTIOS: Final = (Way.ISTIO_INPOD, Way.ISTIO_SOCKS5)


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
        self,
        way: Way,
        make: Callable[[int, int], socket.socket],
        folder: Path,
        host: str = "127.0.0.1",
    ) -> None:
        self._way = way
        self.sockets = {}
        for deed in Deed:
            if way is Way.UNIX:
                sock = socket.socket(socket.AF_UNIX)
                sock.bind(str(folder / deed.name))
            else:
                sock = make(socket.AF_INET, socket.SOCK_STREAM)
                sock.bind((host, 0))
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
            case Way.POD | Way.ISTIO_INPOD:
                return Dial(at, netns)
            case Way.UNIX:
                proxy = engine.add_handoff(UnixProxy(at, (ip_address(FROM),), IDENTITY))
                return Dial(THERE, 0, proxy.id)
            case Way.SOCKS5:
                proxy = engine.add_handoff(Socks5Proxy(at))
                return Dial(THERE, netns, proxy.id)
            case Way.ISTIO_SOCKS5:
                proxy = engine.add_handoff(Socks5Proxy(("127.0.0.1", 15080)))
                return Dial(at, netns, proxy.id)


def bring_up(pod: Namespace) -> None:
    """Set up the loopback interfaces of our own namespace and the pod's."""
    argv = ["ip", "link", "set", "lo", "up"]
    for each in (argv, pod.command(argv)):
        subprocess.run(each, check=True)


async def join(
    path: str, ip: str, engine: Engine, stack: contextlib.AsyncExitStack
) -> tuple[PodNamespace, int]:
    """Enter a pod's namespace; return it, and what `Dial.netns` is."""
    there = PodNamespace(Path(path))
    stack.callback(there.close)
    await there.start()
    joined = Pod("bench", there, (ip_address(ip),))
    joined.join(engine)
    return there, joined.netns


async def istio(
    folder: Path, binary: Path, engine: Engine, stack: contextlib.AsyncExitStack
) -> tuple[Namespace, int]:
    """Have Istio's ztunnel serve a pod; return a server's namespace, and the pod's."""
    pod, server = stack.enter_context(pod_and_server())
    there, netns = await join(pod.path, POD4, engine, stack)
    inpod.install(there.fileno(), {4})
    zds = Server(folder / "zds")
    await zds.start()
    stack.callback(zds.close)
    zds.add(Workload("pod1", "pod1", "default", "pod1"), there.fileno())
    more = {"UNSTABLE_ENABLE_SOCKS5": "true", "RUST_LOG": "warn"}
    running = istios_ztunnel(binary, folder, folder / "zds", **more)
    stack.enter_context(running)
    await until(lambda: zds.complete)
    return server, netns


async def serve(path: Path, poll_us: int, program: str, binary: Path | None) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        pod = stack.enter_context(Namespace())
        bring_up(pod)
        engine = await stack.enter_async_context(Engine(poll_us=poll_us))
        _, netns = await join(pod.path, FROM, engine, stack)
        places: dict[Way, Place] = dict.fromkeys(OURS, (socket.socket, "127.0.0.1", 0))
        for way in (Way.POD, Way.SOCKS5):
            places[way] = (pod.socket, "127.0.0.1", netns)
        if binary:
            server, netns = await istio(path.parent, binary, engine, stack)
            places |= dict.fromkeys(ISTIOS, (server.socket, SERVER, netns))
        device = VsockDevice(engine, guest_cid=CID, on_event=print)
        stack.callback(device.close)
        for way, (make, host, where) in places.items():
            listeners = Listeners(way, make, path.parent, host)
            listeners.serve(program, stack)
            for deed in Deed:
                target = listeners.target(engine, deed, where)
                device.handle.route(port(way, deed), target)
        backend = Backend(path, device, name="bench")
        stack.push_async_callback(backend.close)
        await backend.start()
        await stop.wait()


if __name__ == "__main__":
    path, poll_us, program, *more = sys.argv[1:]
    istios = Path(more[0]) if more else None
    asyncio.run(serve(Path(path), int(poll_us), program, istios))
