"""nghttp2's own clients at a gate: nghttp, and h2load behind a relay that does TLS.

Neither can send a CONNECT that RFC 9113 takes: both always say `:path`. So what they
say is a GET or a POST, which gets 400, or a CONNECT that is malformed, which is reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess

import pytest

from tests.conformance.links import wait_for
from tests.conformance.threads import TIMEOUT_S, InThread
from tests.conformance.wires import Beside, Gate
from tests.support import pki

AS_CONNECT = ["-H:method: CONNECT"]


class Relay(InThread):
    """Passes bytes on to the gate, by TLS, for programs that have no certificate."""

    def __init__(self, context, address):
        super().__init__()
        self._context = context
        self._address = address

    async def _serve(self):
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server, asyncio.TaskGroup() as self._group:
            await self._until_left()

    def _take(self, reader, writer):
        self._group.create_task(self._pass_on(reader, writer))

    async def _pass_on(self, reader, writer):
        there, back = await asyncio.open_connection(*self._address, ssl=self._context)
        ways = [_copy(reader, back), _copy(there, writer)]
        tasks = [asyncio.create_task(each) for each in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, back):
            each.transport.abort()
        await asyncio.gather(
            *tasks, writer.wait_closed(), back.wait_closed(), return_exceptions=True
        )


async def _copy(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


class World:
    """A gate, and a tunnel beside."""

    def __init__(self, mesh):
        self.mesh = mesh
        self.gate = Gate(mesh)
        self.beside = Beside(mesh, self.gate)
        self.before = self._there()

    def _there(self):
        stats = self.gate.stats()
        return stats.tunnels, stats.streams, self.mesh.host.engine_stats().conns

    def check_nothing_left(self):
        """All that came has gone, and the tunnel beside works."""
        wait_for(lambda: self._there() == self.before, "tunnels to end")
        self.beside.works()
        stats = self.gate.stats()
        assert (stats.faults, stats.floods, stats.silent) == (0, 0, 0)


@pytest.fixture
def world(mesh):
    return World(mesh)


def run(*argv):
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    return done.stdout + done.stderr


# ---- nghttp ----


@pytest.fixture
def nghttp(world):
    """Return a function that runs it, with a certificate of the mesh."""
    world.mesh.context(pki.WEB)  # leaves chain.pem and key.pem
    folder, (host, port) = world.mesh.folder, world.gate.ours.address
    keys = [f"--cert={folder}/chain.pem", f"--key={folder}/key.pem"]
    return lambda *options: run(
        "nghttp", "-v", *keys, *options, f"https://{host}:{port}/"
    )


GETS = {
    "plain": [],
    "continuation": ["--continuation"],
    "without-priorities": ["--no-dep"],
    "small-windows": ["-w16", "-W16"],
    "no-header-table": ["-c0", "--encoder-header-table-size=0"],
    "padding": ["--padding=200"],
    "many": ["-m20"],
}


@pytest.mark.parametrize("options", GETS.values(), ids=GETS)
def test_nghttps_get_is_400(world, nghttp, options):
    said = nghttp(*options)
    assert said.count(":status: 400") == (20 if "-m20" in options else 1), said
    assert "SETTINGS_MAX_CONCURRENT_STREAMS(0x03):200" in said
    assert "GOAWAY frame <length=8, flags=0x00, stream_id=0>" in said  # its own
    world.check_nothing_left()


def test_nghttps_post_with_trailers_is_400(world, nghttp, tmp_path):
    body = tmp_path / "body"
    body.write_bytes(bytes(100_000))
    said = nghttp(f"-d{body}", "--trailer", "a: b", "-H:method: POST")
    assert ":status: 400" in said, said
    world.check_nothing_left()


def test_nghttps_connect_is_malformed_and_reset(world, nghttp):
    said = nghttp(*AS_CONNECT)
    assert re.search(r"recv RST_STREAM.*\n.*error_code=PROTOCOL_ERROR", said), said
    world.check_nothing_left()


# ---- h2load ----


@pytest.fixture
def h2load(world):
    """Return its command line; the rest is what it does."""
    context = world.mesh.context(pki.WEB)
    with Relay(context, world.gate.ours.address) as relay:
        yield lambda *options: ["h2load", f"http://127.0.0.1:{relay.port}/", *options]


def test_h2loads_gets_are_all_400(world, h2load):
    said = run(*h2load("-n2000", "-c10", "-m100"))
    assert "2000 done, 0 succeeded, 2000 failed, 0 errored, 0 timeout" in said, said
    assert "0 2xx, 0 3xx, 2000 4xx, 0 5xx" in said
    world.check_nothing_left()


def test_h2loads_connects_are_all_reset(world, h2load):
    said = run(*h2load("-n500", "-c5", "-m10", *AS_CONNECT))
    assert "500 done, 0 succeeded, 500 failed, 500 errored, 0 timeout" in said, said
    world.check_nothing_left()


def test_h2loads_posts_end(world, h2load, tmp_path):
    """Some hear 400, some RST_STREAM: a body that nobody takes."""
    body = tmp_path / "body"
    body.write_bytes(bytes(100_000))
    said = run(*h2load("-n200", "-c5", "-m10", f"-d{body}"))
    assert "200 done, 0 succeeded, 200 failed" in said, said
    world.check_nothing_left()


def test_h2load_that_is_killed_leaves_nothing(world, h2load):
    with subprocess.Popen(
        h2load("-D60", "-c20", "-m50"), stdout=subprocess.DEVNULL
    ) as process:
        wait_for(lambda: world.gate.stats().requests > 1000, "its requests")
        process.send_signal(signal.SIGKILL)
    world.check_nothing_left()
