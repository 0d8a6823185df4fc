"""Standard paths as data: what is shown is what is built."""

from __future__ import annotations

from ipaddress import IPv4Interface

import pytest

from fastpath.commands import path as command
from fastpath.datapath import catalogue, netns, show, sidecar
from fastpath.datapath.attach import Macvtap, Passt
from fastpath.datapath.rules import Mark
from fastpath.datapath.steps import NoAddress, NotLocal, Route, Rule
from fastpath.errors import FastpathError


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            Route(at="node", to="default", dev="eth0", via="192.0.2.1"),
            "ip route add default via 192.0.2.1 dev eth0",
        ),
        (
            Route(at="node", to="0.0.0.0/0", dev="lo", table=100, kind="local"),
            "ip route add local 0.0.0.0/0 dev lo table 100",
        ),
        (
            Route(
                at="node", to="default", dev="z", via="192.0.2.1", table=7, onlink=True
            ),
            "ip route add default via 192.0.2.1 dev z table 7 onlink",
        ),
        (
            Rule(at="node", priority=101, mark=Mark(0x100, 0x100), table=101),
            "ip rule add pref 101 fwmark 0x100/0x100 lookup 101",
        ),
        (
            Rule(at="node", priority=100, goto=32766),
            "ip rule add pref 100 goto 32766",
        ),
        (
            NotLocal(at="pod", address="192.0.2.9", dev="eth0"),
            "ip route del local 192.0.2.9 dev eth0 table local",
        ),
        (
            Macvtap(at="pod", device="t", lower="eth0", mac="02:00:00:00:00:01"),
            (
                "ip link add link eth0 name t address 02:00:00:00:00:01 type macvtap"
                " mode bridge"
            ),
        ),
        (
            Passt(at="pod", device="p"),
            (
                "passt --vhost-user --quiet --ipv4-only --no-map-gw --dns none"
                " --socket-path /run/fastpath-p.sock --pid /run/fastpath-p.pid"
            ),
        ),
        (
            NoAddress(at="pod", device="eth0", address=IPv4Interface("192.0.2.9/24")),
            "ip address del 192.0.2.9/24 dev eth0",
        ),
    ],
)
def test_a_step_reads_as_a_person_types_it(step, words):
    assert step.commands(lambda role: role) == [words]


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_each_hop_is_in_a_namespace_of_the_path(name):
    path = catalogue.declare(name)
    assert path.name == name
    inside = {"guest"} if path.inside else set()
    assert {hop.at for hop in path.hops} <= set(path.roles) | inside
    assert {path.sandbox.at, path.ztunnel, "server"} <= set(path.roles)


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_the_picture_fits_a_terminal(name):
    lines = catalogue.declare(name).picture.splitlines()
    assert max(map(len, lines)) <= 80


def test_commands_name_the_namespace_that_they_are_for():
    lines = show.script(catalogue.declare("ambient-geneve"))
    own = "fastpath-ambient-geneve"
    assert lines[0] == f"ip netns add {own}-node"
    assert f"ip -n {own}-pod link set lo up" in lines
    assert (
        f"tc -n {own}-pod filter add dev eth0 parent ffff: protocol all u32 match u8"
        " 0 0 action mirred egress redirect dev tap0_kata"
    ) in lines
    assert f"ip netns exec {own}-node ipset add ztunnel-pods-ips 10.200.1.2" in lines
    assert all(x.startswith(("ip ", "tc ", "# ")) or not x for x in lines)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("vxlan", "id 1001 dstport 4789"),
        ("gre", "key 1001"),
        ("ipip", ""),
        ("sit", "mode ipip"),
    ],
)
def test_another_tunnel_is_added_in_geneves_place(kind, words):
    own = f"fastpath-ambient-{kind}-node"
    lines = show.script(catalogue.declare(f"ambient-{kind}"))
    ends = "local 10.200.3.1 remote 10.200.3.2"
    line = f"ip -n {own} link add istioout type {kind} {ends} {words}".rstrip()
    assert line in lines
    assert sum("--dport 6081" in each for each in lines) == 0
    assert not any("type geneve" in each for each in lines)


# What istio-init makes by default, as Istio's own tests have it (capture/testdata).
ISTIO_INIT = """\
-t nat -N ISTIO_INBOUND
-t nat -N ISTIO_REDIRECT
-t nat -N ISTIO_IN_REDIRECT
-t nat -N ISTIO_OUTPUT
-t nat -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-t nat -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-t nat -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-t nat -A PREROUTING -p tcp -j ISTIO_INBOUND
-t nat -A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-t nat -A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-t nat -A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-t nat -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-t nat -A OUTPUT -j ISTIO_OUTPUT
-t nat -A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
-t nat -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 \
-m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-t nat -A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-t nat -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-t nat -A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 \
-m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-t nat -A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-t nat -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-t nat -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-t nat -A ISTIO_OUTPUT -j ISTIO_REDIRECT
"""


def test_a_sidecars_rules_are_istios_and_shown_as_the_guests():
    assert sidecar.istio_rules() == ISTIO_INIT.splitlines()
    lines = show.script(catalogue.declare("sidecar"))
    inside = lines[lines.index("# in the guest") + 1 :]
    assert inside == [f"iptables -w {rule}" for rule in ISTIO_INIT.splitlines()]


def test_list_has_a_line_for_each_path(capsys):
    assert command.show_all(as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(catalogue.NAMES)


@pytest.mark.parametrize(
    "wrong",
    [
        command.show_one,
        command.down,
        lambda name: command.up(name, "auto"),
        lambda name: command.check(name, "auto"),
    ],
)
def test_an_unknown_name_is_an_error_that_lists_the_others(wrong):
    with pytest.raises(FastpathError, match=r"there are .*ambient-geneve"):
        wrong("no-such")


def test_up_without_root_says_what_works_instead(monkeypatch):
    monkeypatch.setattr(netns, "may_configure", lambda: False)
    with pytest.raises(FastpathError, match="fastpath path check NAME"):
        command.up("ambient-geneve", "auto")
