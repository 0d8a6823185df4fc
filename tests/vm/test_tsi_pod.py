"""A microVM of `fastpath ztunnel` whose pod has a network namespace: curl in it.

The servers are in that namespace alone, on its `lo`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastpath.datapath import netns
from fastpath.vm.spec import VmSpec
from fastpath.ztunnel.pods import LOOK_S
from tests.netns.istio_world import IPS, TwoNodes
from tests.netns.pod_world import POD4, POD6, SERVER4, SERVER6, NameServer, pod
from tests.support.limits import GUEST_LIMIT_S, LIMIT_S
from tests.vm.conftest import backend, boot

pytestmark = pytest.mark.vm

PORT = 8080
TRIES = round(LIMIT_S / LOOK_S)
NAMED = "192.0.2.7"
"""What the resolver in the namespace says to each name."""
MESH = f"""
workloads:
  - name: box
    namespace: default
    workloadIps: [{POD4}, "{POD6}"]
    services: {{}}
"""
CONFIG = f"""
mesh: FOLDER/mesh.yaml
sandboxes:
  - name: box
    workload: default/box
    socket: FOLDER/vhost
    udsPath: FOLDER/vsock
    cid: 3
    netns: NETNS
resolvers: ["{SERVER4}:53"]
accessLog: FOLDER/access.log
"""


class Whose(BaseHTTPRequestHandler):
    """Says who asks."""

    def do_GET(self):
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(namespace, host):
    """Serve HTTP in a namespace."""
    server = ThreadingHTTPServer((host, PORT), Whose, bind_and_activate=False)
    server.socket.close()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server.socket = namespace.socket(family)
    server.socket.bind((host, PORT))
    server.socket.listen()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def namespace():
    if not netns.may_configure():
        pytest.skip("CAP_NET_ADMIN is missing: run as root, or under unshare -Urn")
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(pod())
        add = ["ip", "addr", "add", f"{NAMED}/32", "dev", "lo"]
        subprocess.run(there.command(add), check=True)
        for host in (SERVER4, SERVER6, NAMED):
            stack.enter_context(serving(there, host))
        stack.enter_context(NameServer(there))
        yield there


def run_in(image, accelerator, vm_dir, work, **words):
    """Boot a microVM whose sandbox `CONFIG` describes, and have `work` done."""
    config = vm_dir / "z.yaml"
    text = CONFIG.replace("FOLDER", str(vm_dir))
    for word, value in words.items():
        text = text.replace(word, value)
    config.write_text(text)
    (vm_dir / "mesh.yaml").write_text(MESH)
    spec = VmSpec(
        image=image,
        accel=accelerator,
        vsock_socket=vm_dir / "vhost",
        console=vm_dir / "console",
        qmp=vm_dir / "qmp",
        memory_mib=512,
    )

    async def main():
        options = ("ztunnel", "--config", str(config))
        async with asyncio.timeout(GUEST_LIMIT_S), backend("fastpath", *options):
            await boot(spec, vm_dir / "vsock", work)

    asyncio.run(main())


def test_curl_reaches_what_only_the_namespace_has(
    apps_image, accelerator, vm_dir, namespace
):
    async def curl(guest, host):
        """What curl gets, or why not."""
        body, said = bytearray(), bytearray()
        argv = ["curl", "-sv", "--noproxy", "*", f"http://{host}:{PORT}/"]
        status = await guest.run(argv, tsi=True, stdout=body.extend, stderr=said.extend)
        unreachable = b"Network is unreachable" in said
        assert (status == 7) == unreachable, said.decode()
        return errno.ENETUNREACH if unreachable else body.decode()

    async def work(machine, guest):
        assert await curl(guest, SERVER4) == POD4
        assert await curl(guest, f"[{SERVER6}]") == POD6
        assert await curl(guest, "there.example") == POD4
        assert await curl(guest, "198.51.100.7") == errno.ENETUNREACH
        namespace.close()
        for _ in range(TRIES):  # its end is noticed in a second
            if await curl(guest, SERVER4) == errno.ENETUNREACH:
                break
            await asyncio.sleep(LOOK_S)
        assert await curl(guest, SERVER4) == errno.ENETUNREACH

    run_in(apps_image, accelerator, vm_dir, work, NETNS=namespace.path)


@pytest.fixture
def two_nodes(request, tmp_path):
    if not netns.may_configure():
        pytest.skip("CAP_NET_ADMIN is missing: run as root, or under unshare -Urn")
    with contextlib.ExitStack() as stack:
        yield TwoNodes(tmp_path, request.config.getoption("--ztunnel"), stack)


@pytest.mark.ztunnel
def test_programs_in_a_microvm_are_in_the_mesh(
    apps_image, accelerator, vm_dir, two_nodes
):
    """Both ways by HBONE between two of Istio's ztunnels."""
    assert IPS["a"] == POD4
    (vm_dir / "policy.yaml").write_text(f'published: ["{PORT}"]\n')

    async def out(guest):
        body = bytearray()
        argv = ["curl", "-s", "--noproxy", "*", f"http://{IPS['b']}:{PORT}/"]
        assert await guest.run(argv, tsi=True, stdout=body.extend) == 0
        assert body.decode() == IPS["a"]

    def ask():
        """A plain client in the other pod."""
        with two_nodes.pods["b"].socket() as sock:
            sock.settimeout(GUEST_LIMIT_S)
            sock.connect((IPS["a"], PORT))
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            found = b""
            while data := sock.recv(4096):
                found += data
            return found

    async def work(machine, guest):
        await out(guest)
        argv = ["busybox", "httpd", "-f", "-p", str(PORT)]
        server = asyncio.create_task(guest.run(argv, tsi=True))
        found = b""
        for _ in range(round(GUEST_LIMIT_S / LOOK_S)):  # until it listens
            found = await asyncio.to_thread(ask_or_nothing, ask)
            if found:
                break
            await asyncio.sleep(LOOK_S)
        assert found.startswith(b"HTTP/1.")
        server.cancel()

    with serving(two_nodes.pods["b"], IPS["b"]):
        run_in(
            apps_image,
            accelerator,
            vm_dir,
            work,
            NETNS=two_nodes.pods["a"].path + f"\n    policy: {vm_dir}/policy.yaml",
        )
    two_nodes.tell_apart("a", "b")
    two_nodes.tell_apart("b", "a")


def ask_or_nothing(ask):
    """What a server answers; before it listens, its proxy ends the connection."""
    try:
        return ask()
    except OSError:
        return b""
