"""Two nodes of a mesh on one machine: a program in a microVM on each.

    program in a microVM on a -- rings -- ztunnel a -- HBONE, mutual TLS
        -- ztunnel b -- rings -- server program in a microVM on b

A node is a network namespace with a `fastpath ztunnel`; a veth joins the two. All of it
is gone when this ends, however it ends. It needs no root: README.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fastpath.datapath.netns import Namespace, own_user_namespace
from fastpath.errors import FastpathError
from fastpath.image import images
from fastpath.vm import accel
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from fastpath.image.images import Image
    from fastpath.vm.spec import Accelerator

HERE = Path(__file__).parent
PODS = {"a": "10.0.0.5", "b": "10.0.0.6"}
NETWORK = """
ip link set lo up; ip link set e0 up; ip addr add {pod}/24 dev e0
ip route add default dev e0
"""


def join(nodes: dict[str, Namespace]) -> None:
    """Join the namespaces by a veth, and give each its pod's IP."""
    a, b = (nodes[name].path for name in PODS)
    ends = f"e0 netns {a} type veth peer e0 netns {b}"
    made = nodes["a"].command(["ip", "link", "add", *ends.split()])
    subprocess.run(made, check=True)
    for name, pod in PODS.items():
        script = NETWORK.format(pod=pod)
        subprocess.run(nodes[name].command(["sh", "-ec", script]), check=True)


@contextlib.asynccontextmanager
async def ztunnel(node: Namespace, name: str, folder: Path) -> AsyncIterator[None]:
    """Run a node's ztunnel; entered once it is ready.

    Raises:
        FastpathError: it ended before it was.
    """
    config = f"node-{name}.yaml"
    argv = [sys.executable, "-m", "fastpath", "ztunnel", "--config", config]
    process = await asyncio.create_subprocess_exec(
        *node.command(argv), cwd=folder, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    said = b""
    try:
        while b"fastpath ztunnel: ready" not in said:
            said = await process.stderr.readline()
            if not said:
                raise FastpathError(f"ztunnel of node {name}", "it ended: see above")
            if b"ready" not in said and b" INFO " not in said:
                sys.stderr.buffer.write(said)
        rest = asyncio.create_task(process.stderr.read())  # or it would wait for us
        yield
        process.terminate()
        await rest
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await process.wait()


@contextlib.asynccontextmanager
async def microvm(
    name: str, folder: Path, image: Image, chosen: Accelerator
) -> AsyncIterator[Guest]:
    """Boot a node's microVM."""
    console = folder / f"{name}.console"
    spec = VmSpec(
        image=image,
        accel=chosen,
        vsock_socket=folder / f"{name}.sock",
        console=console,
        qmp=folder / f"{name}.qmp",
    )
    guest = Guest(folder / f"{name}.vsock", console=console)
    async with guest, Machine(spec) as machine:
        await machine.watch(guest.ready(10 * chosen.boot_timeout_s))
        yield guest


async def serve(guest: Guest, started: asyncio.Event) -> None:
    """Run the server until this is cancelled."""
    said = bytearray()

    def hear(piece: bytes) -> None:
        said.extend(piece)
        if b"ready" in said:
            started.set()

    argv = ["python3", "-c", (HERE / "server.py").read_text()]
    status = await guest.run(argv, tsi=True, stdout=hear, stderr=hear)
    raise FastpathError("the server", f"ended with {status}: {said.decode()}")


async def ask(guest: Guest, shown: str, argv: Sequence[str]) -> None:
    """Run a command on node a, and show it with its output.

    Raises:
        FastpathError: it failed.
    """
    said = bytearray()
    status = await guest.run(argv, tsi=True, stdout=said.extend, stderr=said.extend)
    print(f"a$ {shown}\n{said.decode().rstrip()}", flush=True)
    if status:
        raise FastpathError(shown, f"ended with {status}")


async def ask_all(guest: Guest) -> None:
    """What the program on node a does."""
    url = "http://server.default.svc.cluster.local/"
    await ask(guest, f"curl -s {url}", ["curl", "-sS", "--noproxy", "*", url])
    text = (HERE / "client.py").read_text()
    await ask(guest, "python3 client.py 10.0.0.6", ["python3", "-c", text, "10.0.0.6"])


async def main() -> None:
    """Make both nodes, have one ask the other, and show what their logs say."""
    image, chosen = images.build("apps"), accel.choose("auto")
    async with contextlib.AsyncExitStack() as stack:
        made = tempfile.TemporaryDirectory(prefix="two-", dir="/tmp")
        folder = Path(stack.enter_context(made))
        for each in HERE.glob("*.yaml"):
            shutil.copy(each, folder)
        nodes = {name: stack.enter_context(Namespace()) for name in PODS}
        join(nodes)
        for name in PODS:
            await stack.enter_async_context(ztunnel(nodes[name], name, folder))
        print("two ztunnels are ready; booting two microVMs", flush=True)
        guests = {
            name: await stack.enter_async_context(microvm(name, folder, image, chosen))
            for name in PODS
        }
        started = asyncio.Event()
        server = asyncio.create_task(serve(guests["b"], started))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({server, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if server.done():
            await server
        await ask_all(guests["a"])
        server.cancel()
        await asyncio.wait({server})
        for name in PODS:
            print(f"--- access log of node {name}", flush=True)
            print((folder / f"{name}.log").read_text().rstrip(), flush=True)


if __name__ == "__main__":
    try:
        own_user_namespace([sys.executable, *sys.orig_argv[1:]])
        asyncio.run(main())
    except FastpathError as error:
        sys.exit(f"two_nodes: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
