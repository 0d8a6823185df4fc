"""Hand-off `pod`: what ends and comes back, namespaces and the processes in them."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import struct
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from fastpath.datapath.netns import Namespace
from fastpath.handoff import control
from fastpath.handoff.namespace import State
from tests.netns.pod_world import (
    DATAGRAM_PORT,
    LISTEN,
    SERVER4,
    SERVER6,
    Echo,
    is_over,
    makers,
    pod,
    sandbox,
    sandboxes,
)
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath.tsi_guest import message, run
from vhost_user.vsock.packet import Op

pytestmark = pytest.mark.netns


@pytest.fixture
def namespace():
    with pod() as there:
        yield there


def test_a_namespace_that_goes_away_ends_its_connections(tmp_path, namespace, caplog):
    there = sandboxes(tmp_path, box=namespace.path, same=namespace.path)
    with Echo(namespace) as echo:

        def play(ztunnel):
            (pid,) = makers(ztunnel)
            with sandbox(ztunnel) as guest, sandbox(ztunnel, "same") as same:
                conns = [
                    each.echoes(each.connect(echo.address)) for each in (guest, same)
                ]
                namespace.close()
                for each, conn in zip((guest, same), conns, strict=True):
                    conn.expect(Op.RST)
                    assert each.refused(echo.address) == errno.ENETUNREACH
                    assert each.refused((SERVER6, 1)) == errno.ENETUNREACH
                    assert each.refused(("10.96.0.10", 53)) == errno.ENETUNREACH
            wait_until(lambda: is_over(pid))

        lines = run(there, play)
    gone = [r.getMessage() for r in caplog.records if "is gone: conn" in r.getMessage()]
    assert len(gone) == 1
    assert gone[0].endswith(
        "is gone: connections of box, same end, and no more are made"
    )
    assert sum("ended: " in line and "is gone" in line for line in lines) == 2


def test_a_namespace_that_goes_away_closes_its_listeners(tmp_path, namespace):
    there = sandboxes(tmp_path, box=namespace.path)

    def play(ztunnel):
        (pid,) = makers(ztunnel)
        with sandbox(ztunnel) as guest:
            guest.control.send(struct.pack("<HH", 16, len(LISTEN)) + LISTEN)
            guest.control.receive()
            assert ztunnel.tsi_stats()["box"].listeners == 1
            namespace.close()
            wait_until(lambda: not ztunnel.tsi_stats()["box"].listeners)
            wait_until(lambda: is_over(pid))

    run(there, play)


def test_a_process_that_dies_is_replaced(tmp_path, namespace):
    there = sandboxes(tmp_path, box=namespace.path)
    with Echo(namespace) as echo:

        def play(ztunnel):
            with sandbox(ztunnel) as guest:
                (pid,) = makers(ztunnel)
                os.kill(pid, signal.SIGKILL)
                conn = guest.request(echo.address)  # waits for the next one
                conn.expect(Op.RESPONSE)
                guest.echoes(conn)
                assert makers(ztunnel) != [pid]

        run(there, play)


def test_a_process_that_is_stopped_is_replaced_and_dials_wait_for_that(
    tmp_path, namespace, monkeypatch, caplog
):
    monkeypatch.setattr(control, "TICK_S", 0.3)
    there = sandboxes(tmp_path, box=namespace.path)
    with Echo(namespace) as echo:

        def play(ztunnel):
            (pid,) = makers(ztunnel)
            os.kill(pid, signal.SIGSTOP)
            with sandbox(ztunnel) as guest:
                conns = [guest.request(echo.address) for _ in range(50)]
                wait_until(lambda: is_over(pid))
                monkeypatch.setattr(control, "TICK_S", LIMIT_S)  # the next may be slow
                for conn in conns:
                    conn.expect(Op.RESPONSE)
                    guest.echoes(conn)

        run(there, play)
    (line,) = [r.getMessage() for r in caplog.records if "is lost" in r.getMessage()]
    assert "(it is silent)" in line


def test_a_process_that_says_nonsense_to_the_engine_is_replaced(
    tmp_path, namespace, caplog
):
    there = sandboxes(tmp_path, box=namespace.path)
    with Echo(namespace) as echo:

        def play(ztunnel):
            (pid,) = makers(ztunnel)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            (box,) = ztunnel._pods._pods.values()
            with sandbox(ztunnel) as guest, ours:
                box._handle.renew(theirs)  # what the process says is ours now
                conn = guest.request(echo.address)
                assert ours.recv(100)
                ours.send(b"?")
                conn.expect(Op.RST)
                guest.echoes(guest.connect(echo.address))  # waits for the next one
            assert is_over(pid)

        run(there, play)
    (line,) = [r.getMessage() for r in caplog.records if "is lost" in r.getMessage()]
    assert "(it says nonsense)" in line


def test_a_process_that_may_not_send_sockets_says_so_and_goes_on(tmp_path, namespace):
    """Its user has more under way than its limit allows, which the kernel refuses."""
    there = sandboxes(tmp_path, box=namespace.path)
    with Echo(namespace) as echo:

        def play(ztunnel):
            (pid,) = makers(ztunnel)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (16, 16))
            near, far = socket.socketpair()
            with sandbox(ztunnel) as guest, near, far:
                socket.send_fds(near, [b"x"], [near.fileno()] * 40)
                assert guest.refused(echo.address) == errno.ETOOMANYREFS
                far.close()
                guest.echoes(guest.connect(echo.address))
            assert makers(ztunnel) == [pid]

        run(there, play)


def test_a_process_that_is_stopped_stalls_no_other_sandbox(tmp_path, namespace):
    """Its sandbox asks for more than there is: datagrams, listeners, names."""
    with pod() as second, Echo(second) as echo:
        there = sandboxes(tmp_path, box=namespace.path, other=second.path)

        def play(ztunnel):
            os.kill(makers(ztunnel)[0], signal.SIGSTOP)
            with sandbox(ztunnel) as guest, sandbox(ztunnel, "other") as other:
                conn = greet_datagrams(guest, (SERVER4, 7))
                for port in range(4001, 4101):
                    flow = struct.pack("<HHI", port, 0, 0)
                    conn.send(message(35, flow + b"x"))
                for _ in range(3):
                    guest.control.send(struct.pack("<HH", 16, len(LISTEN)) + LISTEN)
                    guest.connect(("10.96.0.10", 53)).send(b"\0\1x")
                other.echoes(other.connect(echo.address))
                wait_until(lambda: ztunnel.datagram_stats()["box"].no_socket >= 90)
                other.echoes(other.connect(echo.address))

        run(there, play)


def greet_datagrams(guest, peer):
    """A datagram stream, whose number 0 is a peer."""
    conn = guest.guest.connect_privileged(DATAGRAM_PORT)
    conn.send(message(1, struct.pack("<IHH", 0x41495354, 1, 1)))
    conn.receive()
    ip = ip_address(peer[0])
    head = struct.pack("<IHH", 0, ip.version, peer[1])
    conn.send(message(33, head + ip.packed.ljust(16, b"\0")))
    conn.receive()
    return conn


def test_what_could_not_listen_listens_when_there_is_another_process(
    tmp_path, namespace, monkeypatch
):
    monkeypatch.setattr("fastpath.handoff.namespace.RESTART_S", 3.0)
    there = sandboxes(tmp_path, box=namespace.path)
    policy = there.fastpath.sandboxes[0].policy
    published = policy.read_text()
    policy.write_text("udp: true\n")

    def play(ztunnel):
        (space,) = ztunnel._pods._namespaces.values()
        with sandbox(ztunnel) as guest:
            guest.control.send(struct.pack("<HH", 16, len(LISTEN)) + LISTEN)
            guest.control.receive()
            os.kill(space.pid, signal.SIGKILL)
            wait_until(lambda: space.state is State.LOST)
            policy.write_text(published)
            wait_until(lambda: ztunnel.sandboxes["box"].service.policy.published.ranges)
            wait_until(lambda: ztunnel.tsi_stats()["box"].listeners == 1)
            assert space.state is State.RUNNING

    run(there, play)


def test_a_path_that_comes_to_name_another_namespace_is_another_pods(
    tmp_path, namespace, caplog
):
    path = tmp_path / "pod"
    path.symlink_to(namespace.path)
    there = sandboxes(tmp_path, box=path)
    with pod() as second, Echo(namespace) as old, Echo(second) as new:

        def play(ztunnel):
            with sandbox(ztunnel) as guest:
                conn = guest.echoes(guest.connect(old.address))
                step = path.with_name("step")
                step.symlink_to(second.path)
                step.replace(path)
                conn.expect(Op.RST)
                for address in (old.address, new.address):
                    assert guest.refused(address) == errno.ENETUNREACH

        run(there, play)
        assert new.peers == []
    assert len([r for r in caplog.records if "is gone: conn" in r.getMessage()]) == 1


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_namespace_is_over_with_the_process_that_its_path_names(
    tmp_path, namespace, reaped
):
    program = subprocess.Popen(namespace.command(["sleep", "100000"]))
    inside = Path(f"/proc/{program.pid}/ns/net")
    wait_until(lambda: inside.stat().st_ino == Path(namespace.path).stat().st_ino)
    there = sandboxes(tmp_path, box=inside)
    with Echo(namespace) as echo:

        def play(ztunnel):
            (pid,) = makers(ztunnel)
            with sandbox(ztunnel) as guest:
                conn = guest.echoes(guest.connect(echo.address))
                program.kill()
                if reaped:
                    program.wait()
                conn.expect(Op.RST)
                assert guest.refused(echo.address) == errno.ENETUNREACH
            wait_until(lambda: is_over(pid))

        run(there, play)
    program.wait()


def test_a_namespace_that_goes_away_under_load_ends_all_that_is_there(
    tmp_path, namespace, caplog
):
    """Established, connecting, and not yet asked for; another sandbox goes on."""
    namespace.run(os.system, "iptables -A OUTPUT -p tcp --syn --dport 9 -j DROP")
    with pod() as second, Echo(namespace) as echo, Echo(second) as other_echo:
        there = sandboxes(tmp_path, box=namespace.path, other=second.path)

        def play(ztunnel):
            with sandbox(ztunnel) as guest, sandbox(ztunnel, "other") as other:
                live = [guest.request(echo.address) for _ in range(300)]
                for conn in live:
                    conn.expect(Op.RESPONSE)
                dialling = [guest.request((SERVER4, 9)) for _ in range(200)]
                stays = other.echoes(other.connect(other_echo.address))
                namespace.close()
                for conn in (*live, *dialling):
                    conn.expect(Op.RST)
                errors = {guest.failed() for _ in dialling}
                assert errors == {errno.ENETUNREACH}  # at once, no time-out
                assert guest.refused((SERVER6, 9)) == errno.ENETUNREACH
                other.echoes(stays)
                wait_until(lambda: ztunnel.stats()[0].conns <= 6)

        lines = run(there, play)
    assert len([r for r in caplog.records if "is gone: conn" in r.getMessage()]) == 1
    assert sum("is gone" in line for line in lines) >= 300


def test_many_namespaces_are_entered_at_once(tmp_path):
    with contextlib.ExitStack() as stack:
        spaces = [stack.enter_context(Namespace()) for _ in range(48)]
        paths = {f"box{i}": space.path for i, space in enumerate(spaces)}
        there = sandboxes(tmp_path, **paths)

        def play(ztunnel):
            for pid, space in zip(makers(ztunnel), spaces, strict=True):
                inside = Path(f"/proc/{pid}/ns/net").stat().st_ino
                assert inside == os.fstat(space.fileno()).st_ino

        run(there, play)


def test_many_sandboxes_share_few_namespaces(tmp_path):
    spaces = [pod() for _ in range(3)]
    there = sandboxes(
        tmp_path, **{f"box{i}": spaces[i % 3].path for i in (0, 1, 2, 3, 4, 5)}
    )
    for space in spaces:
        for last in range(5, 12):
            space.run(
                os.system,
                f"ip addr add 10.0.0.{last}/32 dev lo 2>/dev/null",
            )
    echoes = [Echo(space, port=7777) for space in spaces]

    def play(ztunnel):
        assert len(makers(ztunnel)) == 3
        guests = [sandbox(ztunnel, f"box{i}") for i in range(6)]
        for guest in guests:
            guest.echoes(guest.connect((SERVER4, 7777)))
        for guest in guests:
            guest.guest.close()

    run(there, play)
    for index, echo in enumerate(echoes):
        assert set(echo.peers) == {f"10.0.0.{5 + index}", f"10.0.0.{8 + index}"}
        echo.__exit__()
    for space in spaces:
        space.close()


def test_the_process_has_nothing_that_it_does_not_need(tmp_path, namespace):
    there = sandboxes(tmp_path, box=namespace.path)

    def play(ztunnel):
        (pid,) = makers(ztunnel)
        folder = Path(f"/proc/{pid}")
        links = {
            str(it.readlink()).partition(":")[0] for it in (folder / "fd").iterdir()
        }
        assert links == {"/dev/null", "socket", "anon_inode"}  # epoll's
        status = dict(
            line.split(":\t", 1)
            for line in (folder / "status").read_text().splitlines()
        )
        for name in ("CapEff", "CapPrm", "CapInh"):
            assert int(status[name], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert (folder / "environ").read_bytes() == b""
        inside = (folder / "ns/net").stat().st_ino
        assert inside == Path(namespace.path).stat().st_ino

    run(there, play)
