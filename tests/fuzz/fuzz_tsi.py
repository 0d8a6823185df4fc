"""A guest that does anything, against the TSI service and what decides for it.

libFuzzer's bytes, through Atheris, are a program of small steps: control and datagram
streams that come and go, messages well formed or not and cut anywhere, tokens of
anybody, requests for them, what the engine then tells of its connections, listeners and
their clients, datagrams, what the network makes of them, DNS queries, a new policy,
time that goes by. The engine, TCP listeners and UDP sockets are models in Python, as
strict about their calls as the real ones; policy, routing, DNS, log and metrics are
real. A second sandbox stands by.

What must hold: nothing is dialled or sent a datagram that the policy in force denies,
by an oracle of its own, and nothing listens or is connected to a port that it does not
publish; a token leads where its owner's first ROUTE said; no datagram
reaches the guest but from peers that the flow has sent to; each request is answered
once, in time; all that is kept is bounded, and gone at the end; nothing raises or is
logged as our error; the bystander is served, names too, at any moment; a program costs
a bounded CPU time.

The steps are in tsi_world.py, the models in tsi_host.py and tcp_doors.py, the guest's
end of its streams in tsi_guest.py, a sandbox and what must hold of it in
tsi_sandbox.py. `run.py` starts it.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import replace
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fastpath"]):
    from fastpath import throttle
    from fastpath.tsi import datagram_protocol, protocol
    from fastpath.tsi.policy import Limits
    from fastpath.tsi.policyfile import parse
    from fastpath.ztunnel.metrics import Metrics
    from fastpath.ztunnel.model import (
        Config,
        Fastpath,
        NetworkAddress,
        Sandbox,
        Service,
        Workload,
    )
    from tests.fuzz.tsi_sandbox import MAX_LISTENERS, MAX_UDP_SOCKETS
    from tests.fuzz.tsi_world import STEPS, VIP, World

from tests.fuzz.budget import Budget
from tests.fuzz.input import Input, fuzz
from tests.fuzz.log import Errors
from tests.fuzz.tsi_policies import ECHO, POLICIES
from tests.fuzz.tsi_seeds import seeds

MAX_STEPS = 96
PROGRAM_S = 1.0
"""CPU time of all steps together; see `Budget`."""


def decode(data):
    """Check that it does not matter where the bytes of a stream are cut."""
    cut = 1 + data[0] % 32
    whole = data[1:]
    parts = [whole[i : i + cut] for i in range(0, len(whole), cut)]
    made = datagram_protocol.DatagramDecoder if data[0] & 32 else protocol.Decoder
    one, other = decoded(made(), whole), decoded(made(), *parts)
    assert one == other, f"{one} in one piece, {other} in pieces of {cut}"
    assert len(one[2]) <= protocol.MAX_TEXT


def decoded(decoder, *parts):
    found = []
    try:
        for part in parts:
            messages = decoder.feed(part)
            while (message := next(messages, None)) is not None:
                found.append(message)
    except protocol.ProtocolError as error:
        return found, error.code, error.text
    return found, 0, ""


class Target:
    """What is made once, for all inputs."""

    def __init__(self):
        self.budget = Budget(PROGRAM_S)
        self.errors = Errors()
        self.metrics = Metrics()
        self.policies = [
            replace(
                policy,
                limits=Limits(
                    max_udp_sockets=MAX_UDP_SOCKETS, max_listeners=MAX_LISTENERS
                ),
            )
            for policy in (parse(text.encode(), "policy") for text in POLICIES)
        ]
        workloads = tuple(
            Workload(
                workload_ips=(ipaddress.ip_address(f"10.0.0.{2 + i}"),),
                namespace="default",
                name=name,
                service_account=name,
            )
            for i, name in enumerate("ab")
        )
        sandboxes = tuple(
            Sandbox(name=n, workload=f"default/{n}", socket=Path(n), cid=3 + i)
            for i, n in enumerate("ab")
        )
        echo = ipaddress.ip_address(ECHO[0])
        own = Fastpath(sandboxes=sandboxes, echo=echo)
        web = Service(
            name="web",
            namespace="default",
            hostname="web.default.svc.cluster.local",
            vips=(NetworkAddress("", ipaddress.ip_address(VIP)),),
            ports={80: 80},
        )
        self.config = Config(workloads=workloads, services=(web,), fastpath=own)

    def __call__(self, data):
        """Run one input: bytes for the decoder, or a program of steps."""
        with self.budget.measured():
            if len(data) > 1 and not data[0] & 1:
                decode(data[1:])
            else:
                self.run(data)

    def run(self, data):
        """Run a program of steps."""
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # a count, and fast
        world = World(self)
        vars(throttle)["time"] = world.loop  # its `monotonic()`
        world.loop.run_until_complete(world.start())
        steps = Input(data[1:])
        try:
            for _ in range(MAX_STEPS):
                if not steps:
                    break
                STEPS[steps.byte() % len(STEPS)](world, steps)
                world.a.check()
                world.b.check()
        finally:
            world.close()
        for sock in world.engine.sockets:
            sock.close()
        assert not world.loop.wrong, world.loop.wrong
        assert not self.errors.lines, self.errors.lines
        now = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        assert now == before, "file descriptors are left"


def main():
    fuzz(Target(), seeds(STEPS))


if __name__ == "__main__":
    main()
