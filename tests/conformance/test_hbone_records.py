"""Records of tunnels: what a peer may seal, and what ends the tunnel.

Spec: RFC 8446 sections 4.6, 5 and 6.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess

import h2.events
import pytest

from tests.conformance.peers import GoneError, Peer
from tests.conformance.records import NOT_REQUESTED, REQUESTED, UPDATE, Records
from tests.support import pki
from tests.support.tls13 import ALERT, CCS, DATA, HANDSHAKE
from vhost_user.engine import Echo
from vhost_user.hbone import Reason

UNEXPECTED, BAD_MAC, OVERFLOW, ILLEGAL, DECODE = 10, 20, 22, 47, 50
CLOSE_NOTIFY, USER_CANCELED, INTERNAL = 0, 90, 80
FULL = 1 << 14
PING = b"\0\0\x08\x06\0\0\0\0\0"
PONG = b"\0\0\x08\x06\1\0\0\0\0"


class Ends:
    """A tunnel whose peer makes its records by hand."""

    def __init__(self, mesh, *, server, hold=False):
        log = mesh.folder / "secrets"
        log.unlink(missing_ok=True)
        if server:
            self.ours = mesh.pool()
            self.sock = self.ours.client()
            raw = mesh.accept(self.ours.server)
            context = mesh.context(pki.DB, server=True)
        else:
            self.ours = mesh.gate()
            raw, context = mesh.dial(self.ours.address), mesh.context(pki.WEB)
        self.records = Records(raw, context, log, server=server, hold=hold)
        self.peer = Peer(self.records, client=not server)


@pytest.fixture
def gate(mesh):
    return Ends(mesh, server=False)


@pytest.fixture
def pool(mesh):
    return Ends(mesh, server=True)


@pytest.fixture(params=["gate", "pool"])
def either(request, mesh):
    return Ends(mesh, server=request.param == "pool")


# ---- what is good ----


def test_records_come_a_byte_at_a_time(either):
    records = either.records
    either.peer.fence()
    data = records.out.seal(PING + b"8 bytes." + b"\x17" + bytes(3))
    for at in range(len(data)):
        records.raw(data[at : at + 1])
    either.peer.until(h2.events.PingAckReceived)


def test_records_come_with_the_handshakes_last_bytes(mesh):
    for _ in range(5):
        gate = Ends(mesh, server=False, hold=True)
        gate.peer.fence()


def test_many_records_come_in_one_piece(either):
    records = either.records
    either.peer.fence()
    parts = [records.out.seal(bytes([byte]) + b"\x17") for byte in PING + b"8 bytes."]
    records.raw(b"".join(parts))
    either.peer.until(h2.events.PingAckReceived)


def test_megabytes_go_both_ways(mesh, gate):
    data = secrets.token_bytes(3 << 20)
    stream = gate.peer.connect()
    gate.ours.answer(gate.ours.asked(), Echo())
    assert gate.peer.status(stream) == "200"
    gate.peer.send(stream, data)
    assert gate.peer.read(stream, len(data)) == data


def test_padding_and_empty_records_are_left_out(either):
    either.peer.fence()
    for size in (1, 1000, FULL):
        either.records.say(DATA, b"", padding=size)
        either.records.say(DATA, PING, padding=size - len(PING) if size > 99 else 0)
        either.records.say(DATA, b"8 bytes.")
        either.peer.until(h2.events.PingAckReceived)


def test_a_key_update_that_asks_for_none_is_not_answered(either):
    either.peer.fence()
    for _ in range(40):
        either.records.update()
        either.peer.fence()
    assert not either.records.updates


def test_a_key_update_that_asks_for_one_is_answered_before_data(either):
    either.peer.fence()
    for _ in range(40):
        either.records.update(REQUESTED)
        either.peer.fence()
    assert either.records.updates == 40 * [NOT_REQUESTED]


def test_several_that_ask_are_answered_once(either):
    either.peer.fence()
    parts = []
    for _ in range(3):
        parts.append(either.records.out.seal(UPDATE + REQUESTED + b"\x16"))
        either.records.out = either.records.out.next()
    either.records.raw(b"".join(parts))
    either.peer.fence()
    assert either.records.updates == [NOT_REQUESTED]


def test_a_key_update_comes_in_parts(either):
    either.peer.fence()
    for byte in UPDATE + REQUESTED:
        either.records.say(HANDSHAKE, bytes([byte]))
    either.records.out = either.records.out.next()
    either.peer.fence()
    assert either.records.updates == [NOT_REQUESTED]


def test_data_is_sealed_with_the_next_key(gate):
    stream = gate.peer.connect()
    gate.ours.answer(gate.ours.asked(), Echo())
    assert gate.peer.status(stream) == "200"
    for _ in range(5):
        gate.records.update(REQUESTED)
        data = secrets.token_bytes(100_000)
        gate.peer.send(stream, data)
        assert gate.peer.read(stream, len(data)) == data
    assert 1 <= len(gate.records.updates) <= 5


SUITES = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"]


@pytest.mark.parametrize("suite", SUITES)
def test_openssl_asks_for_key_updates(mesh, suite):
    """The commands of s_client: `k` and `K`, of which the second one asks for ours."""
    gate = mesh.gate()
    mesh.context(pki.WEB)  # for its files
    host, port = gate.address
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-alpn", "h2"]
    command += ["-cert", "chain.pem", "-key", "key.pem", "-msg"]
    command += ["-ciphersuites", suite]
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    client = subprocess.Popen(
        command,
        cwd=mesh.folder,
        env=env,  # without a sanitizer's
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with client:
        assert client.stdin
        assert client.stdout
        into, out, said = client.stdin, client.stdout.fileno(), b""

        def wait(what, count=1):
            nonlocal said
            while said.count(what) < count:
                more = os.read(out, 1 << 16)
                assert more, said
                said += more

        def write(data):
            into.write(data)
            into.flush()

        wait(b"Finished", 2)
        write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5))
        wait(b"\0\0\0\4\1\0\0\0\0")  # SETTINGS, acknowledged
        assert suite.encode() in said
        for number, letter in enumerate((b"k", b"K", b"K", b"k")):
            write(letter + b"\n")
            wait(b">>> TLS 1.3, Handshake [length 0005], KeyUpdate", number + 1)
            write(PING + b"number %d" % number)
            wait(PONG + b"number %d" % number)
        assert said.count(b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate") == 2
        client.kill()


def test_tickets_are_left_out(pool):
    """RFC 8446 section 4.6.1; one is longer than a record."""
    pool.peer.fence()
    for size in (40, 200, 20000):
        ticket = b"\4" + size.to_bytes(3, "big") + bytes(size)
        for at in range(0, len(ticket), FULL):
            pool.records.say(HANDSHAKE, ticket[at : at + FULL])
        pool.records.say(HANDSHAKE, 3 * (b"\4\0\0\2xy"))
        pool.peer.fence()


def test_user_canceled_is_no_end(either):
    either.peer.fence()
    either.records.say(ALERT, bytes([1, USER_CANCELED]))
    either.peer.fence()


# ---- what ends a tunnel ----


def flipped(records):
    data = bytearray(records.out.seal(PING + b"8 bytes.\x17"))
    data[-1] ^= 1
    records.raw(bytes(data))


def say(kind, *contents, **options):
    def act(records):
        for content in contents:
            records.say(kind, content, **options)

    return act


def raw(data):
    return lambda records: records.raw(data)


BAD = {
    "tag": (flipped, BAD_MAC),
    "ccs-in-the-clear": (raw(b"\x14\3\3\0\1\1"), UNEXPECTED),
    "alert-in-the-clear": (raw(b"\x15\3\3\0\2\2\x28"), UNEXPECTED),
    "data-in-the-clear": (raw(b"\x17\3\3\0\x11" + bytes(17)), BAD_MAC),
    "shorter-than-a-tag": (raw(b"\x17\3\3\0\1x"), BAD_MAC),
    "http": (raw(b"GET / HTTP/1.1\r\n\r\n"), UNEXPECTED),
    "too-long": (raw(b"\x17\3\3\x41\1"), OVERFLOW),
    "content-too-long": (say(DATA, bytes(FULL + 1)), OVERFLOW),
    "no-type": (lambda records: records.raw(records.out.seal(bytes(9))), UNEXPECTED),
    "type-0x42": (say(0x42, b"x"), UNEXPECTED),
    "sealed-ccs": (say(CCS, b"\1"), UNEXPECTED),
    "empty-handshake": (say(HANDSHAKE, b""), UNEXPECTED),
    "finished": (say(HANDSHAKE, b"\x14\0\0\x20" + bytes(32)), UNEXPECTED),
    "certificate-request": (say(HANDSHAKE, b"\x0d\0\0\3\0\0\0"), UNEXPECTED),
    "key-update-of-2": (say(HANDSHAKE, UPDATE + b"\2"), ILLEGAL),
    "key-update-of-two-bytes": (say(HANDSHAKE, b"\x18\0\0\2\0\0"), DECODE),
    "key-update-without-its-byte": (say(HANDSHAKE, b"\x18\0\0\0"), DECODE),
    "bytes-behind-a-key-update": (say(HANDSHAKE, UPDATE + b"\0\4"), UNEXPECTED),
    "data-inside-a-message": (
        lambda records: [records.say(HANDSHAKE, b"\x18"), records.say(DATA, b"x")],
        UNEXPECTED,
    ),
    "alert-of-one-byte": (say(ALERT, b"\2"), DECODE),
    "alert-of-three-bytes": (say(ALERT, b"\1\0\0"), DECODE),
    "two-alerts": (say(ALERT, b"\1\x5a\1\x5a"), DECODE),
    "empty-alert": (say(ALERT, b""), DECODE),
}


@pytest.mark.parametrize(("act", "alert"), BAD.values(), ids=BAD)
def test_what_is_no_tls_is_answered_by_an_alert(either, act, alert):
    either.peer.fence()
    act(either.records)
    assert either.records.alert() == bytes([2, alert])
    assert either.ours.events.reason(2) is Reason.TLS


def test_a_client_has_no_tickets_to_give(gate):
    gate.peer.fence()
    gate.records.say(HANDSHAKE, b"\4\0\0\2xy")
    assert gate.records.alert() == bytes([2, UNEXPECTED])


def test_a_ticket_that_is_too_long_ends_the_tunnel(pool):
    pool.peer.fence()
    pool.records.say(HANDSHAKE, b"\4\xff\xff\xff")
    assert pool.records.alert() == bytes([2, DECODE])


IDLE = {
    "empty-records": lambda records: records.say(DATA, b""),
    "padding": lambda records: records.say(DATA, b"", padding=FULL),
    "key-updates": lambda records: records.update(REQUESTED),
    "user-canceled": lambda records: records.say(ALERT, bytes([1, USER_CANCELED])),
}


@pytest.mark.parametrize("act", IDLE.values(), ids=IDLE)
def test_32_records_without_payload_are_taken_and_no_33rd(either, act):
    for _ in range(2):
        either.peer.fence()
        for _ in range(32):
            act(either.records)
    either.peer.fence()
    for _ in range(33):
        act(either.records)
    assert either.records.alert() == bytes([2, UNEXPECTED])
    assert either.ours.events.reason(2) is Reason.TLS


def test_a_fatal_alert_ends_the_tunnel(either):
    either.peer.fence()
    either.records.say(ALERT, bytes([2, INTERNAL]))
    assert either.ours.events.reason(2) is Reason.ALERT
    with pytest.raises((GoneError, OSError)):
        either.records.hear()


def test_close_notify_ends_the_tunnel_in_good_order(either):
    either.peer.fence()
    either.records.say(ALERT, bytes([1, CLOSE_NOTIFY]))
    assert either.ours.events.reason(2) is Reason.LOST


def test_the_end_of_tcp_ends_the_tunnel_wherever_it_comes(either):
    either.peer.fence()
    record = either.records.out.seal(PING + b"8 bytes.\x17")
    either.records.raw(record[:-1])
    either.records.shutdown(socket.SHUT_WR)
    assert either.ours.events.reason(2) is Reason.LOST


def test_our_end_is_told_by_close_notify(mesh, either):
    either.peer.fence()
    either.records.say(DATA, b"\0\0\0\0\0\0\0\0\0")  # DATA on no stream
    assert either.records.alert() == bytes([1, CLOSE_NOTIFY])
    assert either.ours.events.reason(2) is Reason.HTTP2
