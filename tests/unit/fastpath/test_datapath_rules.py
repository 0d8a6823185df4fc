"""The iptables rules are Istio 1.18's; errors say what the kernel lacks."""

from __future__ import annotations

import subprocess

import pytest

from fastpath import tools
from fastpath.datapath import features
from fastpath.datapath.ambient_geneve import Mode, node_rules, ztunnel_rules
from fastpath.datapath.rules import Mark, iptables
from fastpath.errors import FastpathError

# istio 1.18, cni/pkg/ambient/net_linux.go, CreateRulesOnNode; the names and
# addresses are this path's.
SHIPPED_PREROUTING = """
-i istioout -j MARK --set-mark 0x200/0x200
-i istioout -j RETURN
-p udp -m udp --dport 6081 -j RETURN
-m connmark --mark 0x220/0x220 -j MARK --set-mark 0x200/0x200
-m mark --mark 0x200/0x200 -j RETURN
! -i ztunnel -m connmark --mark 0x210/0x210 -j MARK --set-mark 0x040/0x040
-m mark --mark 0x040/0x040 -j RETURN
-i ztunnel ! -s 10.200.3.2 -j MARK --set-mark 0x210/0x210
-m mark --mark 0x200/0x200 -j RETURN
-i ztunnel -j MARK --set-mark 0x220/0x220
-p udp -j MARK --set-mark 0x220/0x220
-m mark --mark 0x200/0x200 -j RETURN
-p tcp -m set --match-set ztunnel-pods-ips src -j MARK --set-mark 0x100/0x100
"""


def prerouting(mode):
    head = "-t mangle -A ztunnel-PREROUTING "
    rules = node_rules(mode)
    return [r.removeprefix(head) for r in rules if r.startswith(head)]


def test_istio_alpha_has_the_rules_as_shipped():
    assert prerouting(Mode.ISTIO_ALPHA) == SHIPPED_PREROUTING.strip().splitlines()


def test_every_packet_differs_by_the_connection_marks_only():
    alpha = node_rules(Mode.ISTIO_ALPHA)
    every = node_rules(Mode.EVERY_PACKET)
    assert set(every) < set(alpha)
    assert all("connmark" in rule.lower() for rule in set(alpha) - set(every))


def test_ztunnel_catches_what_leaves_the_tunnel():
    assert ztunnel_rules()[0] == (
        "-t mangle -A PREROUTING -p tcp -i pistioout -j TPROXY"
        " --tproxy-mark 0x400/0xfff --on-port 15001 --on-ip 127.0.0.1"
    )


@pytest.mark.parametrize(
    ("mark", "text"),
    [(Mark(0x40, 0x40), "0x040/0x040"), (Mark(0x4D3, 0xFFF), "0x4d3/0xfff")],
)
def test_a_mark_reads_as_iptables_writes_it(mark, text):
    assert str(mark) == text


@pytest.mark.parametrize(
    ("rule", "feature"),
    [
        pytest.param(
            "-j TPROXY --tproxy-mark 1", features.XT_TPROXY, id="tproxy-and-a-mark"
        ),
        pytest.param(
            "-m set --match-set s src -j MARK", features.XT_SET, id="set-and-a-mark"
        ),
        pytest.param("-m connmark --mark 1", features.XT_CONNMARK, id="connmark"),
        pytest.param("-m mark --mark 1", features.XT_MARK, id="mark"),
    ],
)
def test_a_refused_rule_names_the_module_and_iptables_words(monkeypatch, rule, feature):
    refuse(monkeypatch, "No chain/target/match by that name.")
    with pytest.raises(FastpathError) as caught:
        iptables(rule)
    assert feature.modules[0] in caught.value.why
    assert "No chain/target/match" in caught.value.why
    assert caught.value.hint == feature.hint()


def test_a_missing_iptables_is_an_error_with_a_hint(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "SYSTEM", ())
    with pytest.raises(FastpathError, match="apt-get install iptables"):
        iptables("-t mangle -N chain")


def refuse(monkeypatch, stderr):
    def run(argv, **_):
        return subprocess.CompletedProcess(argv, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


def test_iptables_is_found_where_a_users_path_does_not_lead(monkeypatch, tmp_path):
    """Debian's PATH for ordinary users has no /usr/sbin."""
    program = tmp_path / "sbin" / "iptables"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "SYSTEM", (str(program.parent),))
    assert tools.find("iptables") == str(program)
    iptables("-t mangle -N chain")
    assert (tmp_path / "called").read_text() == "-w -t mangle -N chain\n"
