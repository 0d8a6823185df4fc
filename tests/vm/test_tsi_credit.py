"""What TSI sockets hold that nobody reads.

Connections share a part of the guest's memory: one of few has much, by the module
vsock's own 256 KiB, one of many less, and what ended gives back. By the module it is
guest/kernel/inet/credit.c that sees to it, by agents guest/agent/socket/room.c.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.vm import programs
from tests.vm.world import HOST4, POD4, ServiceWorld, open_world

pytestmark = pytest.mark.vm

PROGRAM = Path(__file__).parent / "tsi_credit.c"
CHECKS = programs.checks(PROGRAM.name)
SOURCE, BACK = 7510, 7511
BLOCK = bytes(1 << 16)


async def source(reader, writer):
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(BLOCK)
            await writer.drain()
    writer.close()


async def back(reader, writer):
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        port = int(await reader.readline())
        there, out = await asyncio.open_connection(POD4, port)
        await there.readexactly(1)
        await source(there, out)
    writer.close()


class SourceWorld(ServiceWorld):
    """With servers that send."""

    async def start(self, stack):
        for handler, port in (source, SOURCE), (back, BACK):
            server = await asyncio.start_server(handler, HOST4, port, backlog=4096)
            stack.callback(server.close)
        await super().start(stack)


@pytest.fixture(scope="module")
def results(base_image, accelerator, namespace, tmp_path_factory, form):
    """The program's line for each check."""
    out = tmp_path_factory.mktemp("credit") / "tsi_credit"
    files = {"/bin/tsi_credit": programs.compile_c(out, PROGRAM)}
    options = {"kind": SourceWorld, "memory_mib": 512, "append": f"tsi={form}"}
    with open_world(base_image, accelerator, files, namespace, **options) as world:
        _, said = world.run("tsi_credit", HOST4, str(SOURCE), str(BACK))
        return programs.results(said)


@pytest.mark.parametrize("name", CHECKS)
def test_memory_is_shared(results, name):
    assert results.get(name) == f"ok {name}"
