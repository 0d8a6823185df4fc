"""The scenario: microVMs, one ztunnel, one server, the paths between them.

    guest (its vCPU on CPU A)             host (all else on CPU B)
    probe --- TSI ----------------- vsock ring ---+
      +------ eth0, tap, veth, Geneve, TPROXY ----+--> ztunnel ----------------> server
    one more guest a hand-off                     |
    probe --- TSI ----------------- vsock ring ---+        hand-off --> proxy --/

Everything is a context: leaving it, by success, error or Ctrl-C, stops it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import yaml

from fastpath.commands.compare import sidecar
from fastpath.commands.compare.child import READY_FD, Child
from fastpath.commands.compare.disturb import Mesh
from fastpath.commands.compare.measure import Bench, Way
from fastpath.commands.compare.paths import PATHS, Handoff
from fastpath.commands.compare.sandboxes import (
    ECHO,
    MEMORY_MIB,
    http_program,
    proxy_program,
)
from fastpath.commands.compare.site import HTTP_PORT, SERVER_PORT
from fastpath.commands.compare.variants import PLAIN
from fastpath.tsi import keys
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from fastpath.commands.compare.cpu import Pinning
    from fastpath.commands.compare.sandboxes import Sandbox
    from fastpath.commands.compare.site import Site
    from fastpath.commands.compare.variants import Variant
    from fastpath.image.images import Image
    from fastpath.vm.guest import GuestInfo
    from fastpath.vm.spec import Accelerator

IDENTITY: Final = "spiffe://cluster.local/ns/compare/sa/sandbox"
"""What ztunnel must take the guest for on every path."""

HOST: Final = "vsock:2"
"""A guest's address of the host."""

PYTHON: Final = (sys.executable, "-m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to bring up."""

    site: Site
    sandboxes: tuple[Sandbox, ...]
    folder: Path
    """For sockets, configuration and logs."""
    image: Image
    accel: Accelerator
    qemu: str
    pinning: Pinning
    boot_timeout_s: float
    variant: Variant = PLAIN
    apart: bool = False
    """Captured connections have a ztunnel of their own, which can be ended alone."""

    @property
    def hands_on(self) -> bool:
        """Whether a sandbox's connections are handed to another proxy."""
        return any(sandbox.handoff for sandbox in self.sandboxes)

    @property
    def access_log(self) -> Path:
        """Where ztunnel writes it."""
        return self.folder / "access.log"

    @property
    def mesh(self) -> Path:
        """Istio's local file."""
        return self.folder / "mesh.yaml"


@contextlib.asynccontextmanager
async def running(
    plan: Plan, *, say: Callable[[str], None]
) -> AsyncIterator[tuple[Bench, GuestInfo]]:
    """Bring everything up; when it is entered, all paths are there.

    Args:
        plan: what.
        say: told what is being done.

    Raises:
        FastpathError: a part does not start.
    """
    async with contextlib.AsyncExitStack() as stack:
        await _serve(plan, stack)
        proxies = await _proxies(plan, stack)
        unmeshed = await _unmeshed(plan, stack)
        ztunnel = await _ztunnel(plan, stack)
        captured = await _captured(plan, stack)
        ways: dict[str, Way] = {}
        infos = []
        for number, sandbox in enumerate(plan.sandboxes, start=1):
            say(f"booting microVM {number} of {len(plan.sandboxes)}")
            device = await _device(plan, sandbox, stack) if sandbox.backend else None
            guest, machine, info = await _boot(plan, sandbox, stack)
            infos.append(info)
            for path in sandbox.paths:
                own = Way(
                    guest=guest,
                    machine=machine,
                    echo=sandbox.echo,
                    server=sandbox.server(plan.site),
                    logged=sandbox.logged(plan.site),
                    tsi=PATHS[path].by_tsi,
                    proxy=proxies.get(sandbox.name),
                    restarts=None
                    if sandbox.handoff is Handoff.POD  # no proxy: the server itself
                    else proxies.get(sandbox.name),
                )
                if PATHS[path].vsock:
                    raw = await _raw(plan, sandbox, stack)
                    own = replace(own, echo=HOST, server=HOST, logged=None, put="put")
                    own = replace(own, http=False)
                    own = replace(own, proxy=raw)
                    if device:
                        own = replace(own, pids={sandbox.backend_name: device.pid})
                elif PATHS[path].standard:
                    own = replace(own, pids=plan.site.pids)
                    if captured:
                        own = replace(own, proxy=captured, restarts=captured)
                    if plan.site.answers and unmeshed:
                        there = plan.site.answers
                        own = replace(own, echo=there, logged=None, proxy=unmeshed)
                ways[path] = own
        readers = (ztunnel, captured) if captured else (ztunnel,)
        mesh = Mesh(plan.mesh, mesh_config(plan), readers)
        yield Bench(ways=ways, ztunnel=ztunnel, new_mesh=mesh.renew), infos[0]


async def _serve(plan: Plan, stack: contextlib.AsyncExitStack) -> None:
    """Start the servers behind it all."""
    module = "fastpath.commands.compare.server"
    argv = (*PYTHON, module, plan.site.listen, str(SERVER_PORT), READY_FD)
    await _child("server", plan.site.behind(argv), plan, stack)
    http = [str(http_program()), READY_FD, plan.site.listen, str(HTTP_PORT)]
    await _child("http", plan.site.behind(http), plan, stack)


async def _proxies(plan: Plan, stack: contextlib.AsyncExitStack) -> dict[str, Child]:
    """Start a proxy for each sandbox that is handed on; by the sandbox's name."""
    found = {}
    for sandbox in plan.sandboxes:
        if sandbox.handoff:
            argv = sandbox.proxy(READY_FD, plan.site)
            name = f"{sandbox.name}-proxy"
            found[sandbox.name] = await _child(name, argv, plan, stack)
    return found


async def _unmeshed(plan: Plan, stack: contextlib.AsyncExitStack) -> Child | None:
    """Start who answers in ztunnel's place, where the standard path has no mesh."""
    site = plan.site
    if site.answers is None:
        return None
    argv = [str(proxy_program()), READY_FD, site.answers, site.server, site.listen]
    return await _child("unmeshed", site.behind([*argv, "plain"]), plan, stack)


async def _raw(plan: Plan, sandbox: Sandbox, stack: contextlib.AsyncExitStack) -> Child:
    """Start who takes a sandbox's own AF_VSOCK connections."""
    argv = sandbox.raw(READY_FD, plan.site)
    return await _child(f"{sandbox.name}-vsock", argv, plan, stack)


async def _device(
    plan: Plan, sandbox: Sandbox, stack: contextlib.AsyncExitStack
) -> Child:
    """Start the back-end of a sandbox's device, if ztunnel isn't it."""
    child = Child(
        sandbox.backend_name,
        sandbox.device,
        cpu=plan.pinning.host,
        log=plan.folder / f"{sandbox.backend_name}.log",
        socket=sandbox.socket,
    )
    return await stack.enter_async_context(child)


async def _ztunnel(plan: Plan, stack: contextlib.AsyncExitStack) -> Child:
    for sandbox in plan.sandboxes:
        keys.make(sandbox.key_file)
    plan.mesh.write_text(yaml.safe_dump(mesh_config(plan)), encoding="utf-8")
    return await _started("ztunnel", ztunnel_config(plan), plan, stack)


async def _captured(plan: Plan, stack: contextlib.AsyncExitStack) -> Child | None:
    """Start a ztunnel for captured connections alone, if there is to be one."""
    if not (plan.apart and plan.site.capture):
        return None
    return await _started("captured", captured_config(plan), plan, stack)


async def _started(
    name: str, config: dict[str, Any], plan: Plan, stack: contextlib.AsyncExitStack
) -> Child:
    file = plan.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    own = plan.variant.ztunnel
    program = (own,) if own else (*PYTHON, "fastpath")
    argv = [*program, "ztunnel", "--config", str(file), "--ready-fd", READY_FD]
    return await _child(name, plan.site.ztunnel(argv), plan, stack)


async def _child(
    name: str, argv: Sequence[str], plan: Plan, stack: contextlib.AsyncExitStack
) -> Child:
    log = plan.folder / f"{name}.log"
    child = Child(name, argv, cpu=plan.pinning.host, log=log)
    return await stack.enter_async_context(child)


async def _boot(
    plan: Plan, sandbox: Sandbox, stack: contextlib.AsyncExitStack
) -> tuple[Guest, Machine, GuestInfo]:
    """Boot a sandbox's microVM."""
    guest = await stack.enter_async_context(
        Guest(sandbox.vsock, console=sandbox.console, key=keys.read(sandbox.key_file))
    )
    machine = await stack.enter_async_context(Machine(_spec(plan, sandbox)))
    info = await machine.watch(guest.ready(plan.boot_timeout_s))
    if sandbox.network:
        await machine.watch(guest.network(*sandbox.network))
        if plan.site.inside:
            await machine.watch(sidecar.start(guest, plan.site.inside))
    for pid in plan.site.pids.values():
        os.sched_setaffinity(pid, {plan.pinning.host})
    for thread in machine.vcpu_thread_ids:
        os.sched_setaffinity(thread, {plan.pinning.vcpu})
    return guest, machine, info


def ztunnel_config(plan: Plan) -> dict[str, Any]:
    """Make the configuration of ztunnel for this scenario, as its YAML file has it."""
    site = plan.site
    # Everything but what is denied by default, and the server even if it is.
    behind = [f"{site.listen}/32:{port}" for port in (SERVER_PORT, HTTP_PORT)]
    allow = ["0.0.0.0/0", *behind]
    own: dict[str, Any] = {
        "mesh": str(plan.mesh),
        "sandboxes": [
            each.config(allow) for each in plan.sandboxes if not each.backend
        ],
        "echo": ECHO,
        "accessLog": str(plan.access_log),
        "drainS": 0,
    }
    if plan.variant.poll_us is not None:
        own["pollUs"] = plan.variant.poll_us
    for sandbox in plan.sandboxes:
        if sandbox.peer:
            own["certificates"] = {"embedded": str(sandbox.certificates)}
    return own if plan.apart else own | _outbound(site)


def captured_config(plan: Plan) -> dict[str, Any]:
    """Make that of a ztunnel which has captured connections and nothing else."""
    whole = ztunnel_config(plan)
    return whole | {"sandboxes": []} | _outbound(plan.site)


def _outbound(site: Site) -> dict[str, Any]:
    if site.capture is None:
        return {}
    way, port = site.capture
    return {"outbound": {way: f"0.0.0.0:{port}"}}


def mesh_config(plan: Plan) -> dict[str, Any]:
    """Make Istio's local file for this scenario."""
    site = plan.site
    config: dict[str, Any] = {
        "workloads": [each for x in plan.sandboxes for each in x.workloads()],
        "services": [each for x in plan.sandboxes for each in x.services()],
    }
    if site.server != site.listen:
        _add_service(config, site)
    return config


def _add_service(config: dict[str, Any], site: Site) -> None:
    """Make the server a service: `site.server` leads to `site.listen`."""
    ports = {port: port for port in (SERVER_PORT, HTTP_PORT)}
    config["services"].append(
        {
            "name": "server",
            "namespace": "compare",
            "hostname": "server.compare",
            "vips": [f"/{site.server}"],
            "ports": ports,
        }
    )
    config["workloads"].append(
        {
            "uid": "server",
            "name": "server",
            "namespace": "compare",
            "workloadIps": [site.listen],
            "services": {"compare/server.compare": ports},
        }
    )


def _spec(plan: Plan, sandbox: Sandbox) -> VmSpec:
    return VmSpec(
        image=plan.image,
        accel=plan.accel,
        vsock_socket=sandbox.socket,
        console=sandbox.console,
        qmp=sandbox.qmp,
        memory_mib=MEMORY_MIB,
        net=sandbox.nic,
        qemu=plan.qemu,
        kernel=plan.variant.kernel,
        append=plan.variant.cmdline,
        cpu_affinity=frozenset({plan.pinning.host}),
    )
