"""Peers by HBONE who are nobody, or hold others up; guests that do."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest

from fastpath.ztunnel import gate
from tests.conformance.frames import DATA, PING, frame
from tests.support import pki
from tests.support.limits import wait_until
from tests.unit.fastpath.gate_world import (
    HERE,
    PEER,
    POD,
    World,
    asks,
    fields,
    served,
)
from vhost_user.hbone import Gate
from vhost_user.vsock.packet import Op

UNKNOWN = {
    "another-trust-domain": (pki.FOREIGN, "the peer has another identity"),
    "no-spiffe-id": ("", "the peer's certificate has not exactly one SPIFFE identity"),
}


@pytest.mark.parametrize(("uri", "why"), UNKNOWN.values(), ids=UNKNOWN)
def test_who_has_no_identity_of_the_mesh_gets_no_tunnel(tmp_path, uri, why):
    world = World(tmp_path)

    def play(world):
        assert world.turned_away(leaf=world.ca.issue(*([uri] if uri else [])))
        wait_until(lambda: world.stats().failed == 1)
        world.deliver()

    (line,) = world.run(play)
    said = fields(line)
    assert (said["level"], said["message"]) == ("warn", "connection failed")
    assert said["error"] == why
    assert said.get("src.identity", "") == uri
    assert (said["dst.addr"], said["direction"]) == (f"{POD}:15008", "inbound")


def test_an_identity_that_is_not_istios_is_denied(tmp_path):
    def play(world):
        peer = world.tunnel("spiffe://cluster.local/somebody")
        assert peer.status(peer.connect(asks(HERE))) == "401"

    (line,) = World(tmp_path).run(play)
    assert "must be spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT" in line


def test_a_guest_whose_backlog_is_full_is_asked_again(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream = peer.connect(asks(HERE))
        peer.send(stream, b"early")
        guest.introduce()
        for _ in range(3):
            guest.refuse()
        conn = guest.vsock.accept(buf_alloc=1 << 20)
        assert peer.status(stream) == "200"
        assert conn.receive_bytes(5) == b"early"

    World(tmp_path).run(play)


def test_a_guest_that_never_accepts_holds_no_other_ones_up(tmp_path):
    def play(world):
        guest = world.guest(8080, 8081)
        peer = world.tunnel()
        waiting = [peer.connect(asks(HERE)) for _ in range(20)]
        peer.fence()
        world.deliver()  # all wait for the guest to know their IP
        guest.introduce()
        for _ in range(6):  # as many as its backlog and one more
            assert guest.vsock.receive().op == Op.REQUEST
        other = peer.connect(asks(f"{POD}:8081"))
        conn = guest.vsock.accept(buf_alloc=1 << 20)
        assert conn.guest_port & 0xFFFF == 8081
        assert peer.status(other) == "200"
        for stream in waiting:
            peer.h2.reset_stream(stream)
        peer.flush()
        peer.fence()

    World(tmp_path, published="8080-8081").run(play)


def test_a_connect_that_is_reset_before_it_is_offered_is_forgotten(tmp_path):
    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        stream = peer.connect(asks(HERE))
        kind, payload = guest.control.receive()  # CALLER; it is not answered yet
        assert kind == 18
        peer.h2.reset_stream(stream)
        peer.flush()
        peer.fence()
        world.deliver()
        guest.control.send(b"\x14\x00\x04\x00" + payload[:4])  # INTRODUCED
        guest.known[int.from_bytes(payload[:4], "little")] = PEER
        served(world, guest, peer, first=False)

    lines = [fields(line) for line in World(tmp_path).run(play)]
    assert lines[0]["error"] == "Connection reset by peer (os error 104)"


MISDEEDS = {
    "flood": (frame(PING, 0, 0, bytes(8)) * 1000, "floods", "the peer flooded us"),
    "http-2": (frame(DATA, 0, 0, b"x"), "faults", "the peer broke HTTP/2"),
}


@pytest.mark.parametrize(("said", "counter", "why"), MISDEEDS.values(), ids=MISDEEDS)
def test_who_misbehaves_is_told_of_and_counted_and_others_go_on(
    tmp_path, caplog, said, counter, why
):
    def play(world):
        guest = world.guest()
        beside = world.tunnel()
        served(world, guest, beside)
        peer = world.tunnel()
        peer.fence()
        with contextlib.suppress(OSError):
            peer.sock.sendall(said)
        name = f"fastpath_gate_{counter}_total"
        wait_until(lambda: world.sample(name, sandbox="box") == 1)
        world.deliver()
        served(world, guest, beside, first=False)

    World(tmp_path).run(play)
    assert f"box: the tunnel of {PEER} ended: {why}" in caplog.messages


def test_who_is_silent_is_told_of_and_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(gate, "Gate", partial(Gate, ping_s=0.1, silence_s=1.0))

    def play(world):
        world.tunnel().fence()
        wait_until(lambda: world.sample("fastpath_gate_silent_total", sandbox="box"))
        world.deliver()

    World(tmp_path).run(play)
    why = "the peer did not answer a PING"
    assert f"box: the tunnel of {PEER} ended: {why}" in caplog.messages
