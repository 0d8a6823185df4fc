"""The admin pages: what they answer, and what a slow client costs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from ipaddress import ip_address

import pytest

from fastpath.ztunnel.admin import AdminServer
from fastpath.ztunnel.model import ListenAddress
from tests.support.limits import LIMIT_S
from vhost_user import pages
from vhost_user.pages import MAX_CLIENTS, MAX_REQUEST

FREE = ListenAddress(ip_address("127.0.0.1"), 0)
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def served(talk, *, metrics=lambda: b"page\n", ready=lambda: True):
    async def main():
        server = AdminServer(FREE, metrics, ready)
        try:
            async with asyncio.timeout(LIMIT_S):
                return await talk(server)
        finally:
            server.close()

    return asyncio.run(main())


async def ask(server, request):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    with contextlib.closing(writer):
        return await reader.read()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(GET, b"200 OK", id="metrics"),
        pytest.param(GET.replace(b"metrics", b"metrics?x=1"), b"200 OK", id="query"),
        pytest.param(b"GET /healthz/ready HTTP/1.0\r\n\r\n", b"200 OK", id="ready"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", b"404 Not Found", id="other"),
        pytest.param(GET.replace(b"GET", b"POST"), b"405 Method", id="post"),
        pytest.param(b"\xff\r\n\r\n", b"400 Bad Request", id="nonsense"),
    ],
)
def test_each_request_has_its_status(request_, status):
    answer = served(lambda server: ask(server, request_))
    assert answer.startswith(b"HTTP/1.0 " + status)


def test_a_head_that_goes_on_and_on_is_dropped():
    request = b"GET / HTTP/1.0\r\n" + b"x" * MAX_REQUEST
    answer = served(lambda server: ask(server, request[:MAX_REQUEST]))
    assert answer == b""


def test_slow_clients_cost_no_thread_and_keep_nobody_out():
    async def talk(server):
        before = threading.active_count()
        silent = [
            await asyncio.open_connection("127.0.0.1", server.port)
            for _ in range(3 * MAX_CLIENTS)
        ]
        answer = await ask(server, GET)
        threads = threading.active_count() - before
        dropped = [await reader.read() for reader, _ in silent[:MAX_CLIENTS]]
        for _, writer in silent:
            writer.close()
        return answer, threads, dropped

    answer, threads, dropped = served(talk)
    assert answer.endswith(b"\r\n\r\npage\n")
    assert threads <= 1  # that of the pages
    assert dropped == [b""] * MAX_CLIENTS


def test_a_client_that_sends_nothing_is_dropped(monkeypatch):
    monkeypatch.setattr(pages, "TIMEOUT_S", 0.05)
    assert served(lambda server: ask(server, b"GET /me")) == b""


def test_nothing_is_looked_at_after_the_end():
    looked = []

    async def talk(server):
        server.close()
        return server.page("/metrics"), server.page("/healthz/ready")

    made = served(talk, metrics=lambda: looked.append("metrics"))
    assert [page.status.value for page in made] == [404, 503]
    assert looked == []
