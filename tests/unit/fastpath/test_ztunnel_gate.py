"""HBONE into a sandbox: what a CONNECT is answered, whom the program sees, the log."""

from __future__ import annotations

import h2.events
import pytest

from tests.unit.fastpath.gate_world import (
    CLIENT,
    PEER,
    POD,
    WEB,
    WORKLOADS,
    World,
    asks,
    fields,
)
from vhost_user.vsock.packet import Op, Shutdown

DATA = bytes(range(256)) * 1024
HERE = f"{POD}:8080"


def finish(conn):
    """Have a program end a connection whose client sends no more."""
    conn.expect(Op.SHUTDOWN)
    conn.shutdown(Shutdown.BOTH)


def test_a_peer_reaches_a_program(tmp_path):
    world = World(tmp_path)

    def play(world):
        guest = world.guest()
        peer = world.tunnel()
        said = asks(HERE, forwarded=f'for="{PEER}:4711";host=web.default')
        stream = peer.connect(said)
        conn = guest.accept()
        assert guest.peer(conn) == (PEER, 4711)
        answer = peer.until(h2.events.ResponseReceived)
        assert dict(answer.headers) == {
            ":status": "200",
            "baggage": "k8s.cluster.name=c1,k8s.namespace.name=default,"
            "k8s.deployment.name=web-v1,service.name=web",
        }
        peer.send(stream, DATA, end=True)
        assert conn.receive_bytes(len(DATA)) == DATA
        conn.send(b"back")
        assert peer.read(stream, 4) == b"back"
        finish(conn)
        peer.ended(stream)

    (line,) = world.run(play)
    assert fields(line) | {"duration": "", "src.addr": ""} == {
        "level": "info",
        "message": "connection complete",
        "src.addr": "",
        "src.workload": "client-1",
        "src.namespace": "default",
        "src.identity": CLIENT,
        "src.cluster": "Kubernetes",
        "dst.addr": f"{POD}:15008",
        "dst.hbone_addr": HERE,
        "dst.service": "web.default",
        "dst.workload": "web",
        "dst.namespace": "default",
        "dst.identity": WEB,
        "dst.cluster": "c1",
        "direction": "inbound",
        "bytes_sent": f"{len(DATA)}",
        "bytes_recv": "4",
        "duration": "",
    }
