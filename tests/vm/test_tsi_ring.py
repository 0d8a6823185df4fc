"""A microVM of `fastpath ztunnel` whose connections another process takes by rings.

The process speaks HTTP without a socket: curl in the guest, which knows nothing of it,
asks an address that is nowhere.
"""

from __future__ import annotations

import asyncio

import pytest

from fastpath.handoff import ring as rings
from fastpath.vm.spec import VmSpec
from tests.support.limits import GUEST_LIMIT_S
from tests.vm.conftest import backend, boot

pytestmark = pytest.mark.vm

NOWHERE = "192.0.2.80"
PORT = 8080
SIZE = 3_000_000
MESH = """
workloads:
  - {name: box, namespace: default, workloadIps: [10.0.0.5], services: {}}
"""
CONFIG = """
mesh: FOLDER/mesh.yaml
sandboxes:
  - name: box
    workload: default/box
    socket: FOLDER/vhost
    udsPath: FOLDER/vsock
    cid: 3
    egress: {deny: ["192.0.2.99/32"]}
    handoff: {ring: FOLDER/ring, ringBytes: 65536}
accessLog: FOLDER/access.log
"""


def test_curl_exchanges_bytes_with_a_process_without_a_socket(
    apps_image, accelerator, vm_dir
):
    config = vm_dir / "z.yaml"
    (vm_dir / "mesh.yaml").write_text(MESH)
    config.write_text(CONFIG.replace("FOLDER", str(vm_dir)))
    spec = VmSpec(
        image=apps_image,
        accel=accelerator,
        vsock_socket=vm_dir / "vhost",
        console=vm_dir / "console",
        qmp=vm_dir / "qmp",
        memory_mib=512,
    )
    hellos = []

    async def handle(ring, hello):
        """Answer one request: with its own bytes, or with many."""
        hellos.append(hello)
        request = b""
        while b"\r\n\r\n" not in request:
            request += await ring.read()
        body = b"x" * SIZE if b" /many " in request else b"by rings"
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n"
        await ring.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        while await ring.read():
            pass

    async def curl(guest, url):
        body = bytearray()
        argv = ["curl", "-s", "--noproxy", "*", url]
        status = await guest.run(argv, tsi=True, stdout=body.extend)
        return status, bytes(body)

    async def work(machine, guest):
        base = f"http://{NOWHERE}:{PORT}"
        assert await curl(guest, f"{base}/") == (0, b"by rings")
        assert await curl(guest, f"{base}/many") == (0, b"x" * SIZE)
        assert await curl(guest, f"http://192.0.2.99:{PORT}/") == (7, b"")

    async def main():
        options = ("ztunnel", "--config", str(config))
        with rings.listen(vm_dir / "ring") as listener:
            served = asyncio.create_task(rings.serve(listener, handle))
            async with asyncio.timeout(GUEST_LIMIT_S), backend("fastpath", *options):
                await boot(spec, vm_dir / "vsock", work)
            served.cancel()
            (vm_dir / "ring").unlink()
            await asyncio.gather(served, return_exceptions=True)

    asyncio.run(main())
    assert [hello.destination for hello in hellos] == [(NOWHERE, PORT)] * 2
    assert {hello.source[0] for hello in hellos} == {"10.0.0.5"}
    log = (vm_dir / "access.log").read_text()
    assert log.count("connection complete") == 2
    assert log.count("connection failed") == 1
