"""Two microVMs with servers in them, and the clients on the host that reach them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from tests.support.limits import GUEST_LIMIT_S as START_S
from tests.support.limits import wait_until
from tests.vm.world import ZtunnelWorld

if TYPE_CHECKING:
    from fastpath.vm.guest import Command

PORT, PRIVATE, FIRST_CHECK = 8080, 9090, 7000
EPHEMERAL = "32768-60999"
POLICY = f'published: ["{FIRST_CHECK}-7999", "{PORT}-8089", "{EPHEMERAL}"]\n'


async def make_reader():
    return asyncio.StreamReader()


class Program:
    """A program that runs in a guest."""

    def __init__(self, world, vm):
        self._world, self._vm = world, vm
        self._said = bytearray()
        self.stdin = world.call(make_reader())
        self._news = threading.Condition()
        self.future: Future[int] = Future()
        self.command: Command

    def heard(self, data):
        with self._news:
            self._said += data
            self._news.notify_all()

    def feed(self, data):
        self._world.call_soon(self.stdin.feed_data, data)

    def said(self):
        return self._said.decode(errors="replace")

    def wait_for(self, pattern):
        """The first group of what it says."""
        with self._news:
            assert self._news.wait_for(
                lambda: re.search(pattern, self.said()) or self.future.done(), START_S
            ), self.said()
        found = re.search(pattern, self.said())
        assert found, self.said()
        return found.group(1)

    def end(self):
        """Its status, when it has ended by itself."""
        return self.future.result(START_S)

    def signal(self, signo):
        self._world.call_soon(self.command.signal, signo)


class World(ZtunnelWorld):
    """Both VMs and their ztunnel; the clients are the tests' own."""

    policies = dict.fromkeys(("one", "two"), POLICY)

    @contextlib.contextmanager
    def program(self, *argv, vm=None):
        """Run a program; it is killed if it has not ended at the end."""
        program = Program(self, vm)
        machine, guest = self.vm(vm)
        program.command = self.call(
            guest.start(
                argv,
                tsi=True,
                stdin=program.stdin,
                stdout=program.heard,
                stderr=program.heard,
            )
        )
        program.future = self.begin(machine.watch(program.command.wait()))
        program.future.add_done_callback(lambda _: program.heard(b""))
        try:
            yield program
        finally:
            if not program.future.done():
                program.signal(9)
            program.future.result(START_S)

    def host(self, *command):
        """Run a command on the host's side."""
        return self.namespace.run(
            subprocess.run,
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=START_S,
        )

    def curl(self, url, *options):
        return self.host("curl", "-sS", *options, url)

    def connect(self, host, port, source=None):
        """A client of the host's side."""

        def dial():
            where = (source, 0) if source else None
            return socket.create_connection((host, port), START_S, where)

        return self.namespace.run(dial)

    def line(self, host, port, source=None):
        """What a server of ours says, and the client's own name."""
        with self.connect(host, port, source) as sock:
            name = sock.getsockname()
            return sock.makefile().readline().split(), f"{name[0]}/{name[1]}"

    def line_soon(self, host, port, source, words=3):
        """Same, as soon as it gets through: there may be no agent just now."""

        def found():
            with contextlib.suppress(ConnectionError):
                said, name = self.line(host, port, source)
                return (said, name) if len(said) == words else None
            return None

        return wait_until(found, limit_s=START_S)

    def listeners(self):
        return self.ask("one", lambda it: it.service.stats().listeners)

    def wait_until_nobody_listens(self):
        """The control stream and init's are two: either may be first."""
        self.wait("one", lambda it: not it.service.stats().listeners)
