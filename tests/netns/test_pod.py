"""Hand-off `pod`: real namespaces, the real process in each, a guest in user space."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fastpath.ztunnel.model import ListenAddress
from tests.netns.pod_world import (
    DATAGRAM_PORT,
    LISTEN,
    POD4,
    POD6,
    PUBLISHED,
    SERVER4,
    SERVER6,
    Echo,
    NameServer,
    makers,
    pod,
    query,
    sandbox,
    sandboxes,
    with_ips,
)
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath.tsi_guest import message, run
from vhost_user.vsock.packet import Op, Shutdown

pytestmark = pytest.mark.netns

BY_VERSION = pytest.mark.parametrize(
    ("server", "own"),
    [pytest.param(SERVER4, POD4, id="ipv4"), pytest.param(SERVER6, POD6, id="ipv6")],
)


@pytest.fixture
def namespace():
    with pod() as there:
        yield there


@BY_VERSION
def test_a_server_of_the_namespace_sees_the_pods_ip(tmp_path, namespace, server, own):
    there = sandboxes(tmp_path, box=namespace.path)
    with Echo(namespace, server) as echo:

        def play(ztunnel):
            with sandbox(ztunnel) as guest:
                guest.echoes(guest.connect(echo.address))

        (line,) = run(there, play)
        assert echo.peers == [own]
    assert "connection complete" in line


@BY_VERSION
def test_half_close_stays(tmp_path, namespace, server, own):
    there = sandboxes(tmp_path, box=namespace.path)
    with Echo(namespace, server) as echo:

        def play(ztunnel):
            with sandbox(ztunnel) as guest:
                conn = guest.connect(echo.address)
                conn.send(b"ping")
                conn.shutdown(Shutdown.SEND)
                assert conn.receive_bytes(7) == b"pingbye"
                conn.expect(Op.SHUTDOWN)

        run(there, play)


@pytest.mark.parametrize(
    ("destination", "error"),
    [
        ((SERVER4, 9), errno.ECONNREFUSED),
        ((SERVER6, 9), errno.ECONNREFUSED),
        (("198.51.100.1", 80), errno.EACCES),
        (("192.0.2.1", 80), errno.ENETUNREACH),
        (("2001:db8::1", 80), errno.ENETUNREACH),
        (("169.254.169.254", 80), errno.ECONNREFUSED),
    ],
    ids=["refused4", "refused6", "prohibited", "no-route4", "no-route6", "metadata"],
)
def test_connect_fails_with_the_namespaces_errno(
    tmp_path, namespace, destination, error
):
    there = sandboxes(tmp_path, box=namespace.path)

    def play(ztunnel):
        with sandbox(ztunnel) as guest:
            assert guest.refused(destination) == error

    run(there, play)


def test_a_server_of_our_own_namespace_is_not_reached(tmp_path, namespace):
    with Echo(namespace) as echo, pod() as empty:
        there = sandboxes(tmp_path, box=namespace.path, other=empty.path)

        def play(ztunnel):
            with sandbox(ztunnel, "box") as box, sandbox(ztunnel, "other") as other:
                box.echoes(box.connect(echo.address))
                assert other.refused(echo.address) == errno.ECONNREFUSED

        run(there, play)


def test_a_pod_without_an_address_of_a_version_does_not_reach_it(tmp_path, namespace):
    there = sandboxes(tmp_path, box=namespace.path)
    there = with_ips(there, POD4)

    def play(ztunnel):
        with sandbox(ztunnel) as guest, Echo(namespace, SERVER6) as echo:
            assert guest.refused(echo.address) == errno.ENETUNREACH

    run(there, play)


def test_an_address_that_the_namespace_lacks_is_an_error_until_it_has_it(
    tmp_path, namespace
):
    there = sandboxes(tmp_path, box=namespace.path)
    there = with_ips(there, "10.0.0.77")

    def play(ztunnel):
        with sandbox(ztunnel) as guest, Echo(namespace) as echo:
            assert guest.refused(echo.address) == errno.EADDRNOTAVAIL
            namespace.run(os.system, "ip addr add 10.0.0.77/32 dev lo")
            guest.echoes(guest.connect(echo.address))
            assert echo.peers == ["10.0.0.77"]

    run(there, play)


def test_more_connections_at_once_than_there_are_sockets_in_stock(tmp_path, namespace):
    there = sandboxes(tmp_path, box=namespace.path)
    with Echo(namespace) as echo:

        def play(ztunnel):
            with sandbox(ztunnel) as guest:
                conns = [guest.request(echo.address) for _ in range(200)]
                for conn in conns:
                    conn.expect(Op.RESPONSE)
                for conn in conns:
                    guest.echoes(conn)

        run(there, play)
        assert echo.peers == [POD4] * 200


def test_connections_that_wait_for_a_socket_may_be_given_up(tmp_path, namespace):
    there = sandboxes(tmp_path, box=namespace.path)
    with Echo(namespace) as echo:

        def play(ztunnel):
            (pid,) = makers(ztunnel)
            with sandbox(ztunnel) as guest:
                os.kill(pid, signal.SIGSTOP)
                conns = [guest.request(echo.address) for _ in range(50)]
                for conn in conns[::2]:
                    conn.say(Op.RST)
                os.kill(pid, signal.SIGCONT)
                for conn in conns[1::2]:
                    conn.expect(Op.RESPONSE)
                    guest.echoes(conn)
            wait_until(lambda: not ztunnel.stats()[0].conns)
            with sandbox(ztunnel) as guest:
                os.kill(pid, signal.SIGSTOP)
                for _ in range(50):
                    guest.request(echo.address)
            wait_until(lambda: not ztunnel.stats()[0].conns)
            os.kill(pid, signal.SIGCONT)
            with sandbox(ztunnel) as guest:
                guest.echoes(guest.connect(echo.address))

        run(there, play)


def test_a_guest_and_its_namespace_may_go_at_once(tmp_path, namespace):
    there = sandboxes(tmp_path, box=namespace.path)

    def play(ztunnel):
        (pid,) = makers(ztunnel)
        box, done = ztunnel.sandboxes["box"], threading.Event()

        def end():
            box.device.handle.reset()  # a turn closes 32 of them
            ztunnel._pods._pods["box"].leave()
            done.set()

        with sandbox(ztunnel) as guest:
            os.kill(pid, signal.SIGSTOP)
            for _ in range(6000):
                guest.request((SERVER4, 9))
            wait_until(lambda: ztunnel.stats()[0].conns >= 6000)
            box.datagrams.flows._loop.call_soon_threadsafe(end)
            assert done.wait(LIMIT_S)
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: not ztunnel.stats()[0].conns)

    run(there, play)


@pytest.mark.parametrize(
    ("place", "client"),
    [
        pytest.param((POD4, PUBLISHED), SERVER4, id="ipv4"),
        pytest.param((POD6, PUBLISHED), SERVER6, id="ipv6"),
    ],
)
def test_a_published_listener_shows_the_clients_address(
    tmp_path, namespace, place, client
):
    there = sandboxes(tmp_path, box=namespace.path)

    def play(ztunnel):
        with sandbox(ztunnel) as guest:
            guest.control.send(struct.pack("<HH", 16, len(LISTEN)) + LISTEN)
            kind, payload = guest.control.receive()
            assert (kind, payload[4:6]) == (17, struct.pack("<H", PUBLISHED))
            family = 2 if ":" not in client else 10
            with namespace.socket(family) as sock:
                sock.settimeout(LIMIT_S)
                sock.bind((client, 0))
                sock.connect(place)
                kind, payload = guest.control.receive()
                assert kind == 18
                ports, _, _, address = struct.unpack("<IHH16s", payload)
                guest.control.send(struct.pack("<HHI", 20, 4, ports))
                conn = guest.guest.accept()
                packed = ip_address(client).packed
                shown = bytes(10) + b"\xff\xff" + packed if family == 2 else packed
                assert address in (shown, packed.ljust(16, b"\0"))
                assert conn.host_port & 0xFFFF == sock.getsockname()[1]
                conn.send(b"hello")
                assert sock.recv(5) == b"hello"

    run(there, play)


def test_a_published_listener_is_the_namespaces_alone(tmp_path, namespace):
    with pod() as second:
        there = sandboxes(tmp_path, box=namespace.path)

        def play(ztunnel):
            with sandbox(ztunnel) as guest:
                guest.control.send(struct.pack("<HH", 16, len(LISTEN)) + LISTEN)
                guest.control.receive()
                for elsewhere in (None, second):
                    with pytest.raises(ConnectionRefusedError):
                        _connect(elsewhere, (POD4, PUBLISHED))

        run(there, play)


def _connect(namespace, address):
    """Connect there, or, with None, where an address of loopback stands for a pod."""
    if namespace is None:
        namespace, address = pod(), (SERVER4, address[1])
    with namespace.socket() as sock:
        sock.connect(address)


def test_names_are_asked_for_in_the_namespace(tmp_path, namespace):
    there = sandboxes(tmp_path, box=namespace.path)
    resolvers = (ListenAddress(ip_address(SERVER4), 53),)
    there = replace(there, fastpath=replace(there.fastpath, resolvers=resolvers))
    with NameServer(namespace) as names:

        def play(ztunnel):
            with sandbox(ztunnel) as guest:
                asked = query("there.example")
                conn = guest.connect(("10.96.0.10", 53))
                conn.send(struct.pack("!H", len(asked)) + asked)
                assert conn.receive().payload.endswith(bytes([192, 0, 2, 7]))

        run(there, play)
        assert names.peers == [("tcp", POD4)]


def test_datagrams_and_their_names_go_by_the_namespace(tmp_path, namespace):
    there = sandboxes(tmp_path, box=namespace.path)
    resolvers = (ListenAddress(ip_address(SERVER4), 53),)
    there = replace(there, fastpath=replace(there.fastpath, resolvers=resolvers))
    with NameServer(namespace) as names, NameServer(namespace, SERVER6, 5353) as peer:

        def play(ztunnel):
            with sandbox(ztunnel) as guest:
                conn = guest.guest.connect_privileged(DATAGRAM_PORT)
                conn.send(message(1, struct.pack("<IHH", 0x41495354, 1, 1)))
                conn.receive()
                for number, (host, port) in enumerate(
                    (("10.96.0.10", 53), (SERVER6, 5353), (SERVER6, 9))
                ):
                    ip = ip_address(host)
                    head = struct.pack("<IHH", number, ip.version, port)
                    conn.send(message(33, head + ip.packed.ljust(16, b"\0")))
                    assert conn.receive().payload[:2] == b"\x22\0"  # VERDICT
                    flow = struct.pack("<HHI", 4001, 0, number)
                    conn.send(message(35, flow + query("there.example")))
                    said = conn.receive().payload
                    if port == 9:
                        error = struct.pack("<I", errno.ECONNREFUSED)
                        assert said[:2] == b"\x24\0"  # UNREACHABLE
                        assert said.endswith(error)
                    else:
                        assert said.endswith(bytes([192, 0, 2, 7]))

        run(there, play)
        assert names.peers == [("udp", POD4)]
        assert peer.peers == [("udp", POD6)]
