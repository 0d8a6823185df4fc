"""Hand-off `inpod`: we tell a ztunnel of pods, and write the rules that lead to it.

The ztunnel is a listener at its port 15001 and a ZDS client by hand here; or Istio's
own, with `--ztunnel BIN`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import struct
import subprocess
from dataclasses import replace
from ipaddress import ip_address

import pytest

from fastpath import tools
from fastpath.datapath import inpod
from fastpath.datapath.netns import Namespace
from fastpath.errors import FastpathError
from fastpath.ztunnel.model import Handoff, ListenAddress
from fastpath.ztunnel.process import Ztunnel
from tests.netns.inpod_world import (
    CONFIG,
    GATEWAY,
    SERVER,
    istios_ztunnel,
    pod_and_server,
)
from tests.netns.istio_world import access_line
from tests.netns.pod_world import POD4, PUBLISHED, Echo, pod, sandboxes
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath.tsi_guest import Guest, run
from vhost_user.vsock.packet import Op, Shutdown

pytestmark = pytest.mark.netns

SO_ORIGINAL_DST = 80
SOCKS5 = ListenAddress(ip_address("127.0.0.1"), 15080)
ASKED = bytes([5, 1, 0, 5, 1, 0])
LISTENER = 0x100050
LISTEN = struct.pack("<IIHHHH16s", LISTENER, 5, PUBLISHED, 4, 0, 0, bytes(16))


def handed(tmp_path, zds=None, *, socks5=None, **paths):
    """Sandboxes, each told of on the socket `zds`."""
    there = sandboxes(tmp_path, **paths)
    handoff = Handoff(inpod=zds or tmp_path / "zds", socks5=socks5)
    found = tuple(replace(it, handoff=handoff) for it in there.fastpath.sandboxes)
    return replace(there, fastpath=replace(there.fastpath, sandboxes=found))


def guest_of(ztunnel, name):
    return Guest(next(s for s in ztunnel.config.fastpath.sandboxes if s.name == name))


def rules(namespace):
    done = [
        subprocess.run(
            namespace.command(argv), capture_output=True, text=True, check=False
        ).stdout.splitlines()
        for argv in (
            ["iptables", "-t", "nat", "-S"],
            ["iptables", "-t", "mangle", "-S"],
            ["ip6tables", "-t", "nat", "-S"],
            ["ip", "rule", "show", "pref", "32764"],
            ["ip", "-6", "rule", "show", "pref", "32764"],
            ["ip", "route", "show", "table", "100"],
        )
    ]
    return [line for lines in done for line in lines]


@contextlib.contextmanager
def listening(namespace, port, family=socket.AF_INET):
    """A ztunnel's port, and nothing behind it."""
    with namespace.socket(family) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        sock.listen()
        sock.settimeout(LIMIT_S)
        yield sock


def original_destination(sock):
    data = sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    port, ip = struct.unpack_from("!2xH4s", data)
    return str(ip_address(ip)), port


class Told:
    """A ZDS client that takes all; what it heard."""

    def __init__(self, path):
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(LIMIT_S)
        self._sock.connect(str(path))
        self._sock.send(bytes([8, 1]))

    def hears(self):
        data, fds, _, _ = socket.recv_fds(self._sock, 1024, 1)
        self._sock.send(b"\x0a\x00")
        inodes = [os.fstat(fd).st_ino for fd in fds]
        for fd in fds:
            os.close(fd)
        return data, inodes

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._sock.close()


@pytest.fixture
def spaces():
    with pod_and_server() as found:
        yield found


def only_ipv4(config):
    """The pod's namespace of these tests has no IPv6."""
    (workload,) = config.workloads
    workload = replace(
        workload, workload_ips=(ip_address(POD4),), service_account="pod1"
    )
    return replace(config, workloads=(workload,))


def test_connections_are_led_to_the_ztunnel_in_the_pod(tmp_path, spaces):
    with listening(spaces[0], 15001) as ztunnels:

        def play(ztunnel):
            with guest_of(ztunnel, "box") as guest:
                conn = guest.connect((SERVER, 8080))
                caught, peer = ztunnels.accept()
                with caught:
                    assert peer[0] == POD4
                    assert original_destination(caught) == (SERVER, 8080)
                    conn.send(b"ping")
                    assert caught.recv(4) == b"ping"

        run(only_ipv4(handed(tmp_path, box=spaces[0].path)), play)


def test_without_a_ztunnel_nothing_goes_round_it(tmp_path, spaces):
    with Echo(spaces[1], SERVER) as echo:

        def play(ztunnel):
            with guest_of(ztunnel, "box") as guest:
                assert guest.refused(echo.address) == errno.ECONNREFUSED

        path = spaces[0].path
        (line,) = run(only_ipv4(handed(tmp_path, box=path)), play)
        assert not echo.peers
    assert f"hand-off to the ztunnel in {path}: Connection refused" in line


def test_the_rules_are_written_once_and_stay(tmp_path):
    with pod() as there:
        before = []
        for _ in range(2):
            run(handed(tmp_path, box=there.path), lambda _: None)
            before.append(rules(there))
        assert before[0] == before[1]
        found = before[0]
        assert sum("-j FASTPATH_OUTPUT" in line for line in found) == 3
        assert sum("--to-ports 15001" in line for line in found) == 2
        assert sum("--to-ports 15006" in line for line in found) == 2
        assert sum("--to-ports 15053" in line for line in found) == 4
        assert sum("fwmark 0x111/0xfff lookup 100" in line for line in found) == 2
        assert "local default dev lo scope host" in " ".join(found)


def test_a_namespace_whose_lo_is_down_gets_it_up():
    with Namespace() as bare:
        inpod.install(bare.fileno(), {4, 6})
        assert sum("--to-ports 15001" in line for line in rules(bare)) == 2
        with listening(bare, 15001) as there, bare.socket() as client:
            client.connect(there.getsockname())


def test_with_socks5_there_are_no_rules(tmp_path):
    with pod() as there:
        run(handed(tmp_path, socks5=SOCKS5, box=there.path), lambda _: None)
        assert not any("FASTPATH" in line for line in rules(there))


def test_who_waits_for_socks5_is_told_when_the_namespace_goes_away(tmp_path):
    with pod() as there, listening(there, SOCKS5.port) as proxy:

        def play(ztunnel):
            with guest_of(ztunnel, "box") as guest:
                conn = guest.request((SERVER, 8080))
                with proxy.accept()[0] as ours:
                    ours.settimeout(LIMIT_S)
                    assert ours.recv(13, socket.MSG_WAITALL)[:6] == ASKED
                    there.close()
                    conn.expect(Op.RST)
                    assert guest.failed() == errno.ENETUNREACH

        run(handed(tmp_path, socks5=SOCKS5, box=there.path), play)


def test_a_pod_without_ipv6_gets_no_rules_for_it(tmp_path):
    with pod() as there:
        config = handed(tmp_path, box=there.path)
        (workload,) = config.workloads
        workload = replace(workload, workload_ips=(ip_address(POD4),))
        run(replace(config, workloads=(workload,)), lambda _: None)
        found = rules(there)
        assert sum("--to-ports 15001" in line for line in found) == 1


def test_many_sandboxes_are_told_of_each_with_its_namespace(tmp_path):
    spaces = [pod() for _ in range(3)]
    paths = {f"box{i}": it.path for i, it in enumerate(spaces)}

    def play(ztunnel):
        with Told(tmp_path / "zds") as told:
            for i, space in enumerate(spaces):
                data, inodes = told.hears()
                name = f"box{i}".encode()
                assert data.endswith(
                    b"\x0a\x04" + name + b"\x12\x07default\x1a\x07default"
                )
                assert b"default/" + name in data
                assert inodes == [os.stat(space.path).st_ino]  # noqa: PTH116
            assert told.hears() == (b"\x1a\x00", [])
            spaces[1].close()
            assert told.hears() == (b"\x12\x0e\x12\x0cdefault/box1", [])

    run(handed(tmp_path, **paths), play)
    for space in spaces:
        space.close()


def test_a_socket_that_can_not_be_had_stops_the_start(tmp_path):
    (tmp_path / "zds").touch()
    with pod() as there, pytest.raises(FastpathError) as caught:
        run(handed(tmp_path, box=there.path), lambda _: None)
    assert "fastpath.sandboxes[0].handoff.inpod" in str(caught.value)
    assert "is not a socket" in str(caught.value)
    assert caught.value.hint


def test_rules_that_can_not_be_had_stop_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(inpod, "RULES", "*nat\n-A NOWHERE -j ACCEPT\nCOMMIT\n")
    with pod() as there, pytest.raises(FastpathError) as caught:
        run(handed(tmp_path, box=there.path), lambda _: None)
    assert "fastpath.sandboxes[0].netns" in str(caught.value)
    assert "iptables-restore" in str(caught.value)
    assert "CAP_NET_ADMIN" in str(caught.value.hint)
    assert not (tmp_path / "zds").exists()


@pytest.mark.parametrize(
    ("program", "package"),
    [("ip", "iproute2"), ("iptables-restore", "iptables"), ("ip6tables", "iptables")],
)
def test_a_missing_program_is_said(tmp_path, monkeypatch, program, package):
    find = tools.find
    monkeypatch.setattr(
        tools, "find", lambda name: None if name == program else find(name)
    )
    with pod() as there, pytest.raises(FastpathError) as caught:
        run(handed(tmp_path, box=there.path), lambda _: None)
    assert f"{program} is not installed" in str(caught.value)
    assert caught.value.hint == f"sudo apt-get install {package}"


def test_two_sandboxes_in_one_namespace_are_refused(tmp_path):
    with pod() as there, pytest.raises(FastpathError, match="is also at"):
        Ztunnel(handed(tmp_path, one=there.path, two=there.path))


def test_a_workload_whose_names_do_not_fit_a_message_is_refused(tmp_path):
    with pod() as there:
        config = handed(tmp_path, box=there.path)
        (workload,) = config.workloads
        config = replace(config, workloads=(replace(workload, uid="u" * 1000),))
        (sandbox,) = config.fastpath.sandboxes
        sandbox = replace(sandbox, workload="u" * 1000)
        own = replace(config.fastpath, sandboxes=(sandbox,))
        with pytest.raises(FastpathError, match="too long for ZDS"):
            run(replace(config, fastpath=own), lambda _: None)


# Istio's own


def snapshots(log):
    """How often it had all pods."""
    return log.read_text().count("received snapshot sent")


def has_snapshots(log, count):
    return snapshots(log) == count


@pytest.mark.ztunnel
@pytest.mark.parametrize("socks5", [None, SOCKS5], ids=["redirect", "socks5"])
def test_istios_ztunnel_serves_a_sandbox_without_kubernetes(
    request, tmp_path, spaces, socks5
):
    pod_space, server_space = spaces
    binary = request.config.getoption("--ztunnel")
    more = {"UNSTABLE_ENABLE_SOCKS5": "true"} if socks5 else {}
    config = only_ipv4(handed(tmp_path, socks5=socks5, pod1=pod_space.path))

    def play(ztunnel):
        with (
            istios_ztunnel(binary, tmp_path, tmp_path / "zds", **more) as log,
            Echo(server_space, SERVER) as echo,
            guest_of(ztunnel, "pod1") as guest,
        ):
            wait_until(lambda: snapshots(log))
            for _ in range(3):  # all but the first by a route
                conn = guest.echoes(guest.connect(echo.address))
                conn.shutdown(Shutdown.SEND)
                assert conn.receive_bytes(3) == b"bye"
                conn.expect(Op.SHUTDOWN)
            line = access_line(log, r"access\s+connection complete")
            assert f"src.addr={POD4}:" in line
            assert 'src.workload="pod1"' in line
            assert f"dst.addr={SERVER}:{echo.address[1]}" in line
            assert 'direction="outbound"' in line
            assert "bytes_sent=4 bytes_recv=7" in line

    run(config, play)


@pytest.mark.ztunnel
def test_a_client_comes_by_istios_ztunnel(request, tmp_path, spaces):
    pod_space, server_space = spaces
    binary = request.config.getoption("--ztunnel")

    def play(ztunnel):
        with (
            istios_ztunnel(binary, tmp_path, tmp_path / "zds") as log,
            guest_of(ztunnel, "pod1") as guest,
        ):
            wait_until(lambda: snapshots(log))
            guest.control.send(struct.pack("<HH", 16, len(LISTEN)) + LISTEN)
            guest.control.receive()
            with server_space.socket() as client:
                client.settimeout(LIMIT_S)
                client.bind((GATEWAY, 0))
                client.connect((POD4, PUBLISHED))
                ports, _, _, address = struct.unpack(
                    "<IHH16s", guest.control.receive()[1]
                )
                assert address[:4] == ip_address(GATEWAY).packed
                guest.control.send(struct.pack("<HHI", 20, 4, ports))
                conn = guest.guest.accept()
                conn.send(b"hello")
                assert client.recv(5) == b"hello"
            conn.shutdown(Shutdown.SEND | Shutdown.RECEIVE)
            line = access_line(log, rf"dst.addr={POD4}:{PUBLISHED}")
            assert 'direction="inbound"' in line

    run(only_ipv4(handed(tmp_path, pod1=pod_space.path)), play)


@pytest.mark.ztunnel
def test_istios_ztunnel_comes_back_to_us_and_we_to_it(request, tmp_path, spaces):
    pod_space, server_space = spaces
    binary = request.config.getoption("--ztunnel")
    config = only_ipv4(handed(tmp_path, pod1=pod_space.path))

    def play(ztunnel):
        with guest_of(ztunnel, "pod1") as guest:
            assert guest.refused(echo.address) == errno.ECONNREFUSED  # there is none
            for number in (1, 2):  # each a new process
                with istios_ztunnel(binary, tmp_path, tmp_path / "zds") as log:
                    wait_until(functools.partial(has_snapshots, log, number))
                    guest.echoes(guest.connect(echo.address))

    def play_again(ztunnel):
        wait_until(lambda: snapshots(log) == 4)
        with guest_of(ztunnel, "pod1") as guest:
            guest.echoes(guest.connect(echo.address))

    with Echo(server_space, SERVER) as echo:
        run(config, play)
        with istios_ztunnel(binary, tmp_path, tmp_path / "zds") as log:
            run(config, lambda _: wait_until(lambda: snapshots(log) == 3))
            run(config, play_again)


@pytest.mark.ztunnel
def test_a_namespace_that_goes_away_is_taken_back_from_istios_ztunnel(
    request, tmp_path, spaces
):
    pod_space, _ = spaces
    binary = request.config.getoption("--ztunnel")

    def play(ztunnel):
        with istios_ztunnel(binary, tmp_path, tmp_path / "zds", CONFIG) as log:
            wait_until(lambda: snapshots(log))
            pod_space.close()
            wait_until(lambda: "pod delete request" in log.read_text())

    run(only_ipv4(handed(tmp_path, pod1=pod_space.path)), play)
