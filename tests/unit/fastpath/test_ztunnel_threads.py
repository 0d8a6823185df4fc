"""Sandboxes on several engines of one ztunnel process."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fastpath.errors import FastpathError
from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel import config as configuration
from fastpath.ztunnel.model import Config, Fastpath, Sandbox, Workload
from vhost_user.engine import MAX_DEVICES

from .tsi_guest import TIMEOUT_S, Guest, config, run, sample

OPEN = Egress(allow=(Rule.parse("127.0.0.0/8"), Rule.parse("0.0.0.0/0")))


def with_threads(there, threads, **own):
    return replace(there, fastpath=replace(there.fastpath, threads=threads, **own))


def test_each_sandbox_has_its_own_engine_and_line_in_the_log(tmp_path):
    """Engines number their connections each from the same start."""
    there = with_threads(config(tmp_path, egress=OPEN), 2)

    def play(ztunnel):
        a, b = there.fastpath.sandboxes
        with Guest(a) as first, Guest(b) as second:
            with socket.create_server(("127.0.0.1", 0)) as server:
                server.settimeout(TIMEOUT_S)
                first.connect(server.getsockname())
                server.accept()[0].close()
                second.refused(server.getsockname())
            first.echoes()
            second.echoes()
            for engine in ("0", "1"):
                # its control stream and the echo; the first one's upstream may linger
                name = "fastpath_engine_conns"
                assert sample(ztunnel, name, engine=engine) >= 2
        assert len(ztunnel.stats()) == 2

    lines = run(there, play)
    assert sum("sa/a" in line.partition("dst.")[0] for line in lines) == 2
    assert sum("sa/b" in line.partition("dst.")[0] for line in lines) == 2


def test_no_more_engines_run_than_there_are_sandboxes(tmp_path):
    there = with_threads(config(tmp_path), 5)

    def count(ztunnel):
        assert len(ztunnel.stats()) == 2

    run(there, count)


def test_one_cpu_is_not_for_several_engines(tmp_path):
    with pytest.raises(FastpathError, match=r"fastpath\.cpu: is one CPU for 2 threads"):
        configuration.check(with_threads(config(tmp_path), 2, cpu=0))


def test_more_sandboxes_than_the_engines_take_are_refused(tmp_path):
    count = MAX_DEVICES + 1
    workloads = tuple(
        Workload(
            workload_ips=(ip_address(0x0A000002 + i),), namespace="a", name=f"w{i}"
        )
        for i in range(count)
    )
    sandboxes = tuple(
        Sandbox(name=f"s{i}", workload=it.key, socket=tmp_path / f"{i}", cid=3 + i)
        for i, it in enumerate(workloads)
    )
    there = Config(workloads=workloads, fastpath=Fastpath(sandboxes=sandboxes))
    with pytest.raises(FastpathError, match=r"fastpath\.threads: 1025 sandboxes"):
        configuration.check(there)
    configuration.check(with_threads(there, 2))
