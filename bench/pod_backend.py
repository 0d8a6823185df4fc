"""A back-end whose guest reaches a server in a pod's namespace, and one in our own.

    python -m bench.pod_backend SOCKET

To be run in a network namespace of its own, whose `lo` it sets up. Vsock port `POD` is
dialled as a sandbox with `netns` is, `OWN` as one without: the same device, engine and
kind of server, both over a loopback interface. The servers, and the process that makes
sockets, share the CPU of the engine.
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

from fastpath.datapath.netns import Namespace
from fastpath.handoff.namespace import PodNamespace
from fastpath.ztunnel.pods import Pod
from vhost_user.backend import Backend
from vhost_user.engine import Dial, Engine
from vhost_user.vsock.device import VsockDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OWN: Final = 2001
POD: Final = 2002
CID: Final = 3
LISTEN: Final = ("127.0.0.1", 7)
FROM: Final = ip_address("127.0.0.2")
"""The pod's IP."""
SERVER: Final = """\
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as listener:
    while True:
        with listener.accept()[0] as client:
            while client.recv(4096):
                pass
"""


@contextlib.contextmanager
def serving(make: Callable[[], socket.socket]) -> Iterator[None]:
    """Run a server that takes one client after the other, and says nothing."""
    with make() as listener:
        listener.bind(LISTEN)
        listener.listen(1024)
        fd = listener.fileno()
        child = subprocess.Popen([sys.executable, "-c", SERVER, str(fd)], pass_fds=[fd])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def start_servers(pod: Namespace, stack: contextlib.AsyncExitStack) -> None:
    """Start one in our own namespace and one in the pod's."""
    up = ["ip", "link", "set", "lo", "up"]
    for argv in (up, pod.command(up)):
        subprocess.run(argv, check=True)
    for make in (socket.socket, pod.socket):
        stack.enter_context(serving(make))


async def serve(path: Path) -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        pod = stack.enter_context(Namespace())
        start_servers(pod, stack)
        engine = await stack.enter_async_context(Engine())
        there = PodNamespace(Path(pod.path))
        stack.callback(there.close)
        await there.start()
        joined = Pod("bench", there, (FROM,))
        joined.join(engine)
        device = VsockDevice(engine, guest_cid=CID, on_event=print)
        stack.callback(device.close)
        device.handle.route(OWN, Dial(LISTEN))
        device.handle.route(POD, Dial(LISTEN, joined.netns))
        backend = Backend(path, device, name="bench")
        stack.push_async_callback(backend.close)
        await backend.start()
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
