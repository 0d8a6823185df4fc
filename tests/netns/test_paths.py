"""Each standard path works as it is declared, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastpath.datapath import build, catalogue, probe, standin
from fastpath.datapath.steps import Iptables, Up
from fastpath.errors import FastpathError
from tests.support.limits import LIMIT_S, wait_until

pytestmark = pytest.mark.netns

FASTPATH = (sys.executable, "-m", "fastpath", "path")
RUN = Path("/run")
UP_AND_DOWN = "ambient-geneve"


@pytest.fixture
def named(missing):
    """The right to make namespaces with names, and none of ours before and after."""
    try:
        build.down(catalogue.declare(UP_AND_DOWN))
    except FastpathError as exc:
        missing(str(exc))
    if not os.access("/run", os.W_OK):
        missing("/run is not writable")
    yield
    left = ours()
    for path in map(catalogue.declare, catalogue.NAMES):
        build.down(path)
    assert not left


def ours():
    folder = build.NAMED
    return sorted(folder.glob(f"{build.PREFIX}*")) if folder.exists() else []


def fastpath(*args):
    return subprocess.run(
        [*FASTPATH, *args], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )


def has(name):
    """Tunnels that this kernel lacks are test_tunnels.py's."""
    if not name.startswith("ambient-"):
        return True
    problem = catalogue.problem(name)
    return problem is None or "this kernel lacks" not in str(problem)


@pytest.mark.parametrize("name", [name for name in catalogue.NAMES if has(name)])
def test_a_connection_takes_each_hop_and_arrives(name, missing):
    outcome = None
    try:
        catalogue.fetch(name)
        outcome = probe.check(catalogue.possible(name))
    except FastpathError as exc:
        missing(str(exc))
    assert outcome is not None
    assert outcome.problem == ""
    assert [seen for seen in outcome.hops if not seen.good] == []


INBOUND = [name for name in catalogue.NAMES if catalogue.declare(name).inbound]


@pytest.mark.parametrize("name", INBOUND)
def test_a_client_reaches_the_sandbox_by_way_of_ztunnel(name):
    outcome = probe.check_inbound(catalogue.possible(name))
    assert outcome.problem == ""
    assert [seen for seen in outcome.hops if not seen.good] == []


def test_a_path_that_catches_nothing_is_found_out(monkeypatch):
    monkeypatch.setattr(standin, "TIMEOUT_S", 0.5)  # nothing comes, however long
    path = catalogue.possible(UP_AND_DOWN)
    steps = [x for x in path.steps if "TPROXY" not in str(x)]
    outcome = probe.check(dataclasses.replace(path, steps=tuple(steps)))
    assert not outcome.good
    assert outcome.problem.startswith("connect: ")
    assert next(seen.hop.device for seen in outcome.hops if seen.there) == "tap0_kata"


def test_a_sidecar_that_nothing_leads_to_is_found_out(missing):
    path = catalogue.possible("sidecar")
    (rules,) = path.inside
    assert isinstance(rules, Iptables)
    kept = tuple(rule for rule in rules.rules if "REDIRECT --to" not in rule)
    without = dataclasses.replace(rules, rules=kept)
    outcome = None
    try:
        outcome = probe.check(dataclasses.replace(path, inside=(without,)))
    except FastpathError as exc:
        missing(str(exc))
    assert outcome is not None
    assert not outcome.good
    assert [seen.hop.device for seen in outcome.hops if not seen.good] == ["lo"]


def test_up_leaves_named_namespaces_and_down_takes_them(named):
    done = fastpath("up", UP_AND_DOWN)
    assert done.returncode == 0, done.stderr
    names = [f"fastpath-{UP_AND_DOWN}-{role}" for role in ("node", "pod", "ztunnel")]
    assert set(names) <= {path.name for path in ours()}
    shown = subprocess.run(
        ["ip", "-n", names[1], "-br", "link"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tap0_kata" in shown.stdout
    again = fastpath("up", UP_AND_DOWN)
    assert again.returncode == 2
    assert f"hint: fastpath path down {UP_AND_DOWN}" in again.stderr
    assert fastpath("down", UP_AND_DOWN).returncode == 0
    assert ours() == []
    assert fastpath("down", UP_AND_DOWN).stdout == ""


def test_passt_stays_while_its_path_is_up_and_no_longer(named):
    assert fastpath("up", "passt").returncode == 0
    pid = int((RUN / "fastpath-passt.pid").read_text())
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as vmm:
        vmm.connect(str(RUN / "fastpath-passt.sock"))
    pidfd = os.pidfd_open(pid)
    try:
        assert fastpath("down", "passt").returncode == 0
        assert select.select([pidfd], [], [], LIMIT_S)[0]
    finally:
        os.close(pidfd)
    assert list(RUN.glob("fastpath-passt*")) == []


HOLDER = """
import socket, sys
from fastpath.datapath import catalogue
from fastpath.datapath.build import Built
with Built(catalogue.possible("passt")) as path:
    vmm = socket.socket(socket.AF_UNIX)
    vmm.connect(str(path.nic.socket))
    while not path.pids:
        pass
    print(path.pids["passt"], flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_passt_ends_with_its_vmm_however_that_ends(signo, missing):
    try:
        catalogue.fetch("passt")
    except FastpathError as exc:
        missing(str(exc))
    argv = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        pidfd = os.pidfd_open(int(holder.stdout.readline()))
        holder.send_signal(signo)
        holder.wait(LIMIT_S)
    try:
        assert select.select([pidfd], [], [], LIMIT_S)[0]
    finally:
        os.close(pidfd)


def test_up_that_fails_half_way_leaves_nothing(named):
    path = catalogue.possible(UP_AND_DOWN)
    broken = (*path.steps, Up(at="server", device="missing"))
    with pytest.raises(FastpathError, match="in server: ip link set missing up"):
        build.up(dataclasses.replace(path, steps=broken))
    assert ours() == []


def test_ctrl_c_during_up_leaves_nothing(named):
    with subprocess.Popen([*FASTPATH, "up", UP_AND_DOWN], stdout=subprocess.PIPE) as it:
        wait_until(lambda: ours() or it.poll() is not None)
        it.send_signal(signal.SIGINT)
        it.communicate(timeout=LIMIT_S)
    # it may have been done already
    assert it.returncode in {0, 130}
    if it.returncode == 0:
        assert fastpath("down", UP_AND_DOWN).returncode == 0
    assert ours() == []


def test_ctrl_c_waits_for_who_makes_a_namespace(tmp_path, monkeypatch):
    """It could be made after everything else is taken down again."""
    ip, made = tmp_path / "ip", tmp_path / "made"
    ip.write_text(f"#!/bin/sh\nkill -INT $PPID; sleep 0.2; touch {made}\n")
    ip.chmod(0o755)
    monkeypatch.setattr("fastpath.tools.path_of", lambda _: str(ip))
    with pytest.raises(KeyboardInterrupt):
        build._ip_netns("add", "x")
    assert made.exists()


def test_check_says_at_which_hop_it_was_seen():
    done = fastpath("check", UP_AND_DOWN)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("1. pod        tap0_kata")
    assert lines[-1].startswith("the connection arrived from 10.200.1.2:")
