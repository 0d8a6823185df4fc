"""Published ports through the whole process: a guest in user space, the real engine.

The guest's side of the control stream is written out by hand, from
docs/tsi-protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fastpath.errors import FastpathError
from fastpath.ztunnel.model import Config, Fastpath, Publication, Sandbox, Workload
from fastpath.ztunnel.process import Ztunnel
from tests.support.limits import LIMIT_S as TIMEOUT_S
from tests.support.limits import wait_until
from tests.support.ports import free_port
from vhost_user.vsock.driver import Connection, VsockGuest
from vhost_user.vsock.packet import Op

from .tsi_guest import settled

TSI_PORT = 21587
PORT, LISTENER = 80, 0x100050
POD = "127.0.0.5"  # of lo, as all of 127.0.0.0/8 is
HELLO = struct.pack("<HHIHH", 1, 8, 0x41495354, 1, 1)
LISTEN = struct.pack("<HHIIHHHH16s", 16, 32, LISTENER, 5, PORT, 4, 0, 0, bytes(16))
UNLISTEN = struct.pack("<HHI", 19, 4, LISTENER)


def config(tmp_path, *publish, published=""):
    workload = Workload(
        workload_ips=(ip_address(POD),), namespace="default", name="server"
    )
    policy = None
    if published:
        policy = tmp_path / "policy.yaml"
        policy.write_text(f'published: ["{published}"]\n')
    sandbox = Sandbox(
        name="box",
        workload="default/server",
        socket=tmp_path / "s",
        cid=3,
        policy=policy,
        publish=tuple(map(Publication.parse, publish)),
    )
    return Config(
        workloads=(workload,),
        fastpath=Fastpath(sandboxes=(sandbox,), access_log=tmp_path / "access.log"),
    )


def run(there, play):
    """Run `play(guest, control)` on a thread beside the process; return the metrics."""

    async def main():
        async with asyncio.timeout(TIMEOUT_S), Ztunnel(there) as ztunnel:
            await asyncio.to_thread(bounded)
            await settled(ztunnel)
            return ztunnel.metrics.text().decode()

    def bounded():
        with VsockGuest(there.fastpath.sandboxes[0].socket) as guest:
            control = guest.connect_privileged(TSI_PORT)
            control.send(HELLO)
            control.receive()
            play(guest, control)

    return asyncio.run(main())


def listening(control):
    """The answer to LISTEN: port and error."""
    payload = control.receive().payload
    kind, size, listener, port, _, error = struct.unpack("<HHIHHI", payload)
    assert (kind, size, listener) == (17, 12, LISTENER)
    return port, error


def eventually_refused(address):
    def refused():
        with contextlib.suppress(ConnectionError):
            socket.create_connection(address).close()
            return False
        return True

    wait_until(refused)


def refuse(guest):
    """Answer the next packet, a REQUEST, as a full backlog does."""
    header = guest.receive().header
    assert header.op == Op.REQUEST
    Connection(
        guest,
        header.dst_port,
        header.src_port,
        buf_alloc=0,
        cid=header.src_cid,
        kind=header.type,
    ).say(Op.RST)


def peers(control):
    kind, size, ports, family, _, address = struct.unpack(
        "<HHIHH16s", control.receive().payload
    )
    assert (kind, size) == (18, 24)
    control.send(struct.pack("<HHI", 20, 4, ports))
    return ports, family, address


@pytest.mark.parametrize("where", ["pod", "host", "any-port"])
def test_a_client_reaches_a_listener(tmp_path, where):
    if where == "any-port":
        port = free_port("127.0.0.1")
        there = config(tmp_path, "127.0.0.1:*")
        address = ("127.0.0.1", port)
    elif where == "pod":
        port = free_port(POD)
        there = config(tmp_path, published=str(port))
        address = (POD, port)
    else:
        address = ("127.0.0.1", free_port())
        port = PORT
        there = config(tmp_path, f"{address[1]}:{PORT}")

    def play(guest, control):
        message = bytearray(LISTEN)
        struct.pack_into("<H", message, 12, port)
        control.send(bytes(message))
        assert listening(control) == (address[1], 0)
        with socket.create_connection(address) as client:
            me = client.getsockname()
            ports, family, packed = peers(control)
            assert (ports, family) == (0x80010000, 4)
            assert packed[:4] == socket.inet_aton(me[0])
            conn = guest.accept()
            assert (conn.guest_port, conn.host_port) == (LISTENER, ports | me[1])
            client.sendall(b"hello")
            assert conn.receive().payload == b"hello"
            conn.send(b"worlds")
            assert client.recv(10) == b"worlds"
        control.send(UNLISTEN)
        eventually_refused(address)

    metrics = run(there, play)
    opened = next(
        line
        for line in metrics.splitlines()
        if line.startswith("istio_tcp_connections_opened_total{")
    )
    assert 'reporter="destination"' in opened
    received = next(
        line
        for line in metrics.splitlines()
        if line.startswith("istio_tcp_received_bytes_total{")
    )
    assert received.endswith(" 5.0")
    log = (tmp_path / "access.log").read_text()
    assert 'direction="inbound"' in log
    assert f"dst.addr={POD}:{port}" in log
    assert "bytes_sent=6 bytes_recv=5 " in log  # the server's, inbound
    assert 'dst.identity="spiffe://cluster.local/ns/default/sa/default"' in log


def test_a_policy_that_changes_unpublishes_and_publishes(tmp_path):
    port = free_port(POD)
    there = config(tmp_path, published=str(port))
    file = there.fastpath.sandboxes[0].policy

    def connect():
        return socket.create_connection((POD, port), TIMEOUT_S)

    def reachable(want):
        def found():
            try:
                connect().close()
            except ConnectionRefusedError:
                return False
            return True

        wait_until(lambda: found() == want)

    def play(guest, control):
        message = bytearray(LISTEN)
        struct.pack_into("<H", message, 12, port)
        control.send(bytes(message))
        assert listening(control) == (port, 0)
        with connect() as client:
            peers(control)
            guest.accept().send(b"x")
            assert client.recv(1) == b"x"
            file.write_text("{}\n")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        reachable(False)
        file.write_text(f"published: [{port}]\n")
        reachable(True)

    text = run(there, play)
    assert 'fastpath_policy_ended_total{reason="unpublished",sandbox="box"} 1.0' in text
    log = there.fastpath.access_log.read_text()
    assert f"ended by a new policy: port {port} is not published" in log


def test_a_policy_that_does_not_publish_what_is_to_be_reachable_is_refused(tmp_path):
    there = config(tmp_path, f"8080:{PORT}", published="81")

    async def main():
        async with Ztunnel(there):
            pass

    with pytest.raises(FastpathError, match=f"does not publish port {PORT}"):
        asyncio.run(main())


def test_no_listener_at_the_pods_ips(tmp_path):
    sandbox = replace(
        config(tmp_path, published=str(PORT)).fastpath.sandboxes[0],
        pod_listeners=False,
    )
    there = config(tmp_path)
    there = replace(there, fastpath=replace(there.fastpath, sandboxes=(sandbox,)))

    def play(_guest, control):
        control.send(LISTEN)
        assert listening(control) == (0, 0)

    run(there, play)


def test_a_listener_that_is_not_published_stays_in_the_guest(tmp_path):
    def play(guest, control):
        control.send(LISTEN)
        assert listening(control) == (0, 0)

    run(config(tmp_path, published="81"), play)


def test_a_port_that_is_taken_on_the_host_is_said_so(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        def play(guest, control):
            control.send(LISTEN)
            assert listening(control) == (0, 98)

        run(config(tmp_path, f"{port}:{PORT}"), play)


def test_a_client_is_offered_until_the_backlog_has_room(tmp_path):
    address = ("127.0.0.1", free_port())

    def play(guest, control):
        control.send(LISTEN)
        listening(control)
        with socket.create_connection(address) as client:
            client.sendall(b"early")
            peers(control)
            for _ in range(3):
                refuse(guest)
            conn = guest.accept()
            assert conn.receive().payload == b"early"

    run(config(tmp_path, f"{address[1]}:{PORT}"), play)


def test_the_end_of_the_agent_ends_its_listeners(tmp_path):
    address = ("127.0.0.1", free_port())

    def play(guest, control):
        control.send(LISTEN)
        listening(control)
        control.say(Op.RST)
        eventually_refused(address)

    run(config(tmp_path, f"{address[1]}:{PORT}"), play)
