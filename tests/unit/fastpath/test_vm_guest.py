"""The exec protocol: init itself, run on the host, against the host's side of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys

import pytest

from fastpath.data import GUEST
from fastpath.errors import FastpathError
from fastpath.vm import guest
from fastpath.vm.guest import Guest, GuestGoneError, GuestInfo
from tests.support.limits import LIMIT_S

pytestmark = pytest.mark.skipif(
    not (shutil.which("cc") and shutil.which("make")), reason="no C compiler"
)

AGENT = """#!/bin/sh
socket=$2
shift 3 # -k SOCKET --
case $1 in
fail) echo "other text" >&2; echo "tsi-agent: no listener" >&2; exit 125;;
die) kill -SEGV $$;;
outlive) exec %(python)s -c '%(outlives)s' $socket;;
*) "$@";;
esac
"""
OUTLIVES = """
import os, signal, socket, sys, time
with socket.socket(fileno=int(sys.argv[1])) as to_init:
    there, here = os.pipe()
    told, tell = os.pipe()
    if os.fork() == 0:
        command = os.fork()
        if command:
            os.write(tell, command.to_bytes(4, sys.byteorder))
            os._exit(0)
        os.close(here)
        os.read(there, 1)
        os.kill(os.getpid(), signal.SIGTERM)
    os.wait()
    command = os.read(told, 4)
    socket.send_fds(to_init, [command], [there])
    os.close(here)
    while os.path.exists(f"/proc/{int.from_bytes(command, sys.byteorder)}"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""An agent that is killed after init has reaped its command."""


@pytest.fixture(scope="session")
def init(tmp_path_factory):
    """guest/init, compiled to run an agent of the test's own."""
    out = tmp_path_factory.mktemp("guest")
    agent = out / "agent"
    agent.write_text(AGENT % {"python": sys.executable, "outlives": OUTLIVES})
    agent.chmod(0o755)
    flags = f'CFLAGS=-O1 -DAGENT=\\"{agent}\\"'
    command = ["make", "-s", "-C", str(GUEST), f"OUT={out}", flags, "init"]
    subprocess.run(command, check=True)
    return out / "init"


@contextlib.asynccontextmanager
async def serving(init, tmp_path):
    """A `Guest` with an init that runs beside it."""
    uds = tmp_path / "v"
    async with Guest(uds) as there:
        here = socket.socket(socket.AF_UNIX)
        here.connect(f"{uds}_1029")
        process = await asyncio.create_subprocess_exec(
            init, "--serve", str(here.fileno()), pass_fds=[here.fileno()]
        )
        here.close()
        try:
            yield there
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@pytest.fixture
def in_guest(init, tmp_path):
    """Runs `work(guest)` in an event loop."""

    def run(work):
        async def bounded():
            async with asyncio.timeout(LIMIT_S), serving(init, tmp_path) as there:
                return await work(there)

        return asyncio.run(bounded())

    return run


ENDLESS = ("sh", "-c", "echo ready; exec sleep 600")


async def running(there, **options):
    """Start a command that has no end; return its task once it runs."""
    ready = asyncio.Event()
    work = there.run(ENDLESS, stdout=lambda _: ready.set(), **options)
    task = asyncio.create_task(work)
    await ready.wait()
    return task


def shell(script, *, tsi=False, **options):
    return lambda there: there.run(["sh", "-c", script], tsi=tsi, **options)


def test_says_who_it_is(in_guest):
    info = in_guest(lambda there: there.ready(LIMIT_S))
    assert isinstance(info, GuestInfo)
    assert info.kernel
    assert (info.version, info.sockets) == (2, "agent")


@pytest.mark.parametrize(
    ("script", "status"),
    [("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("exec /no/such", 127)],
)
def test_the_exit_status_is_the_commands(in_guest, script, status):
    assert in_guest(shell(script)) == status


def test_a_program_that_does_not_exist_is_127_with_a_reason(in_guest):
    said = bytearray()
    status = in_guest(
        lambda there: there.run(["/no/such"], tsi=False, stderr=said.extend)
    )
    assert (status, bytes(said)) == (
        127,
        b"init: /no/such: No such file or directory\n",
    )


def test_empty_arguments_environment_and_directory_arrive(in_guest, tmp_path):
    out = bytearray()
    command = ["sh", "-c", 'printf "[%s]" "$@" "$A" "$PWD"', "sh", "", "x y", ""]
    run = in_guest(
        lambda there: there.run(
            command, tsi=False, env={"A": "é="}, cwd=str(tmp_path), stdout=out.extend
        )
    )
    assert run == 0
    assert out.decode() == f"[][x y][][é=][{tmp_path}]"


def test_no_byte_of_output_is_lost_before_the_exit(in_guest):
    out = bytearray()
    assert in_guest(shell("head -c 3000000 /dev/zero", stdout=out.extend)) == 0
    assert len(out) == 3_000_000


def test_input_larger_than_any_window_comes_back(in_guest):
    data = bytes(range(256)) * 4096
    out = bytearray()
    assert in_guest(shell("cat", stdin=data, stdout=out.extend)) == 0
    assert out == data


def test_input_that_nobody_reads_is_dropped(in_guest):
    assert in_guest(shell("exec <&-; sleep 0.1; exit 3", stdin=b"x" * 1_000_000)) == 3


def test_a_signal_passes_input_that_the_command_does_not_read(in_guest):
    async def work(there):
        command = await running(there, tsi=False, stdin=b"x" * 1_000_000)
        await there.signal(signal.SIGTERM)
        return await command

    assert in_guest(work) == 128 + signal.SIGTERM


def test_a_background_process_does_not_delay_the_exit(in_guest):
    out = bytearray()
    status = in_guest(shell("sleep 600 & echo $!; exit 4", stdout=out.extend))
    assert status == 4
    os.kill(int(out), signal.SIGKILL)  # it was there until now


def test_commands_run_one_after_another(in_guest):
    async def work(there):
        return [await there.run(["sh", "-c", f"exit {n}"], tsi=False) for n in range(5)]

    assert in_guest(work) == [0, 1, 2, 3, 4]


def test_a_run_that_is_given_up_is_killed_and_the_next_one_works(in_guest):
    async def work(there):
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(LIMIT_S) as limit:
                await there.run(
                    ENDLESS, tsi=False, stdout=lambda _: limit.reschedule(loop.time())
                )
        return await there.run(["true"], tsi=False)

    assert in_guest(work) == 0


def test_a_sink_that_fails_ends_the_command_and_the_run(in_guest):
    def sink(data):
        raise BrokenPipeError

    async def work(there):
        with pytest.raises(BrokenPipeError):
            await there.run(["yes"], tsi=False, stdout=sink)
        return await there.run(["true"], tsi=False)

    assert in_guest(work) == 0


def test_over_tsi_the_status_is_the_commands(in_guest):
    assert in_guest(shell("exit 125", tsi=True)) == 125


@pytest.mark.parametrize(
    ("command", "why"),
    [
        pytest.param("fail", "tsi-agent: no listener", id="gives-up"),
        pytest.param("die", "tsi-agent: killed by signal 11", id="is-killed"),
    ],
)
def test_an_agent_that_fails_is_an_error_that_names_it(in_guest, command, why):
    with pytest.raises(FastpathError, match=why):
        in_guest(lambda there: there.run([command], tsi=True))


def test_a_command_that_ends_before_its_dying_agent_has_its_own_status(in_guest):
    assert in_guest(lambda there: there.run(["outlive"], tsi=True)) == 143


def test_an_agent_that_the_host_kills_is_no_failure(in_guest):
    async def work(there):
        command = await running(there, tsi=True)
        await there.signal(signal.SIGKILL)
        return await command

    assert in_guest(work) == 137


def test_a_guest_that_dies_ends_the_run_with_an_error(in_guest):
    with pytest.raises(GuestGoneError, match="control stream"):
        in_guest(shell("kill -9 $PPID; sleep 5"))


@pytest.mark.parametrize(
    "bytes_from_guest",
    [
        pytest.param(struct.pack("<II", 99, 0), id="unknown-frame"),
        pytest.param(struct.pack("<II", 19, 1) + b"x", id="short-exit"),
        pytest.param(struct.pack("<II", 17, 2**31), id="too-long"),
        pytest.param(struct.pack("<III", 16, 4, 999), id="other-version"),
        pytest.param(b"\xff", id="end-inside-a-header"),
    ],
)
def test_a_guest_that_breaks_the_protocol_is_an_error(tmp_path, bytes_from_guest):
    async def work():
        async with Guest(tmp_path / "v") as there:
            _, writer = await asyncio.open_unix_connection(f"{tmp_path}/v_1029")
            writer.write(bytes_from_guest)
            writer.write_eof()
            with pytest.raises(GuestGoneError):
                await there.ready(LIMIT_S)
            writer.close()

    asyncio.run(work())


def play(tmp_path, *frames):
    """Run a command in a guest that sends these frames when it has the command."""

    async def work():
        async with asyncio.timeout(LIMIT_S), Guest(tmp_path / "v") as there:
            reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/v_1029")
            ready = struct.pack("<I", 2) + b"6.1\0tsc\0module\0"
            writer.write(struct.pack("<II", 16, len(ready)) + ready)
            command = asyncio.create_task(there.run(["x"], tsi=False))
            await reader.readexactly(8)
            for kind, payload in frames:
                writer.write(struct.pack("<II", kind, len(payload)) + payload)
            try:
                return await command
            finally:
                writer.close()

    return asyncio.run(work())


@pytest.mark.parametrize("status", [0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7F, 0x10000])
def test_an_exit_with_a_status_of_no_process_is_an_error(tmp_path, status):
    with pytest.raises(GuestGoneError, match="broke the exec protocol"):
        play(tmp_path, (19, struct.pack("<I", status)))


def test_what_a_guest_says_is_shown_as_text_and_in_bounds(tmp_path):
    said = b"\x1b]0;owned\x07\x1b[2J agent\r\nfailed \xff " + b"x" * 100000
    with pytest.raises(FastpathError) as caught:
        play(tmp_path, (20, said))
    assert caught.value.why.isprintable()
    assert "]0;owned\ufffd\ufffd[2J agent failed \ufffd xxx" in caught.value.why
    assert len(caught.value.why) <= guest.TEXT_MAX


def test_frames_of_output_do_not_keep_others_from_their_turn(tmp_path, monkeypatch):
    """A guest sends tiny frames; what has been read of them never waits."""
    monkeypatch.setattr(guest, "FRAMES_AT_ONCE", 4)
    turns: list[None] = []

    async def work():
        reader = asyncio.StreamReader()
        reader.feed_data(struct.pack("<II", 16, 0) * 400)
        reader.feed_eof()
        async with Guest(tmp_path / "v") as there:
            there._ready.set_result(GuestInfo(2, "", "", ""))
            reading = asyncio.create_task(there._read(reader))
            while not reading.done():
                turns.append(None)
                await asyncio.sleep(0)

    asyncio.run(work())
    assert len(turns) >= 100


def test_a_guest_that_never_calls_is_an_error_and_its_socket_is_removed(tmp_path):
    async def work():
        async with Guest(tmp_path / "v", console=tmp_path / "log") as there:
            with pytest.raises(
                FastpathError,
                match=r"did not call.*said nothing yet.*log.*--boot-timeout 0\.1",
            ):
                await there.ready(0.05)

    asyncio.run(work())
    assert list(tmp_path.iterdir()) == []


def test_the_exec_frame_has_its_counts_and_strings():
    payload = guest.encode_exec(["a", ""], {"N": "v"}, "/", tsi=True)
    assert payload == b"\1\0\0\0\2\0\0\0\1\0\0\0a\0\0N=v\0/\0"


def test_more_arguments_than_a_frame_holds_are_refused():
    with pytest.raises(FastpathError, match="more than"):
        guest.encode_exec(["x" * guest.FRAME_MAX], {}, "/", tsi=False)
