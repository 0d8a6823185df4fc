"""A microVM of `fastpath ztunnel` whose connections go to a proxy by a unix socket."""

from __future__ import annotations

import asyncio

import pytest

from fastpath.vm.spec import VmSpec
from tests.support.limits import GUEST_LIMIT_S
from tests.unit.fastpath.handoff_world import HeaderReader
from tests.vm.conftest import backend, boot

pytestmark = pytest.mark.vm

POD4, POD6 = "10.0.0.5", "fd00::5"
SOMEWHERE = "192.0.2.7", "2001:db8::7"
MESH = f"""
workloads:
  - name: box
    namespace: default
    serviceAccount: box
    trustDomain: cluster.local
    workloadIps: [{POD4}, "{POD6}"]
    services: {{}}
"""
CONFIG = """
mesh: FOLDER/mesh.yaml
sandboxes:
  - name: box
    workload: default/box
    socket: FOLDER/vhost
    udsPath: FOLDER/vsock
    cid: 3
    handoff: {unix: FOLDER/proxy}
accessLog: FOLDER/access.log
"""
IDENTITY = b"spiffe://cluster.local/ns/default/sa/box"


class Web(HeaderReader):
    """Answers one request of HTTP, and says nothing of whose it is."""

    def _serve(self, client):
        with client:
            self.said.append(self.hear(client))
            client.recv(65536)
            client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")


def test_the_proxy_hears_the_address_that_the_program_has(
    apps_image, accelerator, vm_dir
):
    (vm_dir / "mesh.yaml").write_text(MESH)
    config = vm_dir / "z.yaml"
    config.write_text(CONFIG.replace("FOLDER", str(vm_dir)))
    spec = VmSpec(
        image=apps_image,
        accel=accelerator,
        vsock_socket=vm_dir / "vhost",
        console=vm_dir / "console",
        qmp=vm_dir / "qmp",
        memory_mib=512,
    )
    seen = []

    async def curl(guest, host):
        """Whom curl is connected with, and as whom."""
        said = bytearray()
        form = "%{local_ip} %{local_port} %{remote_ip} %{remote_port}"
        argv = ["curl", "-s", "-o", "/dev/null", "-w", form, "--noproxy", "*"]
        status = await guest.run(
            [*argv, f"http://{host}:8080/"], tsi=True, stdout=said.extend
        )
        assert status == 0
        ours, our_port, its, its_port = said.decode().split()
        seen.append([(ours, int(our_port)), (its, int(its_port)), {0xD0: IDENTITY}])

    async def work(machine, guest):
        for host in (SOMEWHERE[0], SOMEWHERE[0], f"[{SOMEWHERE[1]}]"):
            await curl(guest, host)

    async def main():
        options = ("ztunnel", "--config", str(config))
        async with asyncio.timeout(GUEST_LIMIT_S), backend("fastpath", *options):
            await boot(spec, vm_dir / "vsock", work)

    with Web(vm_dir) as proxy:
        asyncio.run(main())
    assert [own for (own, _), _, _ in seen] == [POD4, POD4, POD6]
    assert proxy.said == seen
