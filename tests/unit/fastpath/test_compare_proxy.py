"""The proxy at the other end of a comparison's hand-offs: by a unix socket, by rings.

Those in a pod's namespace: tests/netns/test_compare_pods.py. Headers are written by
hand, from docs/handoff-protocol.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import subprocess

import pytest

from fastpath.commands.compare.sandboxes import proxy_program
from fastpath.commands.compare.site import SERVER_PORT
from fastpath.errors import FastpathError
from fastpath.image import compiling
from tests.support import otherproxy
from tests.support.limits import LIMIT_S
from vhost_user.engine import Engine, Ring

BULK = bytes(range(256)) * 12000  # 3 MB: more than any socket or ring holds
HEADER = bytes.fromhex("0d0a0d0a000d0a515549540a 21 11")
TLV = b"\xd0\x00\x03abc"
BY_KIND = pytest.mark.parametrize("kind", ["unix", "ring"])


def header(ip, port, tlv=TLV):
    """What a unix socket's connection begins with, for a destination."""
    body = socket.inet_aton("10.0.0.5") + socket.inet_aton(ip)
    body += b"\x9c\x40" + port.to_bytes(2, "big") + tlv
    return HEADER + len(body).to_bytes(2, "big") + body


def by_unix(path, ip, port):
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.sendall(header(ip, port))
    return client


def through_ring(path, ip, port, data):
    """Have an engine offer a connection by rings, and use it."""

    async def main():
        async with Engine() as engine:
            peer = engine.add_peer(path, identity="spiffe://cluster.local/ns/a/sa/a")
            door = socket.create_server(("127.0.0.1", 0))
            at = door.getsockname()
            engine.add_listener(
                door,
                Ring(peer.id, (ip, port)),
                on_event=lambda _event: None,
                want=frozenset(),
            )
            with await asyncio.to_thread(socket.create_connection, at) as client:
                return await asyncio.to_thread(otherproxy.exchange, client, data)

    return asyncio.run(main())


def through(kind, path, ip, port, data):
    if kind == "ring":
        return through_ring(path, ip, port, data)
    with by_unix(path, ip, port) as client:
        return otherproxy.exchange(client, data)


@BY_KIND
def test_an_echo_to_its_own_address_gives_all_back(kind, tmp_path):
    with otherproxy.running(kind, tmp_path / "p"):
        assert through(kind, tmp_path / "p", "198.18.0.3", 7, BULK) == BULK


@BY_KIND
def test_a_discard_takes_all_and_then_ends(kind, tmp_path):
    with otherproxy.running(kind, tmp_path / "p"):
        assert through(kind, tmp_path / "p", "198.18.0.3", 9, BULK) == b""


def test_a_chargen_goes_on_until_its_client_ends(tmp_path):
    with otherproxy.running("unix", tmp_path / "p") as process:
        with by_unix(tmp_path / "p", "198.18.0.3", 19) as client:
            came = 0
            while came < len(BULK):
                came += len(client.recv(65536))
        with by_unix(tmp_path / "p", "198.18.0.3", 7) as client:
            assert otherproxy.exchange(client, b"still there") == b"still there"
        assert process.poll() is None


@BY_KIND
def test_any_other_address_is_passed_on_and_a_service_by_its_endpoint(kind, tmp_path):
    with otherproxy.echoing() as port, otherproxy.running(kind, tmp_path / "p"):
        for ip in ("127.0.0.1", otherproxy.SERVICE):
            assert through(kind, tmp_path / "p", ip, port, BULK) == BULK


def test_of_vsock_the_port_says_where_a_connection_goes(tmp_path):
    prefix = tmp_path / "p"

    def to(port):
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"{prefix}_{port}")
        return client

    with (
        otherproxy.echoing(address=("127.0.0.7", SERVER_PORT)),
        otherproxy.running("vsock", prefix, server="127.0.0.7"),
    ):
        for port in (7, SERVER_PORT):
            with to(port) as client:
                assert otherproxy.exchange(client, BULK) == BULK
        with to(9) as client:
            client.settimeout(LIMIT_S)
            client.sendall(bytes(len(BULK)))
            client.sendall(b"\0\xff")  # guest/probe: put
            assert client.recv(1) == b""


def test_a_header_in_pieces_or_of_another_kind_ends_that_connection(tmp_path):
    good = header("198.18.0.3", 7)
    wrong = [good[:12] + b"\x20" + good[13:], good[:14] + b"\xff\xff", b"GET / HTTP/1"]
    with otherproxy.running("unix", tmp_path / "p"):
        for bytes_ in wrong:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(LIMIT_S)
                client.connect(str(tmp_path / "p"))
                client.sendall(bytes_)
                client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
        with by_unix(tmp_path / "p", "198.18.0.3", 7) as client:
            assert otherproxy.exchange(client, b"next") == b"next"


def test_many_connections_at_once_are_served_each(tmp_path):
    with otherproxy.running("unix", tmp_path / "p"):
        clients = [by_unix(tmp_path / "p", "198.18.0.3", 7) for _ in range(100)]
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        for number, client in enumerate(clients):
            with client:
                client.settimeout(LIMIT_S)
                assert client.recv(10) == b"%d" % number


def test_a_port_that_it_has_not_is_an_end(tmp_path):
    with (
        otherproxy.running("unix", tmp_path / "p"),
        by_unix(tmp_path / "p", "198.18.0.3", 8) as client,
    ):
        assert client.recv(1) == b""


def test_a_path_where_it_cannot_listen_is_said(tmp_path):
    argv = [str(proxy_program()), "1", "198.18.0.3", "198.18.0.2", "127.0.0.1"]
    argv += ["unix", str(tmp_path / "nowhere" / "p")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "bind: No such file or directory\n"


def test_it_is_compiled_once_and_again_when_a_header_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source, header_of = tmp_path / "a.c", tmp_path / "a.h"
    source.write_text('#include "a.h"\nint main(void) { return N; }\n')
    found = []
    for number in (3, 3, 4):
        header_of.write_text(f"#define N {number}\n")
        program = compiling.compiled(
            "host/a", ["cc"], [source], headers=[header_of], hint="x"
        )
        assert subprocess.run([program], check=False).returncode == number
        found.append(program)
    assert [a == b for a, b in itertools.pairwise(found)] == [True, False]


def test_a_compiler_that_is_missing_is_said_with_what_mends_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "a.c"
    source.write_text("int main(void) { return 0; }\n")
    with pytest.raises(FastpathError, match=r"no-such-cc is not installed; hint: buy"):
        compiling.compiled("host/a", ["no-such-cc"], [source], hint="buy one")
