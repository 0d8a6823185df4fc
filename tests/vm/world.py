"""MicroVMs whose programs' sockets are the host's, and servers on the host for them.

One world for a test module. All of the host's side lives in a thread inside a network
namespace of its own, where 192.0.2.1 and 2001:db8::1, and the pods' addresses, are
addresses of `lo`: the guest keeps 127.0.0.0/8 to itself. `ServiceWorld` is one VM over
an engine and a `TsiService` of this process; `ZtunnelWorld` is the sandboxes of one
`Ztunnel`, and a test module adds what it has on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import tempfile
import threading
from abc import ABC, abstractmethod
from dataclasses import replace
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import ClassVar, Final

from fastpath.image import images
from fastpath.tsi.datagram import DatagramService
from fastpath.tsi.policy import EgressPolicy, Ports, SandboxPolicy
from fastpath.tsi.router import Routed
from fastpath.tsi.service import TsiService
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec
from fastpath.ztunnel import listener
from fastpath.ztunnel.model import Config, ListenAddress, Sandbox, Workload
from fastpath.ztunnel.process import Ztunnel
from tests.support.limits import GUEST_LIMIT_S, until
from tests.vm import kernellog
from vhost_user.backend import Backend
from vhost_user.engine import ALL_EVENTS, Dial, Discard, Engine, EventKind, Reset, Unix
from vhost_user.vsock.device import VsockDevice

HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
PODS: Final = tuple((f"10.0.0.{n}", f"fd00::{n}") for n in (5, 6, 7))
POD4, POD6 = PODS[0]
ECHO, SLOW, LATE, HTTP, SILENT = 7007, 7500, 7501, 8080, 9999
BACK = 7503
KEY: Final = bytes(range(16))
"""What a sandbox's streams have to show."""
DISCARD: Final = ("198.18.0.1", 9)
DELAYS_S: Final = {SLOW: 1.5, LATE: 30.0}
POLICY: Final = SandboxPolicy(published=Ports.parse("7200-7299"), udp=True)
ADDRESSES: Final = (HOST4, HOST6, *chain(*PODS))
NETWORK: Final = "\n".join(
    [
        "ip link set lo up",
        *(f"ip addr add {ip} dev lo" for ip in ADDRESSES),
        "ip route add unreachable 198.51.100.0/24",
        f"iptables -A INPUT -p tcp --dport {SILENT} -j DROP",
    ]
)


class Router:
    """Default policy; counts what it hears."""

    def __init__(self):
        self.policy = EgressPolicy()
        self.asked = []
        self.events = []

    def set_policy(self, policy):
        self.policy = policy.egress

    def route(self, destination, conn):
        self.asked.append(destination)
        if destination == DISCARD:
            return Routed(Discard(), cacheable=True)
        denial = self.policy.check(destination)
        if denial is not None:
            return Routed(Reset(denial.error), cacheable=False)
        return Routed(Dial(destination), cacheable=destination[1] not in DELAYS_S)

    def opened(self, event, destination):
        self.events.append((EventKind.OPENED, destination))

    def failed(self, event, destination):
        self.events.append((EventKind.FAILED, destination))

    def closed(self, event, destination):
        self.events.append((EventKind.CLOSED, destination))

    async def resolve(self, query, *, tcp):
        return None

    def datagram_denied(self, peer, denial):
        self.events.append(("denied", peer))


class Publisher:
    """Publishes what the policy says at the pod's IPv4 address."""

    gone = False

    def publishes(self, port, *, covered):
        return covered

    def gated(self, *, covered):
        return False

    def tunnel(self):
        return None

    def addresses(self, port, version, *, covered):
        there = covered and version == 4
        return [ListenAddress(ip_address(POD4), port)] if there else []

    def listen(self, address, backlog):
        return listener.published(address, backlog)

    def opened(self, client):
        pass

    def failed(self, client, error):
        pass

    def denial(self, client):
        return ""

    def ended(self, client):
        pass

    def closed(self, client, event):
        pass


class SlowService(TsiService):
    """Takes its time to answer for two ports: a host that is far away."""

    greetings = math.inf
    """So many are given at once, the others when released."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._late = []

    def _greet(self, agent, hello):
        self.greetings -= 1
        if self.greetings >= 0:
            super()._greet(agent, hello)
        else:
            self._late.append((agent, hello))

    def release(self):
        self.greetings = math.inf
        while self._late:
            super()._greet(*self._late.pop())

    def _answer(self, conn, token, destination):
        answer = super()._answer
        if (delay_s := DELAYS_S.get(destination[1])) is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(delay_s, answer, conn, token, destination)
        else:
            answer(conn, token, destination)


async def echo(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def back(reader, writer):
    """Connect to the pod's port that is named, and be an echo there."""
    with contextlib.suppress(ConnectionError):
        port = int(await reader.readline())
        await echo(*await asyncio.open_connection(POD4, port))
    writer.close()


async def http(reader, writer):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
        await writer.drain()
    writer.close()


SERVERS: Final = ((echo, ECHO), (echo, SLOW), (http, HTTP), (back, BACK))


class World(ABC):
    """VMs, their host side, and the thread that they live in.

    Args:
        specs: VMs by name; what names none means the first.
        folder: of their sockets; `folder/NAME.vsock` is a VM's own.
        namespace: where the host's side lives.
    """

    appends: ClassVar[dict[str, str]] = {"agent": "tsi=agent"}
    """Parameters of a VM's kernel, besides the usual ones."""
    key: ClassVar[bytes] = KEY
    """What init of each VM gets."""

    def __init__(self, specs, folder, namespace):
        self.namespace = namespace
        self._specs = specs
        self._folder = folder
        self._vms = {}
        self._ready = threading.Event()
        self._error = None
        self._thread = threading.Thread(target=self._main)

    def __enter__(self):
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(self, *exc):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._error is not None and exc[0] is None:
            raise self._error

    @classmethod
    @abstractmethod
    def names(cls):
        """What the VMs are called."""

    @abstractmethod
    async def start(self, stack):
        """Start what the VMs need on the host; `stack` ends it."""

    def vm(self, name=None):
        """A VM and its guest."""
        return self._vms[name or self.names()[0]]

    def console(self, name=None):
        """What a VM's kernel, and its programs, have said on the console."""
        console = self.vm(name)[0].spec.console
        return console.read_text(encoding="utf-8", errors="replace")

    def run(self, *argv, vm=None, tsi=True, timeout_s=GUEST_LIMIT_S, **options):
        """Run a command in a guest; return its status and what it printed."""
        machine, guest = self.vm(vm)

        async def bounded():
            said = bytearray()
            async with asyncio.timeout(timeout_s):
                work = guest.run(
                    argv, tsi=tsi, stdout=said.extend, stderr=said.extend, **options
                )
                status = await machine.watch(work)
            return status, said.decode(errors="replace")

        return self.call(bounded())

    def sh(self, script, **options):
        return self.run("sh", "-c", script, **options)

    def begin(self, work):
        """Start a coroutine in the world's thread; return its future."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, work):
        return self.begin(work).result()

    def call_soon(self, function, *args):
        self._loop.call_soon_threadsafe(function, *args)

    def _main(self):
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            assert libc.setns(self.namespace.fileno(), 0x40000000) == 0
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self):
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            await self.start(stack)
            for name, spec in self._specs.items():
                guest = await stack.enter_async_context(
                    Guest(
                        self._folder / f"{name}.vsock",
                        console=spec.console,
                        key=self.key,
                    )
                )
                spec = stack.enter_context(kernellog.watched(spec))
                machine = await stack.enter_async_context(Machine(spec))
                self._vms[name] = machine, guest
            for machine, guest in self._vms.values():
                await machine.watch(guest.ready(GUEST_LIMIT_S))
            self._ready.set()
            await self._stop.wait()


class ServiceWorld(World):
    """One VM over an engine and a `TsiService`, with TCP servers on the host."""

    addresses: ClassVar[tuple[str, ...]] = POD4, POD6

    def __init__(self, *args):
        super().__init__(*args)
        self.router = Router()

    @classmethod
    def names(cls):
        return ("vm",)

    def stats(self):
        async def read():
            return self.device.handle.stats(), self.service.stats()

        return self.call(read())

    async def start(self, stack):
        for host in (HOST4, HOST6):
            for handler, port in SERVERS:
                server = await asyncio.start_server(handler, host, port, backlog=4096)
                stack.callback(server.close)
        engine = await stack.enter_async_context(Engine())
        (name,) = self.names()
        self.device = VsockDevice(
            engine,
            guest_cid=3,
            on_event=lambda event: self.service.handle_event(event),
            want=ALL_EVENTS,
        )
        stack.callback(self.device.close)
        self.service = SlowService(
            engine,
            self.device,
            self.router,
            addresses=self.addresses,
            name="test",
            policy=POLICY,
            datagrams=DatagramService(
                engine, self.router, policy=POLICY, name="test", key=KEY
            ),
            key=KEY,
            publisher=Publisher(),
            other=Unix(str(self._folder / f"{name}.vsock")),
        )
        stack.callback(self.service.close)
        self.backend = Backend(self._specs[name].vsock_socket, self.device, name="test")
        stack.push_async_callback(self.backend.close)
        await self.backend.start()


class ZtunnelWorld(World):
    """VMs that are sandboxes of one `Ztunnel`, each with addresses of `PODS`.

    A subclass gives their policies, by name, and the mesh around them.
    """

    policies: ClassVar[dict[str, str]]
    mesh: ClassVar[Config] = Config()

    def __init__(self, *args):
        super().__init__(*args)
        self._log = self._folder / "access.log"
        self._key_file = self._folder / "key"

    @classmethod
    def names(cls):
        return tuple(cls.policies)

    async def start(self, stack):
        for name, policy in self.policies.items():
            self._policy_file(name).write_text(policy)
        self._key_file.write_text(KEY.hex())
        self.ztunnel = await stack.enter_async_context(Ztunnel(self._config()))

    def ask(self, vm, question):
        """Return what `question` finds of what runs for a sandbox."""

        async def answer():
            return question(self.ztunnel.sandboxes[vm])

        return self.call(answer())

    def wait(self, vm, condition):
        """Wait until what runs for a sandbox is so."""

        async def poll():
            await until(lambda: condition(self.ztunnel.sandboxes[vm]))

        self.call(poll())

    def set_policy(self, vm, text):
        """Write another policy, and wait until it is in force."""
        before = self.ask(vm, lambda it: it.service.policy)
        self._policy_file(vm).write_text(text)
        self.wait(vm, lambda it: it.service.policy is not before)

    def logged(self, text):
        """Wait for a line in the access log with this text, and return it."""

        def found():
            lines = self._log.read_text().splitlines()
            return next((line for line in lines if text in line), None)

        return self.call(until(found, what=text))

    def _policy_file(self, name):
        return self._folder / f"{name}.yaml"

    def _config(self):
        pods = [
            Workload(
                workload_ips=tuple(map(ip_address, ips)), namespace="default", name=name
            )
            for name, ips in zip(self.names(), PODS, strict=False)
        ]
        sandboxes = [
            Sandbox(
                name=name,
                workload=f"default/{name}",
                socket=self._specs[name].vsock_socket,
                cid=3 + i,
                uds_path=self._folder / f"{name}.vsock",
                key_file=self._key_file,
                policy=self._policy_file(name),
            )
            for i, name in enumerate(self.names())
        ]
        return replace(
            self.mesh,
            workloads=(*pods, *self.mesh.workloads),
            fastpath=replace(
                self.mesh.fastpath, sandboxes=tuple(sandboxes), access_log=self._log
            ),
        )


@contextlib.contextmanager
def open_world(image, accelerator, files, namespace, kind=ServiceWorld, **options):
    """Boot `image` with `files` (guest path -> host file) added, once a name.

    In one that is called "agent", agents have the sockets.
    """
    with tempfile.TemporaryDirectory(prefix="tsi-") as there:
        folder = Path(there)
        image = images.with_files(image, files, folder / "initramfs")
        specs = {
            name: VmSpec(
                image=image,
                accel=accelerator,
                vsock_socket=folder / f"{name}.vhost",
                console=folder / f"{name}.console",
                qmp=folder / f"{name}.qmp",
                **{"memory_mib": 1024, "append": kind.appends.get(name, "tsi=module")}
                | options,
            )
            for name in kind.names()
        }
        with kind(specs, folder, namespace) as world:
            yield world
