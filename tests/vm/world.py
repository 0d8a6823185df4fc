"""A microVM whose programs' TCP leaves over TSI, and servers on the host for them.

One VM for a test module, over an engine and a `TsiService` of this process. All of the
host's side lives in a thread inside a network namespace of its own, where 192.0.2.1
and 2001:db8::1 are addresses of `lo`: the guest keeps 127.0.0.0/8 to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import threading
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from fastpath.tsi.datagram import DatagramService
from fastpath.tsi.policy import EgressPolicy, Ports, SandboxPolicy
from fastpath.tsi.service import Route, TsiService
from fastpath.vm import images
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import VmSpec
from fastpath.ztunnel import listener
from fastpath.ztunnel.model import ListenAddress
from vhost_user.backend import Backend
from vhost_user.engine import ALL_EVENTS, Dial, Discard, Engine, EventKind, Reset, Unix
from vhost_user.vsock.device import VsockDevice

HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
POD4, POD6 = "10.0.0.5", "fd00::5"
ECHO, SLOW, HTTP, SILENT = 7007, 7500, 8080, 9999
DISCARD: Final = ("198.18.0.1", 9)
SLOW_S = 0.5
READY_S = 180.0
POLICY: Final = SandboxPolicy(published=Ports.parse("7200-7299"), udp=True)
NETWORK: Final = f"""
ip link set lo up
ip addr add {HOST4}/32 dev lo
ip addr add {HOST6}/128 dev lo
ip addr add {POD4}/32 dev lo
ip route add unreachable 198.51.100.0/24
iptables -A INPUT -p tcp --dport {SILENT} -j DROP
"""


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
            return Route(Discard(), cacheable=True)
        denial = self.policy.check(destination)
        if denial is not None:
            return Route(Reset(denial.error), cacheable=False)
        return Route(Dial(destination), cacheable=destination[1] != SLOW)

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

    def addresses(self, port, version, *, covered):
        there = covered and version == 4
        return [ListenAddress(ip_address(POD4), port)] if there else []

    def listen(self, address, backlog):
        return listener.published(address, backlog)

    def opened(self):
        pass

    def failed(self, client, error):
        pass

    def ended(self):
        pass

    def closed(self, client, event):
        pass


class SlowService(TsiService):
    """Takes its time to answer for one port: a host that is far away."""

    def _answer(self, conn, token, destination):
        answer = super()._answer
        if destination[1] == SLOW:
            loop = asyncio.get_running_loop()
            loop.call_later(SLOW_S, answer, conn, token, destination)
        else:
            answer(conn, token, destination)


async def echo(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def http(reader, writer):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
        await writer.drain()
    writer.close()


class World:
    """The VM, its host side, and the thread that they live in."""

    def __init__(self, spec, uds_path, namespace):
        self._spec = spec
        self._uds_path = uds_path
        self._namespace = namespace
        self._ready = threading.Event()
        self._error = None
        self.router = Router()
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

    def run(self, *argv, tsi=True, timeout_s=60, **options):
        """Run a command in the guest; return its status and what it printed."""

        async def bounded():
            said = bytearray()
            async with asyncio.timeout(timeout_s):
                status = await self.machine.watch(
                    self.guest.run(
                        argv,
                        tsi=tsi,
                        stdout=said.extend,
                        stderr=said.extend,
                        **options,
                    )
                )
            return status, said.decode(errors="replace")

        return self.call(bounded())

    def sh(self, script, **options):
        return self.run("sh", "-c", script, **options)

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stats(self):
        async def read():
            return self.device.handle.stats(), self.service.stats()

        return self.call(read())

    def _main(self):
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            assert libc.setns(self._namespace.fileno(), 0x40000000) == 0
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self):
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            for host in (HOST4, HOST6):
                for handler, port in ((echo, ECHO), (echo, SLOW), (http, HTTP)):
                    server = await asyncio.start_server(
                        handler, host, port, backlog=4096
                    )
                    stack.callback(server.close)
            engine = await stack.enter_async_context(Engine())
            await self._start_device(engine, stack)
            self.guest = await stack.enter_async_context(
                Guest(self._uds_path, console=self._spec.console)
            )
            self.machine = await stack.enter_async_context(Machine(self._spec))
            await self.machine.watch(self.guest.ready(READY_S))
            self._ready.set()
            await self._stop.wait()

    async def _start_device(self, engine, stack):
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
            addresses=[POD4, POD6],
            name="test",
            policy=POLICY,
            datagrams=DatagramService(engine, self.router, policy=POLICY, name="test"),
            publisher=Publisher(),
            other=Unix(str(self._uds_path)),
        )
        stack.callback(self.service.close)
        backend = Backend(self._spec.vsock_socket, self.device, name="test")
        stack.push_async_callback(backend.close)
        await backend.start()


@contextlib.contextmanager
def open_world(image, accelerator, files, namespace, **options):
    """Boot `image` with `files` (guest path -> host file) added."""
    folder = Path(f"/tmp/tsi-{os.getpid()}")
    folder.mkdir()
    try:
        spec = VmSpec(
            image=images.with_files(image, files, folder / "initramfs"),
            accel=accelerator,
            vsock_socket=folder / "vhost",
            console=folder / "console",
            qmp=folder / "qmp",
            **{"memory_mib": 1024} | options,
        )
        with World(spec, folder / "vsock", namespace) as there:
            yield there
    finally:
        shutil.rmtree(folder)
