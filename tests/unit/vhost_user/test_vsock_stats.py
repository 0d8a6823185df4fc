"""The counters for others: JSON by a unix socket, Prometheus's text by HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket

import pytest

from tests.support.limits import LIMIT_S
from vhost_user.pages import MAX_CLIENTS, MAX_REQUEST
from vhost_user.vsock.stats import (
    JsonSocket,
    MetricsServer,
    process_stats,
    prometheus,
)

SNAPSHOT = {
    "process": {"open_fds": 9, "resident_bytes": 4096},
    "engine": {"conns": 3, "wakeups": 7, "spins": 5},
    "engines": [
        {"engine": 0, "conns": 2, "wakeups": 3, "spins": 5},
        {"engine": 1, "conns": 1, "wakeups": 4, "spins": 0},
    ],
    "vms": [
        {"guest_cid": 3, "connected": True, "conns": 1, "opened": 7},
        {"guest_cid": 4, "connected": False, "conns": 0, "opened": 8},
    ],
}
LARGE = SNAPSHOT | {
    "vms": [{"guest_cid": cid, "conns": 0, "opened": 0} for cid in range(3, 40_000)]
}
"""More than a socket takes at once."""
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def test_names_and_labels_are_prometheuss():
    assert prometheus(SNAPSHOT).splitlines() == [
        "# TYPE process_open_fds gauge",
        "process_open_fds 9",
        "# TYPE process_resident_memory_bytes gauge",
        "process_resident_memory_bytes 4096",
        "# TYPE vhost_user_vsock_engine_conns gauge",
        'vhost_user_vsock_engine_conns{engine="0"} 2',
        'vhost_user_vsock_engine_conns{engine="1"} 1',
        "# TYPE vhost_user_vsock_engine_wakeups_total counter",
        'vhost_user_vsock_engine_wakeups_total{engine="0"} 3',
        'vhost_user_vsock_engine_wakeups_total{engine="1"} 4',
        "# TYPE vhost_user_vsock_engine_spins_total counter",
        'vhost_user_vsock_engine_spins_total{engine="0"} 5',
        'vhost_user_vsock_engine_spins_total{engine="1"} 0',
        "# TYPE vhost_user_vsock_connected gauge",
        'vhost_user_vsock_connected{cid="3"} 1',
        'vhost_user_vsock_connected{cid="4"} 0',
        "# TYPE vhost_user_vsock_conns gauge",
        'vhost_user_vsock_conns{cid="3"} 1',
        'vhost_user_vsock_conns{cid="4"} 0',
        "# TYPE vhost_user_vsock_opened_total counter",
        'vhost_user_vsock_opened_total{cid="3"} 7',
        'vhost_user_vsock_opened_total{cid="4"} 8',
    ]


def test_the_processs_own_figures_are_its_own(open_fds):
    before = open_fds()
    stats = process_stats()
    assert stats["open_fds"] == before
    assert stats["resident_bytes"] > 1 << 20


def served(talk, snapshot=SNAPSHOT):
    """Run `talk(address)` in a thread beside a server."""

    async def main():
        server = MetricsServer(("127.0.0.1", 0), lambda: snapshot)
        server.start()
        try:
            return await asyncio.to_thread(talk, server.address)
        finally:
            server.close()

    return asyncio.run(main())


def whole(sock):
    sock.settimeout(LIMIT_S)
    data = b""
    while more := sock.recv(65536):
        data += more
    return data


def ask(address, *pieces):
    with socket.create_connection(address) as sock:
        for piece in pieces:
            sock.sendall(piece)
        return whole(sock)


def test_a_scrape_gets_the_text():
    head, _, body = served(lambda at: ask(at, GET)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=")
    length = re.search(rb"Content-Length: (\d+)", head)
    assert length
    assert int(length[1]) == len(body)
    assert body.decode() == prometheus(SNAPSHOT)


def test_a_request_may_come_in_pieces():
    answer = served(lambda at: ask(at, *(GET[i : i + 1] for i in range(len(GET)))))
    assert answer.startswith(b"HTTP/1.0 200")


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", b"404", id="other-page"),
        pytest.param(b"POST /metrics HTTP/1.1\r\n\r\n", b"405", id="post"),
        pytest.param(b"\r\n\r\n", b"400", id="empty"),
    ],
)
def test_anything_else_is_an_error(request_head, status):
    answer = served(lambda at: ask(at, request_head))
    assert answer.startswith(b"HTTP/1.0 " + status)


def test_a_head_without_end_is_hung_up_on():
    def talk(address):
        with socket.create_connection(address) as sock:
            sock.sendall(b"x" * MAX_REQUEST)
            return whole(sock)

    assert served(talk) == b""


def test_silent_clients_keep_nobody_out():
    def talk(address):
        silent = [socket.create_connection(address) for _ in range(3 * MAX_CLIENTS)]
        answer = ask(address, GET)
        dropped = [whole(sock) for sock in silent[:MAX_CLIENTS]]
        for sock in silent:
            sock.close()
        return answer, dropped

    answer, dropped = served(talk)
    assert answer.startswith(b"HTTP/1.0 200")
    assert dropped == [b""] * MAX_CLIENTS


def served_json(path, talk, snapshot=SNAPSHOT):
    """Run `talk()` in a thread beside a server at `path`."""

    async def main():
        server = JsonSocket(path, lambda: snapshot)
        await server.start()
        try:
            return await asyncio.to_thread(talk)
        finally:
            server.close()

    return asyncio.run(main())


def read_json(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        return json.loads(whole(sock))


def test_a_client_of_the_unix_socket_gets_json_and_need_not_ask(tmp_path):
    path = tmp_path / "stats"
    assert served_json(path, lambda: read_json(path)) == SNAPSHOT


def test_an_answer_that_a_socket_does_not_take_at_once_arrives_whole(tmp_path):
    body = served(lambda at: ask(at, GET), LARGE).partition(b"\r\n\r\n")[2]
    assert body.decode() == prometheus(LARGE)
    path = tmp_path / "stats"
    assert served_json(path, lambda: read_json(path), LARGE) == LARGE


def test_clients_that_do_not_read_keep_nobody_out(tmp_path):
    path = tmp_path / "stats"

    def talk():
        with contextlib.ExitStack() as stack:
            for _ in range(MAX_CLIENTS + 1):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(str(path))
            return read_json(path)

    assert served_json(path, talk, LARGE) == LARGE
