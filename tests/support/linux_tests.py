"""Linux's own tests of vsock, between two guests that are siblings of one back-end.

tools/testing/vsock comes from a linux-source package of Debian and is built on the
host, statically. `vsock_test` runs in both guests and goes from case to case by a TCP
connection between them, through QEMU's own network. `vsock_perf` sends for as long as
it is told.

Spec: Linux, tools/testing/vsock/README.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.image import packages
from fastpath.image.images import cache_directory, locked
from fastpath.vm.guest import Guest
from fastpath.vm.machine import Machine
from fastpath.vm.spec import UserNet
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from fastpath.vm.spec import VmSpec

SUITE: Final = "bookworm-backports"
"""Has linux-source-6.1, too: it builds on bookworm."""
FOLDER: Final = "tools/testing/vsock"
NEEDED: Final = (FOLDER, "tools/include", "include/uapi/linux/vm_sockets.h")
PROGRAMS: Final = ("vsock_test", "vsock_perf")
TIMEOUT_S: Final = 600
"""How long vsock_test waits for its peer: Linux's 10 s are too few for a guest under
TCG on a machine that is busy."""
GUEST_ADDRESS: Final = "10.0.2.15/24"
HOST_ADDRESS: Final = "10.0.2.2"
"""The host's loopback, as QEMU's network has it."""
DELAY_S: Final = 0.02
"""Of the guests' TCP connection, each way."""
LISTENING: Final = "Control socket listening"
TIMEOUT: Final = re.compile(r"(\bTIMEOUT = )\d+")
CASE: Final = re.compile(r"^\d+ - (?P<name>.+)\.\.\.(?P<result>.*)$")
SPEED: Final = re.compile(r"(?P<way>tx|rx) performance: (?P<gbits>[\d.]+) Gbits/s")
WHEN_IT_LISTENS: Final = (
    'for i in $(seq 3000); do vsock_perf "$@" && exit; sleep 0.1; done; exit 1'
)
COMPLETED: Final = "All tests have been executed"


@dataclass(frozen=True, slots=True)
class Case:
    """One case of vsock_test."""

    number: int
    name: str
    result: str
    """What vsock_test said: "ok", "skipped", or words about a failure."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two guests, and the CIDs by which they know each other."""

    guests: tuple[Guest, Guest]
    cids: tuple[int, int]
    port: int
    """TCP port of the first one."""
    link: int
    """TCP port of the host that leads there."""


def build(release: str) -> Path:
    """Build the tests of a kernel, or return the folder that the cache has.

    Blocks; the first time for half a minute.

    Args:
        release: "6.1" or "6.12".

    Raises:
        FastpathError: the package archive is out of reach, or gcc is missing.
    """
    folder = cache_directory() / "linux-tests" / f"{release}-{TIMEOUT_S}"
    with locked(cache_directory() / "lock"):
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            _build(release, folder)
    return folder


def programs(folder: Path) -> dict[str, Path]:
    """Guest path -> program, for `images.with_files`."""
    return {f"/bin/{each.name}": each for each in folder.iterdir()}


@contextlib.asynccontextmanager
async def pair(
    specs: tuple[VmSpec, VmSpec],
    uds_paths: tuple[Path, Path],
    cids: tuple[int, int],
    ready_s: float,
) -> AsyncIterator[Pair]:
    """Boot two guests with a network, on a back-end that runs."""
    port = free_port()
    nets = (UserNet((port, port)), UserNet())
    async with contextlib.AsyncExitStack() as stack:
        link = await stack.enter_async_context(_slow_link(port))
        machines, guests = [], []
        for spec, uds_path, net in zip(specs, uds_paths, nets, strict=True):
            guest = Guest(uds_path, console=spec.console)
            guests.append(await stack.enter_async_context(guest))
            machine = Machine(replace(spec, net=net))
            machines.append(await stack.enter_async_context(machine))
        for machine, guest in zip(machines, guests, strict=True):
            await machine.watch(guest.ready(ready_s))
            await guest.network(GUEST_ADDRESS, HOST_ADDRESS)
        yield Pair((guests[0], guests[1]), cids, port, link)


async def vsock_test(both: Pair, skip: Sequence[int] = ()) -> list[Case]:
    """Run vsock_test: the first guest is the server, the second the client.

    Args:
        both: the guests, with the program in their images.
        skip: cases to leave out.

    Returns:
        The cases in order, up to the first that failed, which says why.
    """
    skipped = [f"--skip={each}" for each in skip]
    cids = [f"--peer-cid={each}" for each in reversed(both.cids)]
    port = f"--control-port={both.port}"
    link = (f"--control-host={HOST_ADDRESS}", f"--control-port={both.link}")
    said = await _in_both(
        both,
        ["vsock_test", "--mode=server", port, cids[0], *skipped],
        LISTENING,
        ["vsock_test", "--mode=client", *link, cids[1], *skipped],
    )
    server, cases = parse_cases(said[0]), parse_cases(said[1])
    for theirs, ours in zip(server, cases, strict=False):
        if theirs.result != ours.result:  # one failed, and the other knows of no more
            why = f"server: {theirs.result}; client: {ours.result}"
            return [*cases[: ours.number], replace(ours, result=why)]
    return cases


async def vsock_perf(
    both: Pair, *, to_second: bool, size: int, buffer: int
) -> tuple[float, float]:
    """Send from one guest to the other.

    Args:
        both: the guests, with the program in their images.
        to_second: from the first to the second, else the other way.
        size: bytes to send.
        buffer: bytes of one write and one read.

    Returns:
        What the sender and what the receiver saw, Gbit/s.

    Raises:
        FastpathError: the program failed.
    """
    guests = both.guests if to_second else both.guests[::-1]
    receiver = both.cids[1] if to_second else both.cids[0]
    sizes = [f"--bytes={size}", f"--buf-size={buffer}"]
    said = await _in_both(
        replace(both, guests=(guests[1], guests[0])),
        ["vsock_perf", sizes[1]],
        None,
        ["sh", "-c", WHEN_IT_LISTENS, "sh", f"--sender={receiver}", *sizes],
    )
    found = {
        each["way"]: float(each["gbits"]) for each in SPEED.finditer("".join(said))
    }
    if set(found) != {"tx", "rx"}:
        raise FastpathError("vsock_perf", " / ".join("".join(said).splitlines()[-3:]))
    return found["tx"], found["rx"]


def parse_cases(said: str) -> list[Case]:
    """What vsock_test printed, as cases.

    The result of a case is what follows its name; on another line if the
    program wrote in between, and nothing at all if it died.
    """
    cases: list[Case] = []
    for line in said.splitlines():
        if line.startswith(COMPLETED):
            break
        if match := CASE.match(line):
            cases.append(Case(len(cases), match["name"], match["result"]))
        elif cases and cases[-1].result != "ok":
            last = cases[-1]
            words = "; ".join(filter(None, (last.result, line)))
            cases[-1] = replace(last, result="ok" if line == "ok" else words)
    return cases


async def _in_both(
    both: Pair, first: list[str], ready: str | None, second: list[str]
) -> tuple[str, str]:
    """Run a command in the first guest and, once it says `ready`, one in the second."""
    said = (bytearray(), bytearray())
    begun = asyncio.Event()

    def on_first(data: bytes) -> None:
        said[0].extend(data)
        if ready is not None and ready.encode() in said[0]:
            begun.set()

    server = asyncio.create_task(
        both.guests[0].run(first, tsi=False, stdout=on_first, stderr=on_first)
    )
    server.add_done_callback(lambda _task: begun.set())
    if ready is None:
        begun.set()
    try:
        await begun.wait()
        sink = said[1].extend
        await both.guests[1].run(second, tsi=False, stdout=sink, stderr=sink)
        await server
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)
    return said[0].decode(errors="replace"), said[1].decode(errors="replace")


@contextlib.asynccontextmanager
async def _slow_link(port: int) -> AsyncIterator[int]:
    """A TCP port of the loopback that leads to `port`, `DELAY_S` away.

    vsock_test takes it that what a guest sent over vsock has arrived before what its
    program then says by TCP, while the guest's kernel sends both when it comes to it:
    a RST, overtaken on the way, leaves a port bound ("double bind connect").
    """
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await asyncio.sleep(DELAY_S)
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        ways = ((reader, there[1]), (there[0], writer))
        tasks.update(asyncio.create_task(copy(*way)) for way in ways)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _build(release: str, folder: Path) -> None:
    if shutil.which("make") is None or shutil.which("cc") is None:
        raise FastpathError(
            "Linux's vsock tests", "no compiler", "apt-get install gcc libc6-dev make"
        )
    name = f"linux-source-{release}"
    archive = packages.Archive(cache_directory(), SUITE)
    archive.update()
    found = [each for each in archive.resolve([name]) if each.name == name]
    (deb,) = archive.fetch(found, lambda _share: None)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as made:
        # Of the 140 MB that it has, a few files.
        wanted = " ".join(f"{name}/{each}" for each in NEEDED)
        script = (
            f'dpkg-deb --fsys-tarfile "$1" | tar -xO ./usr/src/{name}.tar.xz | '
            f"tar -xJ --strip-components=1 {wanted}"
        )
        _run(["bash", "-euo", "pipefail", "-c", script, "bash", str(deb)], Path(made))
        source = Path(made) / FOLDER
        limit = source / "timeout.h"
        text, count = TIMEOUT.subn(rf"\g<1>{TIMEOUT_S}", limit.read_text())
        assert count == 1, limit
        limit.write_text(text)
        for each in PROGRAMS:
            if (source / f"{each}.c").exists():  # vsock_perf came with Linux 6.3
                _run(["make", "-s", "LDFLAGS=-static", each], source)
        new = Path(made) / "programs"
        new.mkdir()
        for each in PROGRAMS:
            if (source / each).exists():
                _run(["strip", "-o", str(new / each), each], source)
        new.rename(folder)
    deb.unlink()


def _run(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["failed"])[-1]
        raise FastpathError(f"Linux's vsock tests: {command[0]}", last)
