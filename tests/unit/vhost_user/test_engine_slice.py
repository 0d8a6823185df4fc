"""What the engine's thread asks of the scheduler."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import socket
import struct
import threading

from vhost_user.engine import Echo, Engine

GETATTR, SETATTR = 315, 314
ATTR = struct.Struct("<IIQiIQQQ")
"""size, policy, flags, nice, priority, runtime, deadline, period; of x86-64."""
SINCE = (6, 12)
"""Linux of which a thread may have a slice of its own."""
RELEASE = tuple(int(part) for part in platform.release().split(".")[:2])
_libc = ctypes.CDLL(None, use_errno=True)


def attributes(tid):
    """A thread's policy, nice and slice in us."""
    room = ctypes.create_string_buffer(ATTR.size)
    assert _libc.syscall(GETATTR, tid, room, ATTR.size, 0) == 0
    _, policy, _, nice, _, runtime, _, _ = ATTR.unpack(room.raw)
    return policy, nice, runtime // 1000


def engines_thread(policy=os.SCHED_OTHER, nice=0):
    """Start an engine in a thread of that policy; return what its own thread has."""

    async def main():
        async with Engine() as engine:
            listener = socket.create_server(("127.0.0.1", 0))
            address = listener.getsockname()
            engine.add_listener(listener, Echo(), on_event=ignore, want=frozenset())
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"  # so it runs
            writer.close()
            return attributes(engine._thread.native_id)

    found = []

    def run():
        if nice:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        os.sched_setscheduler(0, policy, os.sched_param(0))
        found.append(asyncio.run(main()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def ignore(event):
    """Nobody wants to know."""


def test_it_has_a_cpu_soon_and_as_much_of_it_as_others():
    policy, nice, slice_us = engines_thread(nice=3)
    assert (policy, nice) == (os.SCHED_OTHER, 3)
    assert slice_us == 200 or RELEASE < SINCE


def test_a_policy_that_somebody_gave_it_stays():
    policy, _, slice_us = engines_thread(policy=os.SCHED_BATCH)
    assert policy == os.SCHED_BATCH
    assert slice_us != 200
