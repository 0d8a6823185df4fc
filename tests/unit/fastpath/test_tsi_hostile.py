"""A guest that speaks the control protocol by itself, and means no good.

Against the whole process with the real engine. Sandbox `a` is the hostile one, `b` a
bystander: whatever `a` does, `b` has to work.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading

import pytest

from fastpath import throttle
from fastpath.tsi import service
from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from tests.support.clock import Stopped
from tests.support.limits import wait_until
from vhost_user.engine import EventKind
from vhost_user.vsock.packet import Op

from .tsi_guest import (
    ECHO,
    TIMEOUT_S,
    Guest,
    Stream,
    config,
    hello,
    message,
    route,
    run,
    sample,
)

TOKEN = 0x10_0000
MALFORMED, VERSION, UNEXPECTED, LIMIT = 1, 2, 3, 4
SERVER = Egress(allow=(Rule.parse("127.0.0.0/8"), Rule.parse("0.0.0.0/0")))


def play(tmp_path, work, **options):
    """Run `work(ztunnel, a, b)`; `b` has to be unharmed. Return the access log."""

    def both(ztunnel):
        a_box, b_box = ztunnel.config.fastpath.sandboxes
        with Guest(a_box) as a, Guest(b_box) as b:
            live = b.echoes()
            work(ztunnel, a, b)
            b.echoes(live)
            b.echoes()
            stats = ztunnel.sandboxes["b"].service.stats()
            assert (stats.streams, stats.refused, stats.ignored) == (1, 0, 0)

    return run(config(tmp_path, **options), both)


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(TIMEOUT_S)
        yield sock


def mapped(host):
    """A ROUTE to an IPv4 address in IPv6 form, which the protocol does not have."""
    packed = bytes(10) + b"\xff\xff" + socket.inet_aton(host)
    return message(4, struct.pack("<IHH", TOKEN, 6, 80) + packed)


BAD = {
    "a-type-of-the-hosts": (hello() + message(2, bytes(40)), UNEXPECTED, "type 2"),
    "failed": (hello() + message(5, bytes(12)), UNEXPECTED, "type 5"),
    "type-0": (message(0, b""), UNEXPECTED, "type 0"),
    "an-unknown-type": (hello() + message(65535, b""), UNEXPECTED, "type 65535"),
    "a-type-of-no-version": (hello() + message(63, bytes(8)), UNEXPECTED, "type 63"),
    "http": (b"GET / HTTP/1.1\r\n\r\n", UNEXPECTED, "message type"),
    "a-long-hello": (message(1, bytes(9)), MALFORMED, "HELLO: 9 bytes, need 8"),
    "a-short-route": (hello() + message(4, bytes(23)), MALFORMED, "ROUTE: 23 bytes"),
    "a-huge-length": (
        hello() + message(4, b"", size=65535),
        MALFORMED,
        "ROUTE: 65535 bytes, need 24",
    ),
    "magic": (hello(magic=1), MALFORMED, "magic is 0x1"),
    "versions-upside-down": (hello(3, 2), MALFORMED, "versions 3 to 2"),
    "a-future-version": (hello(2, 9), VERSION, "versions 2 to 9, not 1"),
    "version-0": (hello(0, 0), VERSION, "versions 0 to 0, not 1"),
    "two-hellos": (hello() + hello(), UNEXPECTED, "a second HELLO"),
    "no-hello": (route(TOKEN, ECHO), UNEXPECTED, "ROUTE before HELLO"),
    "no-token": (hello() + route(0xFFFF, ECHO), MALFORMED, "65535 is no token"),
    "family": (hello() + route(TOKEN, ECHO, family=5), MALFORMED, "family 5"),
    "ipv6-as-ipv4": (hello() + route(TOKEN, ("fd00::1", 1), 4), MALFORMED, "family 4"),
    "v4-mapped": (hello() + mapped("127.0.0.1"), MALFORMED, "family 6"),
}


@pytest.mark.parametrize(("data", "code", "text"), BAD.values(), ids=BAD)
def test_what_breaks_the_protocol_is_refused_with_a_reason(tmp_path, data, code, text):
    def work(ztunnel, a, b):
        stream = Stream(a.guest)
        stream.send(data)
        if data.startswith(hello()):
            assert stream.receive()[0] == 2
        given, why = stream.refused()
        assert (given, text in why) == (code, True)
        assert len(why) <= 200
        a.echoes()  # its other stream is another matter

    play(tmp_path, work)


def test_messages_may_come_in_any_pieces(tmp_path):
    def work(ztunnel, a, b):
        stream = Stream(a.guest)
        for byte in hello():
            stream.send(bytes([byte]))
        _, payload = stream.receive()
        (token,) = struct.unpack_from("<I", payload, 4)
        for byte in route(token, ECHO):
            stream.send(bytes([byte]))
        conn = a.guest.connect(token)
        a.echoes(conn)

    play(tmp_path, work)


def test_what_precedes_a_bad_message_counts(tmp_path):
    def work(ztunnel, a, b):
        stream = Stream(a.guest)
        token = stream.greet()
        stream.send(route(token, ECHO) + message(99, b"") + route(token + 1, ECHO))
        stream.refused()
        a.echoes(a.guest.connect(token))
        a.guest.request(token + 1).expect(Op.RST)

    play(tmp_path, work)


def test_tokens_it_does_not_own_are_ignored(tmp_path):
    def work(ztunnel, a, b):
        stream = Stream(a.guest)
        first = stream.greet()
        for token in (a.token, first - 1, first + (1 << 20), 0x10000, 0xFFFFFFFF):
            stream.send(route(token, ("192.0.2.1", 1)))
        stream.send(route(first + 5, ECHO) + route(first + 4, ECHO))
        a.echoes(a.guest.connect(first + 5))
        a.guest.request(first + 4).expect(Op.RST)  # not above the last
        assert ztunnel.sandboxes["a"].service.stats().ignored == 6
        a.echoes()

    play(tmp_path, work)


def test_tokens_of_another_vm_mean_nothing(tmp_path, monkeypatch):
    def work(ztunnel, a, b):
        assert a.token == b.token - 1  # the same numbers, and `b` has used one
        a.guest.request(a.token).expect(Op.RST)
        assert a.failed() == errno.ESTALE

    monkeypatch.setattr(service, "HOLD_S", 0.1)
    play(tmp_path, work)


BEYOND = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "169.254.169.254",
    "255.255.255.255",
    "::1",
    "::",
    "64:ff9b::7f00:1",
    "fe80::1",
]


@pytest.mark.parametrize("host", BEYOND)
def test_no_socket_of_the_host_is_beyond_the_policy(tmp_path, server, host):
    port = server.getsockname()[1]

    def work(ztunnel, a, b):
        assert a.refused((host, port)) == errno.ECONNREFUSED
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        assert ztunnel.device_stats()["a"].opened == 1  # its control stream

    (denied,) = [line for line in play(tmp_path, work) if "sa/a" in line]
    assert "connection failed" in denied


def test_other_ports_of_the_host_lead_nowhere(tmp_path):
    def work(ztunnel, a, b):
        for port in (0, 1, 1024, 21586, 21589, 0xFFFF, 1 << 30, 0xFFFFFFFF):
            a.guest.request(port).expect(Op.RST)

    play(tmp_path, work)


# ---- identity ----


def test_a_guest_cannot_name_another_cid(tmp_path):
    def work(ztunnel, a, b):
        before = ztunnel.device_stats()["b"]
        header = a.guest.header(Op.REQUEST, 5000, 21587, src_cid=b.guest.cid)
        a.guest.send(header)
        a.echoes()
        stats = ztunnel.device_stats()
        assert stats["a"].bad_packets == 1
        assert stats["b"].opened == before.opened
        assert stats["b"].failed == before.failed

    play(tmp_path, work)


def test_what_a_guest_writes_changes_no_identity(tmp_path, server):
    """Neither headers that proxies believe nor anything on the control stream."""
    claims = (
        b"PROXY TCP4 10.0.0.3 10.0.0.9 1 80\r\n"
        b"CONNECT 10.0.0.9:80 HTTP/1.1\r\nBaggage: k8s.namespace.name=kube-system\r\n"
        b"X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/default/sa/b\r\n\r\n"
    )
    there = server.getsockname()

    def work(ztunnel, a, b):
        Stream(a.guest).send(hello() + message(6, b"spiffe://cluster.local/sa/b"))
        conn = a.connect(there)
        conn.send(claims)
        with server.accept()[0] as client:
            client.settimeout(TIMEOUT_S)
            assert client.recv(4096) == claims  # bytes like any others
        conn.expect(Op.SHUTDOWN, Op.RST)
        conn.say(Op.RST)
        assert a.refused(("169.254.169.254", 80)) == errno.ECONNREFUSED

    lines = play(tmp_path, work, egress=SERVER)
    ours = [line for line in lines if "198.18.0.1" not in line]
    assert len(ours) == 2
    for line in ours:
        assert "src.addr=10.0.0.2:" in line
        assert 'src.identity="spiffe://cluster.local/ns/default/sa/a"' in line


def test_each_sandbox_has_its_own_policy_whatever_the_guests_say(tmp_path, server):
    there = server.getsockname()

    def work(ztunnel, a, b):
        a.connect(there)
        server.accept()[0].close()
        assert b.refused(there) == errno.ECONNREFUSED
        denied = "fastpath_denied_total"
        wait_until(lambda: sample(ztunnel, denied, sandbox="b", reason="loopback"))
        assert not sample(ztunnel, denied, sandbox="a", reason="loopback")

    play(tmp_path, work, egress=SERVER)


# ---- floods ----


def test_streams_are_bounded_and_the_log_of_them_too(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(service, "MAX_STREAMS", 4)
    monkeypatch.setattr(throttle, "time", Stopped)
    monkeypatch.setattr(throttle, "TELL_S", TIMEOUT_S)

    def work(ztunnel, a, b):
        streams = [Stream(a.guest) for _ in range(3)]
        for stream in streams:
            stream.greet()
        for i in range(200):
            code, _ = Stream(a.guest).refused()
            assert code == LIMIT
            if i % 50 == 0:
                b.echoes()
        stats = ztunnel.sandboxes["a"].service.stats()
        assert (stats.streams, stats.refused) == (4, 200)
        a.echoes()

    play(tmp_path, work)
    lines = [r for r in caplog.records if "an agent too many" in r.getMessage()]
    assert len(lines) == throttle.BURST
    assert f"a: {200 - len(lines)} more lines about agents" in caplog.text


def test_streams_that_come_and_go_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "RANGE_REST_S", 0.05)

    def work(ztunnel, a, b):
        for _ in range(50):
            stream = Stream(a.guest)
            token = stream.greet()
            stream.send(route(token, ECHO))
            a.echoes(a.guest.connect(token)).say(Op.RST)
            stream.send(b"\xff" * 4)
            stream.refused()
        there = ztunnel.sandboxes["a"].service
        wait_until(lambda: not there.stats().tokens and len(there._agents) <= 1)
        assert not there._routed
        a.echoes()

    play(tmp_path, work)


def test_requests_for_tokens_to_come_are_held_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "MAX_HELD", 10)
    monkeypatch.setattr(service, "HOLD_S", 0.2)

    def work(ztunnel, a, b):
        conns = [a.guest.request(a.token + 5 + i) for i in range(50)]
        b.echoes()
        for conn in conns:
            conn.expect(Op.RST)
        stats = ztunnel.sandboxes["a"].service.stats()
        assert (stats.held, stats.unknown) == (0, 50)
        a.echoes()

    play(tmp_path, work)


def test_a_flood_of_routes_is_read_at_its_pace_while_others_go_on(tmp_path):
    def work(ztunnel, a, b):
        there = ztunnel.sandboxes["a"].service
        for i in range(12):
            flood = b"".join(
                route(a.token + 1024 * i + j, ("192.0.2.1", 1)) for j in range(1024)
            )
            a.control.conn.send(flood)
            b.echoes()
        assert there.stats().tokens <= 12 * 1024

    play(tmp_path, work)


def test_a_flood_of_events_does_not_delay_another_vms(tmp_path, monkeypatch):
    """While Python is busy, 500 requests of `a` queue up, then one of `b`."""
    order = []
    handle = service.TsiService.handle_event

    def record(self, event):
        if event.kind is EventKind.REQUEST:
            order.append(self._name)
        handle(self, event)

    monkeypatch.setattr(service.TsiService, "handle_event", record)

    def work(ztunnel, a, b):
        busy, go_on = threading.Event(), threading.Event()

        def block():
            busy.set()
            assert go_on.wait(TIMEOUT_S)

        loop = ztunnel.sandboxes["a"].service._pace._loop
        loop.call_soon_threadsafe(block)
        assert busy.wait(TIMEOUT_S)
        order.clear()
        flood = [a.guest.request(0x7FFF_0000) for _ in range(500)]
        wait_until(lambda: ztunnel.device_stats()["a"].conns >= 500)
        before = ztunnel.device_stats()["b"].conns
        late = b.guest.request(0x7FFF_0000)
        wait_until(lambda: ztunnel.device_stats()["b"].conns != before)
        go_on.set()
        for conn in flood:
            conn.expect(Op.RST)
        late.expect(Op.RST)
        assert order.index("b") < 40

    play(tmp_path, work)


def test_a_guest_that_reads_no_answer_loses_its_own_only(tmp_path):
    def work(ztunnel, a, b):
        for _ in range(300):
            a.request(("169.254.169.254", 80)).expect(Op.RST)
        assert b.refused(("169.254.169.254", 80)) == errno.ECONNREFUSED
        assert a.failed() == errno.ECONNREFUSED

    play(tmp_path, work)


def test_a_denied_destination_becomes_no_route_of_the_engine(tmp_path):
    def work(ztunnel, a, b):
        for _ in range(3):
            assert a.refused(("127.0.0.1", 22)) == errno.ECONNREFUSED
        assert not ztunnel.sandboxes["a"].service._routed

    play(tmp_path, work)
