"""Gates that another content of Istio's file opens and closes; `/config_dump`."""

from __future__ import annotations

import json
import logging
import socket

import pytest

from fastpath.ztunnel.istio import headers
from fastpath.ztunnel.istio.headers import is_foreign
from tests.support.inbound_cases import SAID, UNKNOWN
from tests.support.limits import wait_until
from tests.unit.fastpath.gate_world import (
    CLIENT,
    HBONE,
    HERE,
    PEER,
    POD,
    WORKLOADS,
    World,
    fields,
    finish,
    served,
)
from vhost_user.vsock.packet import Op

PLAIN = WORKLOADS.replace("protocol: HBONE", "protocol: TCP")


def echoes(peer, stream, conn):
    peer.send(stream, b"ping")
    assert conn.receive_bytes(4) == b"ping"
    conn.send(b"pong")
    assert peer.read(stream, 4) == b"pong"


def refused(world):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((POD, HBONE))
    assert world.call(world.ztunnel._gates.stats) == {}


def test_a_workload_that_becomes_an_hbone_one_has_a_gate(tmp_path, caplog):
    def play(world):
        guest = world.guest()
        refused(world)
        world.set_mesh(WORKLOADS)
        served(world, guest, world.tunnel())
        assert world.stats().tunnels == 1

    with caplog.at_level(logging.INFO):
        World(tmp_path, PLAIN).run(play)
    assert f"box: HBONE at {POD}, as " in caplog.text


def raw_echoes(peer, stream, conn):
    """The same, past python-h2: after GOAWAY that takes no frames any more."""
    peer.raw(0x0, 0, stream, b"ping")
    assert conn.receive_bytes(4) == b"ping"
    conn.send(b"pong")
    heard = b""
    while b"pong" not in heard:
        heard += peer.sock.recv(4096)
    return heard


def test_one_that_is_none_any_more_has_none_and_keeps_who_is_in(tmp_path, caplog):
    """Its peers are told to open no more streams; and all of it again."""

    def play(world):
        guest = world.guest()
        old = world.tunnel()
        stream, conn = served(world, guest, old)
        old.fence()
        for number in range(2):
            world.set_mesh(PLAIN)
            refused(world)
            heard = raw_echoes(old, stream, conn)
            assert (b"\0\0\x08\x07\0" in heard) == (number == 0)  # GOAWAY
            world.set_mesh(WORKLOADS)
            new = world.tunnel()
            its, other = served(world, guest, new, first=False)
            echoes(new, its, other)
        old.raw(0x0, 1, stream)
        finish(conn)

    with caplog.at_level(logging.INFO):
        lines = World(tmp_path).run(play)
    assert len(lines) == 3
    assert caplog.text.count("box: no HBONE any more, by the mesh") == 2


def test_what_the_engine_was_told_before_holds_no_more(tmp_path):
    """Of a client that says the same again, by the old tunnel and by a new one."""

    def play(world):
        guest = world.guest()
        said = {"forwarded": f'for="{PEER}:4711"'}
        served(world, guest, world.tunnel(), **said)
        wait_until(lambda: world.ztunnel._gates._kept["box"].gate._decided)
        world.set_mesh(PLAIN)
        world.set_mesh(WORKLOADS)
        said = {"forwarded": f'for="{PEER}:4712"'}
        peer = world.tunnel()
        stream, conn = served(world, guest, peer, first=False, **said)
        echoes(peer, stream, conn)

    assert len(World(tmp_path).run(play)) == 2


def test_an_address_that_is_taken_meanwhile_leaves_all_else(tmp_path, caplog):
    def play(world):
        guest = world.guest()
        with socket.create_server((POD, HBONE)):
            world.set_mesh(WORKLOADS)
            assert world.call(world.ztunnel._gates.stats) == {}
        world.set_mesh(WORKLOADS)
        served(world, guest, world.tunnel())

    World(tmp_path, PLAIN).run(play)
    assert f"box: cannot listen for HBONE on {POD}:15008: Address already in use" in (
        caplog.text
    )
    assert "there is no HBONE for it" in caplog.text


def test_the_dump_has_who_is_in(tmp_path):
    """By HBONE, and in plain text."""

    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        said = {"forwarded": f'for="{PEER}:4711";host=web.default'}
        stream, conn = served(world, guest, peer, **said)
        plain = socket.create_connection((POD, 8080), source_address=("127.0.0.3", 0))
        world._kept.callback(plain.close)
        other = guest.accept()
        inbound = wait_until(lambda: both(world))
        assert inbound == [
            {
                "src": "{}:{}".format(*peer.sock.getsockname()),
                "originalDst": "web.default",
                "actualDst": HERE,
                "protocol": "HBONE",
            },
            {
                "src": "{}:{}".format(*plain.getsockname()),
                "originalDst": None,
                "actualDst": HERE,
                "protocol": "TCP",
            },
        ]
        peer.send(stream, b"", end=True)
        finish(conn)
        plain.close()
        finish(other)
        wait_until(lambda: not of(world))

    World(tmp_path).run(play)


def of(world):
    page = json.loads(world.ztunnel._dump())
    return page["workloadState"]["box"]["connections"]["inbound"]


def both(world):
    found = of(world)
    return found if len(found) == 2 else None


def test_those_that_the_engine_takes_in_by_itself_are_there_too(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        for number in range(2):
            said = {"forwarded": f'for="{PEER}:{4711 + number}";host=web.default'}
            served(world, guest, peer, first=not number, **said)
        assert world.stats().decided == 1
        assert [it["originalDst"] for it in wait_until(lambda: both(world))] == [
            "web.default"
        ] * 2

    World(tmp_path).run(play)


@pytest.mark.parametrize(
    ("network", "named"),
    [(None, True), ("", True), ("near", False), ("Far", False)],
)
def test_the_ip_of_a_client_of_another_network_names_nobody_here(
    tmp_path, network, named
):
    """It is a gateway's. Ours is the one without a name."""

    def play(world):
        guest = world.guest()
        said = {} if network is None else {"x-forwarded-network": network}
        peer = world.tunnel()
        stream, conn = served(world, guest, peer, **said)
        peer.send(stream, b"", end=True)
        finish(conn)

    (line,) = World(tmp_path).run(play)
    said = fields(line)
    assert said["src.identity"] == CLIENT
    assert ("src.workload" in said) == named


def test_networks_are_the_same_whatever_the_case():
    assert not is_foreign("East", "eAST")
    assert is_foreign("", "east")
    assert not is_foreign(None, "east")


@pytest.mark.parametrize(("baggage", "log", "labels"), SAID.values(), ids=SAID)
def test_a_client_of_another_network_is_who_baggage_says(
    tmp_path, baggage, log, labels
):
    """In the log and the metrics, as in Istio's ztunnel; its principal is proved."""
    world = World(tmp_path)

    def play(world):
        guest = world.guest()
        far = {"baggage": baggage, "x-forwarded-network": "far"}
        peer = world.tunnel()
        conns = [
            served(world, guest, peer, first=first, **far)[1] for first in (True, False)
        ]
        assert world.stats().decided == 1  # the second one
        for conn in conns:
            conn.say(Op.RST)
        world.deliver()
        source = {f"source_{name}": it for name, it in (UNKNOWN | labels).items()}
        opened = "istio_tcp_connections_opened_total"
        assert world.sample(opened, source_principal=CLIENT, **source) == 2

    keys = "workload", "namespace", "cluster"
    for line in world.run(play):
        said = fields(line)
        assert said["src.identity"] == CLIENT
        assert {it: said[f"src.{it}"] for it in keys if f"src.{it}" in said} == log


def test_clients_that_say_ever_new_names_have_few_counters(tmp_path, monkeypatch):
    """And too long ones are none."""
    monkeypatch.setattr(headers, "MAX_KNOWN", 2)
    names = ["a", "b" * 254, "c", "d", "a"]

    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        for each, name in enumerate(names):
            far = {"baggage": f"service.name={name}", "x-forwarded-network": "far"}
            served(world, guest, peer, first=not each, **far)

    lines = World(tmp_path).run(play)
    found = sorted(fields(line).get("src.workload", "") for line in lines)
    assert found == ["", "", "a", "a", "c"]
