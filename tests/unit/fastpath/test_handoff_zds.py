"""ZDS, our end: a ztunnel written by hand, its bytes from istio/ztunnel's zds.proto."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from fastpath.handoff import zds
from fastpath.handoff.zds import ANSWER_S, HELLO_S, Server, Workload
from tests.support import clock
from tests.support.descriptors import check_closed, descriptors
from tests.support.limits import LIMIT_S, until

POD1 = Workload("uid1", "pod1", "default", "sa1")
POD2 = Workload("uid2", "pod2", "default", "sa2")
HELLO, ACK, SNAPSHOT = bytes([8, 1]), b"\x0a\x00", b"\x1a\x00"
ADD1 = bytes.fromhex("0a1c 0a04") + b"uid1" + bytes.fromhex("1214 0a04") + b"pod1"
ADD1 += bytes.fromhex("1207") + b"default" + bytes.fromhex("1a03") + b"sa1"
DEL1 = bytes.fromhex("1206 1204") + b"uid1"


class Ztunnel:
    """One end of the socket; reads messages with their descriptors."""

    def __init__(self, path):
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self._sock.connect(str(path))

    async def hears(self):
        """The next message, and the inode of what came with it; 0: nothing."""
        await readable(self._sock)
        data, fds, _, _ = socket.recv_fds(self._sock, 1024, 4)
        assert len(fds) <= 1
        inode = os.fstat(fds[0]).st_ino if fds else 0
        for fd in fds:
            os.close(fd)
        return data, inode

    def says(self, data):
        self._sock.send(data)

    async def is_left(self):
        """Whether our end has closed."""
        await readable(self._sock)
        try:
            return not self._sock.recv(1024)
        except ConnectionResetError:
            return True

    async def joins(self, *adds):
        """Say hello, take ADDs and the snapshot."""
        self.says(HELLO)
        for add in adds:
            assert (await self.hears())[0] == add
            self.says(ACK)
        assert await self.hears() == (SNAPSHOT, 0)
        self.says(ACK)

    def close(self):
        self._sock.close()


async def readable(sock):
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def run(tmp_path, work, runner=asyncio.run):
    """Run `work(server, connect, namespaces)`; files stand for namespaces."""
    path = tmp_path / "zds"

    async def main():
        with contextlib.ExitStack() as stack:

            def connect():
                return stack.enter_context(contextlib.closing(Ztunnel(path)))

            files = [stack.enter_context((tmp_path / n).open("w")) for n in "ab"]
            server = Server(path)
            await server.start()
            try:
                async with asyncio.timeout(LIMIT_S):
                    await work(server, connect, files)
            finally:
                server.close()
                await until(lambda: not server.peers)
        assert not path.exists()

    runner(main())


def inode(file):
    return os.fstat(file.fileno()).st_ino


def test_a_ztunnel_hears_of_the_pods_one_by_one_and_then_that_it_was_all(tmp_path):
    async def work(server, connect, files):
        server.add(POD1, files[0].fileno())
        server.add(POD2, files[1].fileno())
        ztunnel = connect()
        ztunnel.says(HELLO)
        assert await ztunnel.hears() == (ADD1, inode(files[0]))
        ztunnel.says(ACK)
        assert await ztunnel.hears() == (POD2.add(), inode(files[1]))
        ztunnel.says(ACK)
        assert await ztunnel.hears() == (SNAPSHOT, 0)
        ztunnel.says(ACK)
        await until(lambda: server.peers == 1)

    run(tmp_path, work)


def test_pods_that_come_and_go_are_told(tmp_path):
    async def work(server, connect, files):
        ztunnel = connect()
        await ztunnel.joins()
        server.add(POD1, files[0].fileno())
        assert await ztunnel.hears() == (ADD1, inode(files[0]))
        ztunnel.says(ACK)
        server.remove(POD1.uid)
        assert await ztunnel.hears() == (DEL1, 0)
        ztunnel.says(ACK)
        server.remove(POD1.uid)  # again: nothing
        server.add(POD2, files[1].fileno())
        assert (await ztunnel.hears())[0] == POD2.add()

    run(tmp_path, work)


def test_a_pod_with_another_namespace_is_another_pod(tmp_path):
    async def work(server, connect, files):
        server.add(POD1, files[0].fileno())
        ztunnel = connect()
        await ztunnel.joins(ADD1)
        server.add(POD1, files[1].fileno())
        assert await ztunnel.hears() == (DEL1, 0)
        ztunnel.says(ACK)
        assert await ztunnel.hears() == (ADD1, inode(files[1]))

    run(tmp_path, work)


def test_changes_while_an_answer_is_due_are_told_after_it(tmp_path):
    async def work(server, connect, files):
        server.add(POD1, files[0].fileno())
        ztunnel = connect()
        ztunnel.says(HELLO)
        await ztunnel.hears()
        server.add(POD2, files[1].fileno())
        server.remove(POD1.uid)
        ztunnel.says(ACK)
        assert await ztunnel.hears() == (DEL1, 0)
        ztunnel.says(ACK)
        assert await ztunnel.hears() == (POD2.add(), inode(files[1]))
        ztunnel.says(ACK)
        assert await ztunnel.hears() == (SNAPSHOT, 0)

    run(tmp_path, work)


def test_each_ztunnel_hears_all_and_one_that_comes_back_does_again(tmp_path):
    async def work(server, connect, files):
        server.add(POD1, files[0].fileno())
        first, second = connect(), connect()
        await first.joins(ADD1)
        await second.joins(ADD1)
        first.close()
        await until(lambda: server.peers == 1)
        await connect().joins(ADD1)
        server.remove(POD1.uid)
        assert await second.hears() == (DEL1, 0)

    run(tmp_path, work)


def test_an_answer_with_an_error_is_said_and_the_others_go_on(tmp_path, caplog):
    async def work(server, connect, files):
        server.add(POD1, files[0].fileno())
        server.add(POD2, files[1].fileno())
        ztunnel = connect()
        ztunnel.says(HELLO)
        await ztunnel.hears()
        ztunnel.says(b"\x0a\x0c\x0a\x0aport\ntaken")
        assert (await ztunnel.hears())[0] == POD2.add()

    run(tmp_path, work)
    assert any("uid1: port taken" in line.getMessage() for line in caplog.records)


@pytest.mark.parametrize(
    "hello",
    [
        b"\x08\x02",
        b"\x08",
        b"\x0a\x05ab",
        b"\xff" * 20,
        b"\x0a\x00",
        bytes(4000),
        b"\x0b\x01",
    ],
)
def test_a_hello_that_is_none_is_the_end(tmp_path, hello):
    async def work(server, connect, files):
        server.add(POD1, files[0].fileno())
        ztunnel = connect()
        ztunnel.says(hello)
        assert await ztunnel.is_left()
        await connect().joins(ADD1)  # others are served

    run(tmp_path, work)


@pytest.mark.parametrize("answer", [b"\x08\x01", b"\x0a\x02\x08\x01", b"\x12\x00"])
def test_an_answer_that_is_none_is_the_end(tmp_path, answer):
    async def work(server, connect, files):
        server.add(POD1, files[0].fileno())
        ztunnel = connect()
        ztunnel.says(HELLO)
        await ztunnel.hears()
        ztunnel.says(answer)
        assert await ztunnel.is_left()

    run(tmp_path, work)


def test_one_that_speaks_unasked_is_left(tmp_path):
    async def work(server, connect, files):
        ztunnel = connect()
        await ztunnel.joins()
        ztunnel.says(ACK)
        assert await ztunnel.is_left()

    run(tmp_path, work)


def test_fields_that_we_do_not_know_are_skipped(tmp_path):
    async def work(server, connect, files):
        ztunnel = connect()
        more = b"\x7a\x01x\x39" + bytes(8) + b"\x3d" + bytes(4) + b"\x40\x80\x01"
        ztunnel.says(HELLO + more)
        assert await ztunnel.hears() == (SNAPSHOT, 0)

    run(tmp_path, work)


@pytest.mark.parametrize(
    ("said", "limit_s"),
    [pytest.param(None, HELLO_S, id="hello"), pytest.param(HELLO, ANSWER_S, id="ack")],
)
def test_one_that_says_nothing_is_left(tmp_path, said, limit_s):
    async def work(server, connect, files):
        server.add(POD1, files[0].fileno())
        ztunnel = connect()
        if said:
            ztunnel.says(said)
            await ztunnel.hears()
        assert await ztunnel.is_left()
        assert asyncio.get_running_loop().time() == limit_s

    run(tmp_path, work, clock.run)


def test_one_more_than_there_may_be_is_sent_away(tmp_path, monkeypatch):
    monkeypatch.setattr(zds, "MAX_PEERS", 2)

    async def work(server, connect, files):
        first, second, third = connect(), connect(), connect()
        assert await third.is_left()
        await first.joins()
        await second.joins()

    run(tmp_path, work)


def test_descriptors_are_given_back(tmp_path):
    before = descriptors()

    async def work(server, connect, files):
        for _ in range(3):
            server.add(POD1, files[0].fileno())
        await connect().joins(ADD1)
        server.add(POD2, files[1].fileno())
        server.remove(POD2.uid)

    run(tmp_path, work)
    check_closed(before)


def test_long_names_have_two_bytes_of_length():
    name = "n" * 200
    message = Workload("u", name, "d", "s").add()
    assert b"\x0a\xc8\x01" + name.encode() in message
    assert message[0] == 0x0A
    assert message[1] & 0x7F | message[2] << 7 == len(message) - 3
