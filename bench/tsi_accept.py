"""The rate of accept(): a published listener against a raw AF_VSOCK one.

    python -m bench.tsi_accept [--rounds N] [--connections N] [--in-flight N] [--tcp]
                               [--sockets agent|module] [--image NAME]

One guest, one backend, `probe` in the guest in turn as a TCP server over TSI and as an
AF_VSOCK server, rounds interleaved. The host's side is the same for both, and as light
as can be: connected unix sockets that are offered to the listener's vsock port, so many
in flight, each half-closed at once. What is left to differ is the guest's accept().
Prints a line of JSON: connections a second of both, and the ratio with its 95 %
interval.

With `--tcp` it is TCP clients of the published port, of 64 IPs, so many at a time, that
the guest accepts: what ztunnel's listener does for each is in the figure. There is
nothing to compare it with but the same of another build, and the line has each round's;
`cpu_us` is the CPU time of ztunnel for each, which other load changes less, `guest_us`
that of the guest's CPUs, one of which takes no more than 1e6 / guest_us a second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import json
import socket
import statistics
import sys
import time
from pathlib import Path

from bench import harness, sandbox
from fastpath.report.stats import paired_ratio
from fastpath.tsi.peers import first_port
from fastpath.tsi.protocol import Caller
from fastpath.vm import accel
from fastpath.ztunnel.model import ListenAddress, Publication
from vhost_user.engine import EventKind

PORT, RAW_PORT = 8080, 5000
HOST, TCP_PORT = "127.0.0.1", 18080
RAW_FIRST_PORT = 0x70000000
"""Not one of those that name clients."""
ANY_CID = 0xFFFFFFFF
RANGE = 1
RETRY_S = 0.005
ROUND_S = 120.0


class Load:
    """Keeps connections to a guest's port coming.

    Args:
        device: of the guest.
        guest_port: where it listens.
        first_port: the first of the 65536 that they come from.
        in_flight: connections at a time.
    """

    def __init__(self, device, guest_port, first_port, in_flight):
        self._device = device
        self._guest_port = guest_port
        self._first_port = first_port
        self._in_flight = in_flight
        self._conns = {}
        self._next = 0

    def start(self):
        for _ in range(self._in_flight):
            self._offer()

    def stop(self):
        self._in_flight = 0

    def handle_event(self, event):
        """Replace a connection that has ended."""
        if event.conn not in self._conns or event.kind is EventKind.OPENED:
            return
        self._conns.pop(event.conn).close()
        if event.kind is EventKind.CLOSED:
            self._offer()
        else:  # nobody listens yet, or any more
            asyncio.get_running_loop().call_later(RETRY_S, self._offer)

    def _offer(self):
        if len(self._conns) >= self._in_flight:
            return
        ours, theirs = socket.socketpair()
        self._next = (self._next + 1) % 0xFFFF
        port = self._first_port | self._next
        ours.shutdown(socket.SHUT_WR)
        with theirs:
            conn = self._device.handle.offer(self._guest_port, theirs, port=port)
        self._conns[conn] = ours


class Bench:
    """One guest."""

    def __init__(self, options, one):
        self._options = options
        self._one = one
        self._device, self._service = one.sandbox.device, one.sandbox.service
        self._vcpus = one.machine.vcpu_thread_ids
        self._handle = self._service.handle_event
        self._service.handle_event = self._event
        self._load = None

    async def rate(self, *, tsi):
        """Connections a second that the guest takes."""
        said = bytearray()
        address = ("0.0.0.0", PORT) if tsi else (f"vsock:{ANY_CID}", RAW_PORT)
        argv = ["probe", *map(str, address), "accept", str(self._options.connections)]
        work = self._one.run(*argv, tsi=tsi, stdout=said.extend, stderr=said.extend)
        task = asyncio.ensure_future(work)
        port = await self._listener() if tsi else RAW_PORT
        first = first_port(RANGE) if tsi else RAW_FIRST_PORT
        self._load = Load(self._device, port, first, self._options.in_flight)
        self._load.start()
        async with asyncio.timeout(ROUND_S):
            if await task:
                raise RuntimeError(said.decode())
        self._load.stop()
        figures = json.loads(said)
        return figures["bytes"] * 1e9 / figures["ns"]

    async def pair(self):
        """Return the rates of TSI and of AF_VSOCK, one right after the other."""
        return await self.rate(tsi=True), await self.rate(tsi=False)

    async def tcp_rate(self):
        """Connections a second that the guest takes; our CPU time and its, us each."""
        said = bytearray()
        argv = ["probe", "0.0.0.0", str(PORT), "accept", str(self._options.connections)]
        work = self._one.run(*argv, tsi=True, stdout=said.extend, stderr=said.extend)
        task = asyncio.ensure_future(work)
        in_flight = str(self._options.in_flight)
        before, guest_before = time.process_time(), self._guest_s()
        clients = await asyncio.create_subprocess_exec(
            harness.program("clients"), HOST, str(TCP_PORT), in_flight
        )
        try:
            async with asyncio.timeout(ROUND_S):
                if await task:
                    raise RuntimeError(said.decode())
        finally:
            clients.kill()
            await clients.wait()
        figures = json.loads(said)
        count = figures["bytes"]
        cpu_us = (time.process_time() - before) * 1e6 / count
        guest_us = (self._guest_s() - guest_before) * 1e6 / count
        return count * 1e9 / figures["ns"], cpu_us, guest_us

    def _guest_s(self):
        """CPU time of the guest's CPUs so far."""
        tasks = [Path(f"/proc/{tid}/schedstat") for tid in self._vcpus]
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    async def _listener(self):
        """The vsock port of the published listener, its clients introduced."""
        inbound = self._service.inbound
        while not inbound.listeners:  # noqa: ASYNC110  the guest has no event for it
            await asyncio.sleep(0.01)
        ((announcer, listen),) = next(iter(inbound._ports.values())).listeners
        caller = Caller(first_port(RANGE), ipaddress.IPv4Address("192.0.2.1"))
        announcer.send(caller.encode())
        await asyncio.sleep(0.1)  # it is known by then, or the probe fails
        return listen.listener

    def _event(self, event):
        if self._load is not None:
            self._load.handle_event(event)
        self._handle(event)


@contextlib.asynccontextmanager
async def booted(options, accelerator, at, **more):
    """One guest whose port is published at an address of the host.

    Args:
        options: how many CPUs the guest has, and what `Bench` takes.
        accelerator: the guest's.
        at: address and port.
        more: as of `sandbox.booted`.
    """
    published = Publication(ListenAddress.parse(at), PORT)

    def config(folder):
        return sandbox.config(folder, publish=(published,))

    async with sandbox.booted(accelerator, config, cpus=options.cpus, **more) as one:
        yield Bench(options, one)


async def measure(options):
    """Boot, run all rounds, and return the figures."""
    accelerator = accel.choose("auto")
    more = {"sockets": options.sockets, "image": options.image}
    async with booted(options, accelerator, f"{HOST}:0", **more) as bench:
        tsi, raw = [], []
        for number in range(options.rounds + 1):
            pair = await bench.pair()
            sys.stderr.write(f"{number}: {pair[0]:.0f} {pair[1]:.0f}\n")
            if number:  # the first is warm-up
                tsi.append(pair[0])
                raw.append(pair[1])
    ratio = paired_ratio(tsi, raw)
    return {
        "accel": str(accelerator),
        "in_flight": options.in_flight,
        "tsi_per_s": round(statistics.median(tsi)),
        "raw_per_s": round(statistics.median(raw)),
        "ratio": round(ratio.median, 3),
        "ci95": ratio.interval and [round(end, 3) for end in ratio.interval],
        "rounds": options.rounds,
    }


async def measure_tcp(options):
    """The same by ztunnel's listener."""
    accelerator = accel.choose("auto")
    more = {"sockets": options.sockets, "image": options.image}
    async with booted(options, accelerator, f"{HOST}:{TCP_PORT}", **more) as bench:
        rounds = [await bench.tcp_rate() for _ in range(options.rounds + 1)][1:]
    rates, cpu_us, guest_us = zip(*rounds, strict=True)
    return {
        "accel": str(accelerator),
        "in_flight": options.in_flight,
        "tcp_per_s": round(statistics.median(rates)),
        "rounds": [round(rate) for rate in rates],
        "cpu_us": round(statistics.median(cpu_us)),
        "guest_us": round(statistics.median(guest_us)),
    }


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--sockets", choices=("agent", "module"), default="agent")
    parser.add_argument("--image", default="base", help="a folder of vm-images/")
    parser.add_argument("--tcp", action="store_true", help="through a TCP listener")
    options = parser.parse_args()
    work = measure_tcp(options) if options.tcp else measure(options)
    json.dump(asyncio.run(work), sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
