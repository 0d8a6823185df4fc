"""A pod's namespace and a sandbox's engine, as far as pods ask them; no namespaces."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from fastpath.ztunnel.model import Config, Fastpath, Sandbox, Workload
from fastpath.ztunnel.pods import Pod

PATH = Path("/run/netns/pod1")
WEB = ("192.0.2.80", 80)


class FakeNamespace:
    """Makes sockets of our own namespace."""

    def __init__(self, path=PATH):
        self.path = path
        self.gone = False
        self.closed = False
        self.made = []
        self.restarted = []

    async def start(self):
        pass

    def make(self, family, kind):
        self.made.append((family, kind))
        return socket.socket(family, kind)

    def channel(self):
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours

    def on_restart(self, call):
        self.restarted.append(call)

    def suspect(self, why):
        self.suspected = why

    def close(self):
        self.closed = True

    def __str__(self):
        return str(self.path)


class FakeEngine:
    """Gives out ids, and is its own handle."""

    id = 77

    def __init__(self):
        self.said = []

    def add_netns(self, maker, addresses, *, keep):
        self.said.append(("add", addresses))
        self.keep = keep
        return self

    def hear(self, handler):
        self.tell = handler

    def renew(self, maker):
        self.said.append("renew")
        maker.close()

    def close(self):
        self.said.append("close")


def pod(*ips, etc=Path("/nonexistent"), path=PATH):
    there = FakeNamespace(path)
    found = tuple(map(ip_address, ips or ("127.0.0.5", "::1")))
    return Pod("box", cast("Any", there), found, etc=etc), there


def config(**fields):
    workload = Workload(
        workload_ips=(ip_address("10.0.0.5"), ip_address("fd00::5")),
        namespace="default",
        name="box",
    )
    sandbox = Sandbox(
        name="box",
        workload="default/box",
        socket=Path("/nonexistent/s"),
        cid=3,
        netns=PATH,
        **fields,
    )
    return Config(workloads=(workload,), fastpath=Fastpath(sandboxes=(sandbox,)))
