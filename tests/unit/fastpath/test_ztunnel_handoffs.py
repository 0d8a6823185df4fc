"""Hand-offs of a sandbox: what its configuration says, and where connections go."""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fastpath.errors import FastpathError
from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel import config as configuration
from fastpath.ztunnel.model import (
    Handoff,
    HealthStatus,
    ListenAddress,
    NetworkAddress,
    Protocol,
    Service,
    Workload,
)
from fastpath.ztunnel.process import Ztunnel
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath.handoff_world import (
    POD,
    SIGNATURE,
    HeaderReader,
    Socks5,
    handed,
)
from tests.unit.fastpath.tsi_guest import ECHO, Guest, run
from vhost_user.vsock.packet import Op, Shutdown

THERE, THERE6 = ("192.0.2.7", 8080), ("2001:db8::7", 8080)
IDENTITY = b"spiffe://cluster.local/ns/default/sa/a"
AT = ListenAddress(ip_address("127.0.0.1"), 15080)
KINDS = pytest.mark.parametrize("kind", [HeaderReader, Socks5], ids=["unix", "socks5"])


def play_in(there, play, name="a"):
    """Play the guest of a sandbox; return the access log."""

    def with_guest(ztunnel):
        sandboxes = ztunnel.config.fastpath.sandboxes
        with Guest(next(it for it in sandboxes if it.name == name)) as guest:
            play(guest)

    return run(there, with_guest)


def test_a_unix_proxy_hears_of_each_connection_by_itself(tmp_path):
    """The second and third go by a route: Python isn't asked."""
    ports = []

    def play(guest):
        for _ in range(3):
            conn = guest.echoes(guest.connect(THERE))
            ports.append(conn.guest_port & 0xFFFF)
            conn.shutdown(Shutdown.SEND | Shutdown.RECEIVE)
            conn.expect(Op.RST)

    with HeaderReader(tmp_path) as proxy:
        lines = play_in(handed(tmp_path, proxy.handoff), play)
    assert len(set(ports)) == 3
    assert proxy.said == [[(POD, port), THERE, {0xD0: IDENTITY}] for port in ports]
    for line, port in zip(lines, ports, strict=True):
        assert f"src.addr={POD}:{port} " in line
        assert f"dst.addr={THERE[0]}:{THERE[1]} " in line
        assert "connection complete" in line


@KINDS
def test_half_close_stays(tmp_path, kind):
    def play(guest):
        conn = guest.connect(THERE)
        conn.send(b"ping")
        conn.shutdown(Shutdown.SEND)
        assert conn.receive_bytes(4) == b"ping"
        conn.expect(Op.SHUTDOWN)

    with kind(tmp_path) as proxy:
        play_in(handed(tmp_path, proxy.handoff), play)
        assert len(proxy.said) == 1


@pytest.mark.parametrize("there", [THERE, THERE6], ids=["ipv4", "ipv6"])
def test_a_socks5_proxy_is_asked_for_what_the_program_asked_for(tmp_path, there):
    def play(guest):
        for _ in range(2):
            guest.echoes(guest.connect(there))

    with Socks5() as proxy:
        play_in(handed(tmp_path, proxy.handoff), play)
    assert proxy.said == [there] * 2


def test_a_refusal_of_the_proxy_is_what_connect_fails_with(tmp_path):
    with Socks5(reply=4) as proxy:

        def play(guest):
            for _ in range(2):
                assert guest.refused(THERE) == errno.EHOSTUNREACH

        lines = play_in(handed(tmp_path, proxy.handoff), play)
    for line in lines:
        assert f"hand-off to socks5 127.0.0.1:{proxy.address[1]}: No route" in line


def test_a_proxy_that_is_not_there_refuses_until_it_is(tmp_path):
    there = handed(tmp_path, Handoff(unix=tmp_path / "proxy"))

    def play(guest):
        assert guest.refused(THERE) == errno.ECONNREFUSED
        with HeaderReader(tmp_path):
            guest.echoes(guest.connect(THERE)).shutdown(3)

    first, second = play_in(there, play)
    assert f"hand-off to {tmp_path}/proxy: Connection refused" in first
    assert "connection complete" in second
    assert "hand-off" not in second


def test_a_unix_listener_that_is_full_is_dialled_again(tmp_path):
    with contextlib.ExitStack() as stack:
        listener, *others = (stack.enter_context(unix_socket()) for _ in range(4))
        listener.bind(str(tmp_path / "proxy"))
        listener.listen(0)
        listener.settimeout(LIMIT_S)
        for other in others:
            other.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                other.connect(str(tmp_path / "proxy"))

        def play(ztunnel):
            (first, _) = ztunnel.config.fastpath.sandboxes
            with Guest(first) as guest:
                conn = guest.request(THERE)
                wait_until(lambda: ztunnel.device_stats()["a"].backlog_full)
                stack.enter_context(listener.accept()[0])
                conn.expect(Op.RESPONSE)
                ours = stack.enter_context(listener.accept()[0])
                assert ours.recv(13) == SIGNATURE + b"\x21"

        run(handed(tmp_path, Handoff(unix=tmp_path / "proxy")), play)


def unix_socket():
    return socket.socket(socket.AF_UNIX)


def test_a_destination_of_a_version_that_the_pod_lacks_is_unreachable_by_header(
    tmp_path,
):
    with HeaderReader(tmp_path) as proxy:

        def play(guest):
            assert guest.refused(THERE6) == errno.ENETUNREACH

        play_in(handed(tmp_path, proxy.handoff), play)


@KINDS
def test_the_policy_is_asked_first(tmp_path, kind):
    with kind(tmp_path) as proxy:
        egress = Egress(deny=(Rule.parse("192.0.2.0/24"),))

        def play(guest):
            for there in (THERE, ("127.0.0.1", 80), ("169.254.169.254", 80)):
                assert guest.refused(there) == errno.ECONNREFUSED
            guest.echoes(guest.connect(("198.51.100.1", 80)))
            guest.echoes()  # the echo address is this process's own

        play_in(handed(tmp_path, proxy.handoff, egress=egress), play)
        assert len(proxy.said) == 1


@KINDS
def test_other_sandboxes_are_not_handed_over(tmp_path, kind):
    with kind(tmp_path) as proxy:
        there = handed(tmp_path, proxy.handoff)
        play_in(there, lambda guest: guest.echoes(guest.connect(ECHO)), "b")
        assert not proxy.said


@KINDS
def test_a_service_and_hbone_are_the_other_proxys_business(tmp_path, kind):
    vip = ip_address("10.96.0.10")
    service = Service(
        name="web",
        namespace="default",
        hostname="web.default.svc.cluster.local",
        vips=(NetworkAddress("", vip),),
        ports={80: 8080},
    )
    meshed = Workload(
        workload_ips=(ip_address(THERE[0]),),
        namespace="default",
        name="meshed",
        protocol=Protocol.HBONE,
        status=HealthStatus.UNHEALTHY,
        services={service.key: {80: 8080}},
    )

    def play(guest):
        guest.echoes(guest.connect((str(vip), 80)))
        guest.echoes(guest.connect(THERE))

    with kind(tmp_path) as proxy:
        there = handed(tmp_path, proxy.handoff)
        workloads = (*there.workloads, meshed)
        there = replace(there, workloads=workloads, services=(service,))
        lines = play_in(there, play)
    heard = [it[1] if kind is HeaderReader else it for it in proxy.said]
    assert heard == [(str(vip), 80), THERE]
    for name in (
        'dst.service="web.default.svc.cluster.local"',
        'dst.workload="meshed"',
    ):
        assert sum(name in line for line in lines) == 1


@pytest.mark.parametrize(
    ("handoff", "key", "why"),
    [
        (Handoff(), "handoff", "names no proxy: unix, socks5, inpod or ring"),
        (Handoff(unix=Path("x"), inpod=Path("y")), "handoff", "names two proxies"),
        (Handoff(inpod=Path("x")), "handoff.inpod", "add netns"),
        (Handoff(inpod=Path("x" * 108)), "handoff.inpod", "longer than the 107"),
        (Handoff(unix=Path("x"), socks5=AT), "handoff", "names two proxies"),
        (Handoff(unix=Path("x"), ring=Path("y")), "handoff", "names two proxies"),
        (Handoff(ring=Path("x" * 108)), "handoff.ring", "longer than the 107"),
        (Handoff(unix=Path("x" * 108)), "handoff.unix", "longer than the 107 bytes"),
        (Handoff(socks5=replace(AT, port=0)), "handoff.socks5", "port 0 is none"),
    ],
)
def test_a_handoff_that_makes_no_sense_is_an_error_of_its_key(
    tmp_path, handoff, key, why
):
    with pytest.raises(FastpathError, match=why) as caught:
        Ztunnel(handed(tmp_path, handoff))
    assert f"fastpath.sandboxes[0].{key}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("{embedded: true}", 2, "embedded"),
        ("{socks5: localhost}", 2, "IP:PORT"),
        ("unix", 2, "mapping"),
    ],
)
def test_a_handoff_that_is_not_there_is_refused_with_its_line(
    tmp_path, text, line, why
):
    path = tmp_path / "z.yaml"
    path.write_text(
        "sandboxes:\n"
        f"- {{name: a, workload: d/p, socket: s, cid: 3, handoff: {text}}}\n"
    )
    with pytest.raises(FastpathError, match=rf"z.yaml:{line}:\d+: .*{why}"):
        configuration.load(path)
