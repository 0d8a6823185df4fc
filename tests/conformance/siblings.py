"""A back-end of several guests that reach each other by CID, and fixtures of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from tests.conformance.threads import InThread
from tests.support.limits import wait_until
from vhost_user.backend import Backend
from vhost_user.engine import ALL_EVENTS, Echo, Engine
from vhost_user.vsock.device import VsockDevice
from vhost_user.vsock.driver import PAYLOAD_OPS, VsockGuest
from vhost_user.vsock.packet import Op

ECHO = 7
WINDOW = 64 * 1024
GROUP = frozenset({"a"})


class Site(InThread):
    """A back-end with several devices: CID 3 and up, `groups` of each."""

    def __init__(self, directory, groups, *, dial_timeout_s=30.0, **options):
        super().__init__()
        self.directory = directory
        self.events = {}
        self.devices = {}
        self.backends = {}
        self._groups = groups
        self._dial_timeout_s = dial_timeout_s
        self._options = {"buf_alloc": WINDOW, **options}

    async def _serve(self):
        async with contextlib.AsyncExitStack() as stack:
            self._engine = await stack.enter_async_context(
                Engine(poll_us=0, dial_timeout_s=self._dial_timeout_s)
            )
            for cid, groups in enumerate(self._groups, 3):
                self.events[cid] = []
                device = VsockDevice(
                    self._engine,
                    guest_cid=cid,
                    groups=groups,
                    on_event=self.events[cid].append,
                    want=ALL_EVENTS,
                    **self._options,
                )
                device.handle.route(ECHO, Echo())
                self.devices[cid] = device
                backend = Backend(self.path(cid), device, name=f"CID {cid}")
                await backend.start()
                self.backends[cid] = backend
            await self._until_left()
            for cid in tuple(self.backends):
                await self._remove(cid)

    async def _remove(self, cid):
        await self.backends.pop(cid).close()
        self.devices.pop(cid).close()

    def path(self, cid):
        return self.directory / str(cid)

    def remove(self, cid):
        """Take a device out of the engine while its guest runs."""
        self.run(self._remove(cid))

    def wait_for_sleep(self):
        """Wait until its engine's thread sleeps, and with it all devices rest."""
        stat = Path(f"/proc/self/task/{self._engine._thread.native_id}/stat")
        wait_until(lambda: stat.read_text().rpartition(") ")[2].startswith("S"))

    def stats(self, cid):
        return self.call(self.devices[cid].handle.stats)

    def add(self, cid, groups):
        """Add a device that has no socket, and remove it."""

        def add():
            VsockDevice(self._engine, guest_cid=cid, groups=groups).close()

        self.call(add)

    def wait_events(self, cid, kind, count):
        """Wait for events of one kind; return all of that kind."""

        async def wait():
            while True:
                found = [e for e in self.events[cid] if e.kind is kind]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.001)

        return self.run(wait())


@pytest.fixture
def make_site(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(*groups, **options):
            return stack.enter_context(Site(tmp_path, groups, **options))

        yield make


@pytest.fixture
def site(make_site):
    return make_site(GROUP, GROUP)


@pytest.fixture
def make_guest(site):
    with contextlib.ExitStack() as stack:

        def make(cid, **options):
            guest = VsockGuest(site.path(cid), cid=cid, **options)
            return stack.enter_context(guest)

        yield make


@pytest.fixture
def a(make_guest):
    return make_guest(3)


@pytest.fixture
def b(make_guest):
    return make_guest(4)


def connect(a, b, port=5000, **options):
    """Connect guest `a` to port `port` of guest `b`; return both ends."""
    near = a.request(port, cid=b.cid, **options)
    far = b.accept()
    near.expect(Op.RESPONSE)
    return near, far


def works(a, b):
    """Check that two guests still have a connection when they want one."""
    near, far = connect(a, b, 6000)
    near.say(Op.RW, b"ping")
    assert far.receive_bytes(4) == b"ping"
    far.say(Op.RW, b"pong")
    assert near.receive_bytes(4) == b"pong"


def pattern(size, seed=1):
    return random.Random(seed).randbytes(size)


def pump(near, far, data):
    """Send all of `data` within the credit while the other end reads it."""
    got = bytearray()
    told = far.fwd_cnt
    while len(got) < len(data):
        room = min(near.credit, 32768, len(data) - near.tx_cnt)
        if room > 0:
            near.say(Op.RW, data[near.tx_cnt : near.tx_cnt + room])
            while len(got) < near.tx_cnt:
                packet = far.expect(*PAYLOAD_OPS)
                got += packet.payload
                if packet.op == Op.CREDIT_REQUEST:
                    far.say(Op.CREDIT_UPDATE)
                if far.fwd_cnt - told >= far.buf_alloc // 4:
                    told = far.fwd_cnt
                    far.say(Op.CREDIT_UPDATE)
        else:
            near.expect(Op.CREDIT_UPDATE)
    return bytes(got)
