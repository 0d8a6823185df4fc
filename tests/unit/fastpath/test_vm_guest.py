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
from fastpath.vm import execstream
from fastpath.vm.execstream import ExecStream, encode_exec
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
    uds, port = tmp_path / "v", tmp_path / "port"
    async with device(uds, port), Guest(uds) as there:
        with socket.socket(socket.AF_UNIX) as here, socket.socket(socket.AF_UNIX) as at:
            here.connect(f"{uds}_1029")
            at.bind(str(port))
            at.listen()
            fds = (here.fileno(), at.fileno())
            process = await asyncio.create_subprocess_exec(
                init, "--serve", *map(str, fds), pass_fds=fds
            )
        try:
            yield there
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def device(uds, port):
    """A hybrid socket whose guest's port 1029 is another unix socket."""
    tasks: set[asyncio.Task[None]] = set()

    async def connect(reader, writer):
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        assert await reader.readline() == b"CONNECT 1029\n"
        try:
            from_guest, to_guest = await asyncio.open_unix_connection(port)
        except ConnectionError:
            writer.close()
            return
        writer.write(b"OK 1234\n")
        await asyncio.gather(copy(reader, to_guest), copy(from_guest, writer))

    async with await asyncio.start_unix_server(connect, uds):
        yield
        await asyncio.gather(*tasks)


async def copy(reader, writer):
    """Pass all of a stream on, and its end."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


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


async def running(there, *argv, **options):
    """Start a command, one without an end; return it once it has said something."""
    ready = asyncio.Event()
    command = await there.start(
        argv or ENDLESS, stdout=lambda _: ready.set(), **options
    )
    await ready.wait()
    return command


def shell(script, *, tsi=False, **options):
    return lambda there: there.run(["sh", "-c", script], tsi=tsi, **options)


def test_says_who_it_is(in_guest):
    info = in_guest(lambda there: there.ready(LIMIT_S))
    assert isinstance(info, GuestInfo)
    assert info.kernel
    assert (info.version, info.sockets) == (3, "agent")


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
        command.signal(signal.SIGTERM)
        return await command.wait()

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


def test_commands_run_beside_each_other(in_guest):
    async def work(there):
        said: list[bytes] = []
        first = await running(there, tsi=False)
        second = await running(there, tsi=False)
        third = await there.run(["echo", "third"], tsi=False, stdout=said.append)
        second.signal(signal.SIGTERM)
        ended = await second.wait()
        first.signal(signal.SIGINT)
        return said, third, ended, await first.wait()

    assert in_guest(work) == ([b"third\n"], 0, 143, 130)


def test_a_stream_serves_one_command_after_another(in_guest):
    async def work(there):
        parents: list[bytes] = []
        endless = await running(there, tsi=False)
        for _ in range(3):
            await there.run(
                ["sh", "-c", "echo $PPID"], tsi=False, stdout=parents.append
            )
        endless.signal(signal.SIGKILL)
        await endless.wait()
        return parents

    assert len(set(in_guest(work))) == 1


def test_commands_over_tsi_have_agents_of_their_own(in_guest):
    async def work(there):
        first = await running(there, tsi=True)
        second = await there.run(["sh", "-c", "exit 9"], tsi=True)
        first.signal(signal.SIGKILL)
        return second, await first.wait()

    assert in_guest(work) == (9, 137)


def test_commands_beside_each_other_agree_about_tsi(in_guest):
    async def work(there):
        await running(there, tsi=False)
        with pytest.raises(RuntimeError, match="with tsi=False"):
            await there.run(["true"], tsi=True)

    in_guest(work)


def test_a_stream_that_is_lost_takes_its_command_and_no_other(in_guest):
    async def work(there):
        first = await running(there, tsi=False)
        with pytest.raises(GuestGoneError, match="control stream"):
            await there.run(["sh", "-c", "kill -9 $PPID; sleep 600"], tsi=False)
        assert await there.run(["true"], tsi=False) == 0
        first.signal(signal.SIGKILL)
        return await first.wait()

    assert in_guest(work) == 137


def test_the_end_of_the_guest_ends_every_command(in_guest):
    async def work(there):
        return [await running(there, tsi=False) for _ in range(3)]

    for command in in_guest(work):
        with pytest.raises(GuestGoneError, match=r"control stream|we hung up"):
            asyncio.run(command.wait())


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


def test_what_takes_long_to_die_keeps_its_stream_and_nobody_else(in_guest, monkeypatch):
    """Init takes one command of a stream at a time: a second one would end the VM."""
    monkeypatch.setattr(execstream, "KILL_S", 0)

    async def work(there):
        for _ in range(5):
            command = await running(there, tsi=False)
            waiting = asyncio.create_task(command.wait())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await there.run(["true"], tsi=False) == 0

    in_guest(work)


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
        command.signal(signal.SIGKILL)
        return await command.wait()

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
            ready = struct.pack("<I", 3) + b"6.1\0tsc\0module\0"
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
    assert len(caught.value.why) <= execstream.TEXT_MAX


def test_frames_of_output_do_not_keep_others_from_their_turn(tmp_path, monkeypatch):
    """A guest sends tiny frames; what has been read of them never waits."""
    monkeypatch.setattr(execstream, "FRAMES_AT_ONCE", 4)
    turns: list[None] = []

    async def work():
        reader = asyncio.StreamReader()
        ready = struct.pack("<I", 3) + b"6.1\0tsc\0module\0"
        reader.feed_data(struct.pack("<II", 16, len(ready)) + ready)
        reader.feed_data(struct.pack("<II", 16, 0) * 400)
        reader.feed_eof()
        here, there = socket.socketpair()
        with there:
            _, writer = await asyncio.open_unix_connection(sock=here)
            stream = ExecStream(reader, writer)
            while not stream.is_over:
                turns.append(None)
                await asyncio.sleep(0)
            await stream.close()

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
    payload = encode_exec(["a", ""], {"N": "v"}, "/", tsi=True)
    assert payload == b"\1\0\0\0\2\0\0\0\1\0\0\0a\0\0N=v\0/\0"


def test_more_arguments_than_a_frame_holds_are_refused():
    with pytest.raises(FastpathError, match="more than"):
        encode_exec(["x" * execstream.FRAME_MAX], {}, "/", tsi=False)
