"""What other processes ask of a running microVM: names, messages, descriptors, ends."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket

import pytest

from fastpath import control
from fastpath.commands import running
from fastpath.control import Served
from fastpath.errors import FastpathError
from tests.support.limits import LIMIT_S, wait_until


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the sockets are."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "vsock-fastpath"


def serve(handler, talk, name="web"):
    """Run `talk()` on a thread beside a microVM whose `handler` answers."""

    async def main():
        async with asyncio.timeout(LIMIT_S), Served(name, handler):
            return await asyncio.to_thread(talk)

    return asyncio.run(main())


async def echo(client, message, fds):
    return message | {"fds": len(fds)}


def ask(message, fds=(), name="web"):
    with control.connect(name) as sock:
        control.send(sock, message, fds)
        return control.receive(sock)


def test_a_message_and_its_answer(folder):
    def talk():
        assert control.names() == ["web"]
        return ask({"do": "x" * 100_000}), ask({"do": "y"}, (0, 1, 2))

    long, short = serve(echo, talk)
    assert long == {"do": "x" * 100_000, "fds": 0}
    assert short == {"do": "y", "fds": 3}
    assert control.names() == []
    assert [path.name for path in folder.iterdir()] == [control.LOCK]


def test_descriptors_are_the_handlers_until_it_answers():
    theirs = []

    async def write(client, message, fds):
        theirs.extend(fds)
        os.write(fds[0], b"written")
        return {}

    def talk():
        reader, writer = os.pipe()
        ask({}, (writer,))
        os.close(writer)
        with open(reader, "rb") as file:  # noqa: PTH123
            return file.read()

    assert serve(write, talk) == b"written"
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(theirs[0])


def test_an_error_is_the_clients():
    async def refuse(client, message, fds):
        raise FastpathError("what", "why", "hint")

    def talk():
        with pytest.raises(FastpathError) as caught:
            ask({})
        return str(caught.value)

    assert serve(refuse, talk) == "what: why; hint: hint"


def test_signals_come_while_it_works():
    async def wait(client, message, fds):
        came: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        client.on_signal = came.set_result
        client.answer({"ready": True})
        return {"signal": await came}

    def talk():
        with control.connect("web") as sock:
            control.send(sock, {})
            assert control.receive(sock) == {"ready": True}
            for message in ({"signal": 0}, {"signal": "x"}, {"signal": 99}, {"x": 1}):
                control.send(sock, message)
            control.send(sock, {"signal": 15})
            return control.receive(sock)

    assert serve(wait, talk) == {"signal": 15}


def test_a_client_that_leaves_ends_its_work():
    ends = []

    async def forever(client, message, fds):
        client.answer({})
        try:
            await asyncio.sleep(math.inf)
        finally:
            ends.append(message)

    def talk():
        ask({"do": 1})
        wait_until(lambda: ends)
        return ask({"do": 2})

    assert serve(forever, talk) == {}
    assert ends[0] == {"do": 1}


@pytest.mark.parametrize("data", [b"", b"nonsense", b"[]", b"{", b"\xff"])
def test_what_is_no_message_ends_the_client_alone(data):
    def talk():
        with control.connect("web") as sock:
            if data:
                sock.send(data)
            else:
                sock.shutdown(socket.SHUT_WR)
            assert control.receive(sock) is None
        return ask({"do": "still"})

    assert serve(echo, talk) == {"do": "still", "fds": 0}


def test_the_end_of_the_microvm_is_the_end_of_what_was_asked():
    async def forever(client, message, fds):
        client.answer({})
        await asyncio.sleep(math.inf)

    def talk():
        sock = control.connect("web")
        control.send(sock, {})
        assert control.receive(sock) == {}
        return sock

    with serve(forever, talk) as sock:
        assert control.receive(sock) is None


def test_a_name_that_is_in_use_is_refused():
    def talk():
        with pytest.raises(FastpathError, match=r"--name web: is a running microVM's"):
            Served("web", echo)
        return ask({})

    assert serve(echo, talk) == {"fds": 0}


@pytest.mark.parametrize("name", ["", "a/b", ".lock", "-x", "x" * 65, "ä", "..", "a b"])
def test_what_is_no_name_is_refused(name, folder):
    with pytest.raises(FastpathError, match="--name"):
        Served(name, echo)
    assert not folder.exists()


def test_what_a_killed_one_left_is_in_nobodys_way(folder):
    control.names()
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as s:
        s.bind(str(folder / "web"))
        s.listen()
    assert (folder / "web").exists()
    assert serve(echo, lambda: ask({})) == {"fds": 0}
    (folder / "old").touch()
    assert control.names() == []
    assert not (folder / "old").exists()


def test_nobody_of_this_name():
    with pytest.raises(FastpathError, match=r"microVM web: none.*fastpath ps"):
        control.connect("web")


@pytest.mark.parametrize("wrong", ["mode", "file", "link"])
def test_a_folder_that_others_enter_is_refused(folder, wrong, tmp_path):
    if wrong == "mode":
        folder.mkdir()
        folder.chmod(0o755)
    elif wrong == "link":
        (tmp_path / "there").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "there")
    else:
        folder.touch(mode=0o600)
    with pytest.raises(FastpathError, match=r"vsock-fastpath: .*"):
        control.directory()


def test_ps_shows_those_that_answer(capsys):
    async def info(client, message, fds):
        assert message == {"do": "info"}
        return {
            "name": "web",
            "image": "base",
            "pid": 7,
            "up_s": 61.4,
            "ready": False,
            "publish": ["127.0.0.1:8080:80"],
            "command": ["httpd", "-f"],
        }

    def talk():
        assert running.show(as_json=False) == 0
        assert running.show(as_json=True) == 0

    serve(info, talk)
    table, _, text = capsys.readouterr().out.partition("[")
    assert table.splitlines()[1].split() == [
        *("web", "base", "7", "0:01:01,", "boots", "127.0.0.1:8080:80", "httpd", "-f")
    ]
    assert '"up_s": 61.4' in text
    assert running.show(as_json=True) == 0
    assert capsys.readouterr().out == "[]\n"
