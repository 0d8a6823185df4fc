"""Many short connections through a whole fast path, and what is left of them.

    python -m bench.soak_tsi [--count 1000000] [--in-flight 64] [--round 20000]
                             [--sockets agent|module]

A guest makes them in rounds, to a TCP server on the host behind ztunnel and to the
address that ztunnel answers itself. After each round it is measured what agent and
host process hold; a line says so. The exit status is 1 if a connection failed, or if
descriptors or memory have grown since the first round. `make soak` does the same;
tests/vm/test_tsi_soak.py is the short form.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import sys
import time
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from bench import procfs, sandbox
from bench.sandbox import ECHO, Booted
from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.vm import accel
from fastpath.ztunnel.model import (
    Config,
    NamespacedHostname,
    NetworkAddress,
    Service,
    Workload,
)
from tests.support.limits import LIMIT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastpath.vm.spec import Accelerator

PROGRAM: Final = Path(__file__).resolve().parents[1] / "tests" / "vm" / "tsi_soak.c"
VIP: Final = ("10.96.0.10", 80)
SETTLE_S: Final = LIMIT_S
"""How long the ends of a round's connections may take to reach the host."""
OWN_CONNS: Final = 2
"""Of a guest whose programs have none: init's stream and the control stream."""
AGENT_KIB: Final = 256
"""What the agent's memory may have grown by since the first round."""
KERNEL_KIB: Final = 2048
"""The same of the guest's kernel: pages of which a few objects are in use."""
MAX_KERNEL_SOCKS: Final = 128
"""Its vsock sockets without a program's: init's, the agent's, and a CPU's free ones."""
HOST_KIB: Final = 4096
"""The same of the host's process: Python's heap, malloc's arenas."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is held after a round, all of whose connections have ended."""

    failed: int
    """Connections so far."""
    errno: int
    """Of the last failure."""
    program_fds: int
    agent_fds: int
    agent_kib: int
    """Resident, of its own."""
    kernel_kib: int
    """What the guest's kernel has allocated for itself."""
    kernel_socks: int
    """Of those, vsock sockets."""
    host_fds: int
    host_kib: int
    host_conns: int
    """In the engine; init's own among them."""
    tokens: int
    live: int
    """Connections that the router knows of."""
    wall_s: float

    def line(self) -> str:
        """All of it, for people."""
        return (
            f"{self.failed} failed; agent: {self.agent_fds} fds, {self.agent_kib} KiB;"
            f" guest's kernel: {self.kernel_kib} KiB, {self.kernel_socks} sockets;"
            f" host: {self.host_fds} fds, {self.host_kib} KiB,"
            f" {self.host_conns} connections, {self.tokens} tokens; {self.wall_s:.0f} s"
        )


def growth(samples: list[Sample]) -> list[str]:
    """What is wrong: what failed, and what is more than after the first round."""
    first, last = samples[0], samples[-1]
    wrong = []
    if last.failed:
        wrong.append(f"{last.failed} connections failed, the last: {last.errno}")
    for name in ("program_fds", "agent_fds", "host_fds", "host_conns", "tokens"):
        before, now = getattr(first, name), getattr(last, name)
        if now > before:
            wrong.append(f"{name} grew from {before} to {now}")
    if last.kernel_socks > MAX_KERNEL_SOCKS:
        wrong.append(f"the guest's kernel keeps {last.kernel_socks} sockets")
    if last.live:
        wrong.append(f"{last.live} connections are not forgotten")
    for name, most in (
        ("agent_kib", AGENT_KIB),
        ("kernel_kib", KERNEL_KIB),
        ("host_kib", HOST_KIB),
    ):
        before, now = getattr(first, name), getattr(last, name)
        if now > before + most:
            wrong.append(f"{name} grew from {before} to {now}")
    return wrong


def config(folder: Path, port: int, ports: Sequence[int] = (VIP[1],)) -> Config:
    """One sandbox, and a service of `ports` whose endpoint is this host's `port`."""
    key = NamespacedHostname("default", "echo")
    echo = Workload(
        workload_ips=(ip_address("127.0.0.1"),),
        namespace="default",
        name="echo",
        services={key: dict.fromkeys(ports, port)},
    )
    service = Service(
        name="echo",
        namespace="default",
        hostname="echo",
        vips=(NetworkAddress("", ip_address(VIP[0])),),
        ports=dict.fromkeys(ports, 0),
    )
    opened = (Rule.parse(f"127.0.0.1:{port}"), Rule.parse("0.0.0.0/0"))
    config = sandbox.config(folder, egress=Egress(allow=opened))
    workloads = (*config.workloads, echo)
    return replace(config, workloads=workloads, services=(service,))


@contextlib.asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    """A server on loopback in a process of its own; gives its port."""
    with contextlib.closing(await asyncio.start_server(_nothing, "127.0.0.1")) as free:
        port: int = free.sockets[0].getsockname()[1]
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "fastpath.commands.compare.server",
            "127.0.0.1",
            str(port),
        ),
        str(writer),
        pass_fds=(writer,),
    )
    os.close(writer)
    try:
        await asyncio.to_thread(os.read, reader, 1)
        yield port
    finally:
        os.close(reader)
        process.terminate()
        await process.wait()


def _nothing(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Serve nobody."""


async def soak(
    *,
    rounds: int,
    count: int,
    in_flight: int,
    accelerator: Accelerator,
    tell: Callable[[Sample], None],
    timeout_s: float,
    sockets: Literal["agent", "module"] = "agent",
) -> list[Sample]:
    """Boot a guest and play `rounds` of `count` connections; return a sample of each.

    Args:
        rounds: the first warms up what grows once.
        count: connections a round.
        in_flight: connections at a time.
        accelerator: the guest's.
        tell: gets each sample as it is taken.
        timeout_s: for all of it.
        sockets: who has the guest's sockets.
    """
    samples: list[Sample] = []
    async with (
        asyncio.timeout(timeout_s),
        echo_server() as port,
        sandbox.booted(
            accelerator,
            lambda folder: config(folder, port),
            program=PROGRAM,
            sockets=sockets,
        ) as one,
    ):
        run = _Soak(one, tell, samples)
        argv = ["tsi_soak", str(rounds), str(count), str(in_flight)]
        argv += [f"{host}:{port}" for host, port in (VIP, ECHO)]
        status = await one.run(*argv, stdin=run.stdin, stdout=run.take, stderr=_show)
        if status or len(samples) != rounds:
            raise RuntimeError(f"the guest's program ended with status {status}")
    return samples


class _Soak:
    """The host's side of the program in the guest."""

    def __init__(
        self, one: Booted, tell: Callable[[Sample], None], samples: list[Sample]
    ) -> None:
        self.stdin = asyncio.StreamReader()
        self._one = one
        self._tell = tell
        self._samples = samples
        self._begin = time.monotonic()
        self._said = b""

    async def take(self, data: bytes) -> None:
        """Take a line of the program's, measure the host, and let it go on."""
        self._said += data
        while b"\n" in self._said:
            line, _, self._said = self._said.partition(b"\n")
            word, *numbers = line.split()
            if word != b"done":
                raise RuntimeError(line.decode(errors="replace"))
            self._samples.append(await self._measure([int(each) for each in numbers]))
            self._tell(self._samples[-1])
            self.stdin.feed_data(b"\n")

    async def _measure(self, guest: list[int]) -> Sample:
        """Measure the host once it has heard of all ends."""
        running = self._one.sandbox
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            if running.device.handle.stats().conns <= OWN_CONNS:
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)  # the router hears of it a little later
        failed, error, program_fds, agent_fds, agent_kib, kernel_kib, socks = guest
        return Sample(
            failed=failed,
            errno=error,
            program_fds=program_fds,
            agent_fds=agent_fds,
            agent_kib=agent_kib,
            kernel_kib=kernel_kib,
            kernel_socks=socks,
            host_fds=procfs.descriptors("self"),
            host_kib=_rss_kib(),
            host_conns=running.device.handle.stats().conns,
            tokens=running.service.stats().tokens,
            live=len(self._one.ztunnel.live),
            wall_s=time.monotonic() - self._begin,
        )


def _show(data: bytes) -> None:
    sys.stderr.write(data.decode(errors="replace"))


def _rss_kib() -> int:
    """Memory of this process' own, once malloc has given back what it merely keeps.

    Its arenas fragment with 64 connections under way: some MiB that are free, and that
    would hide a real growth of a few bytes a connection. What the engine has seen of
    the guest's memory, RssShmem, grows as the guest's buffers wander about in it.
    """
    ctypes.CDLL(None).malloc_trim(0)
    return procfs.kib("self", "RssAnon")


def main() -> int:
    """Run it by hand; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--round", type=int, default=20_000)
    parser.add_argument("--accel", default="auto")
    parser.add_argument("--sockets", choices=("agent", "module"), default="agent")
    options = parser.parse_args()
    rounds = max(2, options.count // options.round)
    done = 0

    def tell(sample: Sample) -> None:
        nonlocal done
        done += options.round
        print(f"{done} connections: {sample.line()}", flush=True)  # noqa: T201

    samples = asyncio.run(
        soak(
            rounds=rounds,
            count=options.round,
            in_flight=options.in_flight,
            accelerator=accel.choose(options.accel),
            tell=tell,
            timeout_s=24 * 3600,
            sockets=options.sockets,
        )
    )
    wrong = growth(samples)
    for line in wrong or ["nothing failed, nothing has grown"]:
        print(line)  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
