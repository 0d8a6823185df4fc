"""The process as who runs it sees it: its admin pages, and how it ends."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import pytest

from fastpath.ztunnel.process import Ztunnel
from tests.support.limits import LIMIT_S as TIMEOUT_S
from tests.unit.fastpath.test_ztunnel_process import (
    FREE,
    config,
    connect,
    counted,
    fetch,
    listen,
    run,
    upper_server,
)


def post(port, path):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="POST")
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def test_the_admin_pages_are_on_their_own_address(tmp_path):
    async def main():
        there = config(tmp_path, 80, 80, admin=FREE, metrics=FREE)
        async with Ztunnel(there) as ztunnel:
            metrics, admin = (each.port for each in ztunnel.admin)

            def ask():
                dump = fetch(admin, "/config_dump")
                pages = [fetch(admin, path)[0] for path in ("/metrics", "/logging")]
                pages.append(fetch(metrics, "/config_dump")[0])
                said = post(admin, "/logging")
                pages += [post(metrics, "/logging")[0], post(admin, "/config_dump")[0]]
                return dump, pages, said

            return await asyncio.to_thread(ask)

    dump, pages, said = run(main())
    assert dump[0] == 200
    assert '"hostname": "web"' in dump[1]
    assert pages == [404, 405, 404, 405, 405]
    assert said[0] == 200
    assert said[1].startswith("current log level is ")


def test_a_drain_takes_nobody_and_waits_for_those_that_are_in(tmp_path):
    async def main():
        capture = listen()
        address = capture.getsockname()
        async with (
            upper_server() as upstream,
            Ztunnel(
                config(tmp_path, address[1], upstream, readiness=FREE), capture=capture
            ) as ztunnel,
        ):
            reader, writer = await connect(address)
            await counted(ztunnel, "istio_tcp_connections_opened_total")
            drain = asyncio.create_task(ztunnel.drain(TIMEOUT_S, asyncio.Event()))
            await asyncio.sleep(0)  # it begins
            port = ztunnel.admin[0].port
            page = await asyncio.to_thread(fetch, port, "/healthz/ready")
            assert page[0] == 503
            with pytest.raises(ConnectionRefusedError):
                await connect(address)
            assert not drain.done()
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"HELLO"
            writer.close()
            await drain
            assert not ztunnel.live

    run(main())


def test_what_a_drain_leaves_is_ended(tmp_path):
    async def main():
        capture = listen()
        address = capture.getsockname()
        async with upper_server() as upstream:
            async with Ztunnel(
                config(tmp_path, address[1], upstream), capture=capture
            ) as ztunnel:
                reader, writer = await connect(address)
                await counted(ztunnel, "istio_tcp_connections_opened_total")
                await ztunnel.drain(0.01, asyncio.Event())
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()

    run(main())
