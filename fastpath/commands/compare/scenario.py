"""The scenario: one microVM, one ztunnel, one server, both paths between them.

    guest (its vCPU on CPU A)             host (all else on CPU B)
    probe --- TSI ----------------- vsock ring ---+
      +------ eth0, tap, veth, Geneve, TPROXY ----+--> ztunnel ---> server

Everything is a context: leaving it, by success, error or Ctrl-C, stops it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from fastpath.commands.compare.child import READY_FD, Child
from fastpath.commands.compare.measure import Bench
from fastpath.commands.compare.site import SERVER_PORT
from fastpath.scratch import CONSOLE
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastpath.commands.compare.cpu import Pinning
    from fastpath.commands.compare.site import Site
    from fastpath.image.images import Image
    from fastpath.vm.guest import GuestInfo
    from fastpath.vm.spec import Accelerator

ECHO: Final = "198.18.0.1"
"""The address that ztunnel answers itself; RFC 2544's range for benchmarks."""

IDENTITY: Final = "spiffe://cluster.local/ns/compare/sa/sandbox"
"""What ztunnel must take the guest for on every path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to bring up."""

    site: Site
    folder: Path
    """For sockets, configuration and logs."""
    image: Image
    accel: Accelerator
    qemu: str
    pinning: Pinning
    boot_timeout_s: float

    @property
    def access_log(self) -> Path:
        """Where ztunnel writes it."""
        return self.folder / "access.log"

    @property
    def mesh(self) -> Path:
        """Istio's local file."""
        return self.folder / "mesh.yaml"

    @property
    def console(self) -> Path:
        """The guest's console log."""
        return self.folder / CONSOLE


@contextlib.asynccontextmanager
async def running(plan: Plan) -> AsyncIterator[tuple[Bench, GuestInfo]]:
    """Bring everything up; when it is entered, both paths are there.

    Raises:
        FastpathError: a part does not start.
    """
    site, folder, pinning = plan.site, plan.folder, plan.pinning
    config = folder / "ztunnel.yaml"
    config.write_text(yaml.safe_dump(ztunnel_config(plan)), encoding="utf-8")
    plan.mesh.write_text(yaml.safe_dump(mesh_config(site)), encoding="utf-8")
    python = (sys.executable, "-m")
    server = (
        *python,
        "fastpath.commands.compare.server",
        site.listen,
        str(SERVER_PORT),
    )
    ztunnel = (*python, "fastpath", "ztunnel", "--config", str(config))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(
            Child(
                "server",
                site.behind((*server, READY_FD)),
                cpu=pinning.host,
                log=folder / "server.log",
            )
        )
        tunnel = await stack.enter_async_context(
            Child(
                "ztunnel",
                site.ztunnel((*ztunnel, "--ready-fd", READY_FD)),
                cpu=pinning.host,
                log=folder / "ztunnel.log",
            )
        )
        guest = await stack.enter_async_context(
            Guest(folder / "vsock", console=plan.console)
        )
        machine = await stack.enter_async_context(Machine(_spec(plan)))
        info = await machine.watch(guest.ready(plan.boot_timeout_s))
        if site.network:
            await machine.watch(guest.network(*site.network))
        for thread in machine.vcpu_thread_ids:
            os.sched_setaffinity(thread, {pinning.vcpu})
        yield (
            Bench(
                guest=guest,
                machine=machine,
                ztunnel=tunnel,
                echo=ECHO,
                server=site.server,
            ),
            info,
        )


def ztunnel_config(plan: Plan) -> dict[str, Any]:
    """Make the configuration of ztunnel for this scenario, as its YAML file has it."""
    site = plan.site
    # Everything but what is denied by default, and the server even if it is.
    allow = ["0.0.0.0/0", f"{site.listen}/32:{SERVER_PORT}"]
    sandbox = {
        "name": "sandbox",
        "workload": "compare/sandbox",
        "socket": str(plan.folder / "vhost.sock"),
        "cid": 3,
        "udsPath": str(plan.folder / "vsock"),
        "egress": {"allow": allow},
    }
    own: dict[str, Any] = {
        "mesh": str(plan.mesh),
        "sandboxes": [sandbox],
        "echo": ECHO,
        "accessLog": str(plan.access_log),
        "drainS": 0,
    }
    if site.tproxy_port is not None:
        own["outbound"] = {"tproxy": f"0.0.0.0:{site.tproxy_port}"}
    return own


def mesh_config(site: Site) -> dict[str, Any]:
    """Make Istio's local file for this scenario."""
    workload = {
        "uid": "sandbox",
        "name": "sandbox",
        "namespace": "compare",
        "serviceAccount": "sandbox",
        "trustDomain": "cluster.local",
        "workloadIps": [site.pod_ip],
        "services": {},
    }
    config: dict[str, Any] = {"workloads": [workload]}
    if site.server != site.listen:
        _add_service(config, site)
    return config


def _add_service(config: dict[str, Any], site: Site) -> None:
    """Make the server a service: `site.server` leads to `site.listen`."""
    ports = {SERVER_PORT: SERVER_PORT}
    config["services"] = [
        {
            "name": "server",
            "namespace": "compare",
            "hostname": "server.compare",
            "vips": [f"/{site.server}"],
            "ports": ports,
        }
    ]
    config["workloads"].append(
        {
            "uid": "server",
            "name": "server",
            "namespace": "compare",
            "workloadIps": [site.listen],
            "services": {"compare/server.compare": ports},
        }
    )


def _spec(plan: Plan) -> VmSpec:
    return VmSpec(
        image=plan.image,
        accel=plan.accel,
        vsock_socket=plan.folder / "vhost.sock",
        console=plan.console,
        qmp=plan.folder / "qmp.sock",
        net=plan.site.tap,
        qemu=plan.qemu,
        cpu_affinity=frozenset({plan.pinning.host}),
    )
