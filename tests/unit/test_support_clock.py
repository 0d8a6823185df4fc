"""The tests' own clock: it passes when nothing else happens, and only then."""

from __future__ import annotations

import asyncio
import socket
import time

from tests.support import clock


def test_a_rest_of_an_hour_takes_no_time():
    async def main():
        loop = asyncio.get_running_loop()
        before = loop.time(), time.monotonic()
        await asyncio.sleep(3600)
        assert loop.time() - before[0] >= 3600
        assert time.monotonic() - before[1] < 3600

    clock.run(main())


def test_what_is_ready_comes_before_any_timer():
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            data = bytes(10_000_000)
            sender = loop.create_task(loop.sock_sendall(ours, data))
            got = 0
            async with asyncio.timeout(1e-6):
                while got < len(data):
                    got += len(await loop.sock_recv(theirs, 65536))
            await sender

    clock.run(main())


def test_timers_go_off_in_their_order():
    async def main():
        said = []

        async def say(after_s):
            await asyncio.sleep(after_s)
            said.append(after_s)

        await asyncio.gather(*(say(n) for n in (30, 10, 20)))
        assert said == [10, 20, 30]

    clock.run(main())
