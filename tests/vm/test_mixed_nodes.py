"""A microVM on node a of a mesh, and what others have on nodes b, c and d.

One VM is for all of them, as a client and as a server at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import tempfile
from pathlib import Path

import pytest

from fastpath.datapath import netns
from fastpath.vm.spec import VmSpec
from tests.netns import mesh_world
from tests.netns.istio_world import identity
from tests.netns.mesh_world import PODS, PORT
from tests.support.limits import GUEST_LIMIT_S
from tests.vm.world import World

pytestmark = pytest.mark.vm

DATA = bytes(range(256)) * 4096
ANSWER = f"{len(DATA)} {hashlib.sha256(DATA).hexdigest()}"
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    sock.sendall(bytes(range(256)) * 4096)
    sock.shutdown(socket.SHUT_WR)
    print(sock.makefile().read())
"""
SERVER = """
import hashlib, socketserver, sys
class Count(socketserver.StreamRequestHandler):
    def handle(self):
        data = self.rfile.read()
        said = f"{len(data)} {hashlib.sha256(data).hexdigest()}"
        self.wfile.write(f"{self.client_address[0]} {said}".encode())
socketserver.TCPServer.request_queue_size = 64
server = socketserver.ThreadingTCPServer(("", int(sys.argv[1])), Count)
print("ready", flush=True)
server.serve_forever()
"""
OTHERS = {"b": "plain", "c": "envoy", "d": "istio"}
others = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=kind, marks=pytest.mark.ztunnel if name == "d" else [])
        for name, kind in OTHERS.items()
    ],
)


class MicroVm(World):
    """The VM of node a; its ztunnel is a process of its own."""

    @classmethod
    def names(cls):
        return ("a",)

    async def start(self, stack):
        """Start nothing: it runs."""


@pytest.fixture(scope="module")
def mesh(request, accelerator):
    """The nodes."""
    if not netns.may_configure():
        pytest.skip("CAP_NET_ADMIN is missing: run as root, or under unshare -Urn")
    binary = request.config.getoption("--ztunnel")
    kinds = {"a": "vm"} | OTHERS
    if binary is None:
        del kinds["d"]
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="mix-", dir="/tmp"))
        )
        yield mesh_world.World(folder, kinds, stack, binary)


@pytest.fixture(scope="module")
def vm(mesh, apps_image, accelerator):
    spec = VmSpec(
        image=apps_image,
        accel=accelerator,
        vsock_socket=mesh.folder / "a" / "s",
        console=mesh.folder / "console",
        qmp=mesh.folder / "qmp",
    )
    with MicroVm({"a": spec}, mesh.folder, mesh.nodes["a"]) as world:
        yield world


@pytest.fixture(scope="module")
def server(vm):
    """The server in the VM."""
    _, guest = vm.vm()
    ready = asyncio.Event()
    said = bytearray()

    def hear(piece):
        said.extend(piece)
        if b"ready" in said:
            ready.set()

    argv = ["python3", "-c", SERVER, str(PORT)]
    running = vm.begin(guest.run(argv, tsi=True, stdout=hear, stderr=hear))

    async def started():
        async with asyncio.timeout(GUEST_LIMIT_S):
            await ready.wait()

    vm.call(started())
    yield
    running.cancel()


def logged(mesh, node, direction, client, server):
    """Wait for a node's line of a connection; check whose it is."""
    pods = rf"src\.addr={PODS[client]}:.* dst.hbone_addr={PODS[server]}:{PORT} "
    line = mesh.said(node, rf'{pods}.*direction="{direction}"')
    for end, who in (("src", client), ("dst", server)):
        assert re.search(rf'{end}\.identity="{identity(who)}"', line)
    assert " error=" not in line


@others
def test_a_program_in_a_microvm_reaches_what_the_other_node_has(mesh, vm, name):
    """A MiB, an end, and the answer behind it; whose the connection is, both say."""
    there = mesh.programs[name]
    there.listen(PODS[name])

    async def ask():
        work = asyncio.to_thread(vm.run, "python3", "-c", CLIENT, PODS[name], str(PORT))
        asked = asyncio.create_task(work)
        end, seen = await asyncio.to_thread(there.accept, PODS["a"])
        assert await asyncio.to_thread(end.read, len(DATA)) == DATA
        await asyncio.to_thread(end.ended)
        end.send(ANSWER.encode())
        end.end()
        return await asked, seen

    (status, said), seen = asyncio.run(ask())
    assert (status, said.strip()) == (0, ANSWER)
    assert seen == (PODS[name] if OTHERS[name] == "envoy" else PODS["a"])
    if OTHERS[name] == "plain":
        mesh.said("a", rf"dst\.addr={PODS[name]}:{PORT} .*direction=\"outbound\"")
        return
    logged(mesh, "a", "outbound", "a", name)
    if OTHERS[name] == "istio":
        logged(mesh, name, "inbound", "a", name)


@others
def test_what_the_other_node_has_reaches_a_program_in_a_microvm(mesh, server, name):
    end = mesh.programs[name].connect((PODS["a"], PORT))
    end.send(DATA)
    end.end()
    want = f"{PODS[name]} {ANSWER}"
    assert end.read(len(want)).decode() == want
    end.ended()
    if OTHERS[name] == "plain":
        mesh.said("a", rf'src\.addr={PODS[name]}:.*direction="inbound"')
        return
    logged(mesh, "a", "inbound", name, "a")
    if OTHERS[name] == "istio":
        logged(mesh, name, "outbound", name, "a")
