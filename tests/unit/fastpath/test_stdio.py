"""Our standard streams for a program that runs elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from fastpath.stdio import READ_SIZE, Input, Output


async def _read_all(fd):
    with Input(fd) as stream:
        return await stream.reader.read()


def test_input_passes_every_byte_and_the_end():
    read_fd, write_fd = os.pipe()
    os.write(write_fd, bytes(range(256)))
    os.close(write_fd)
    assert asyncio.run(_read_all(read_fd)) == bytes(range(256))
    os.close(read_fd)


@pytest.mark.parametrize("content", [b"", b"x" * (3 * READ_SIZE)])
def test_input_reads_a_file_that_epoll_refuses(tmp_path, content):
    (tmp_path / "in").write_bytes(content)
    with (tmp_path / "in").open("rb") as file:
        assert asyncio.run(_read_all(file.fileno())) == content


def test_input_takes_no_more_than_its_reader_wants(tmp_path):
    async def main(fd):
        with Input(fd) as stream:
            await asyncio.sleep(0.05)
            assert (await stream.reader.readexactly(1)) == b"x"

    with (tmp_path / "in").open("wb+") as file:
        file.write(b"x" * (100 * READ_SIZE))
        file.seek(0)
        asyncio.run(main(file.fileno()))
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) <= 4 * READ_SIZE


def test_output_does_not_block_the_loop_and_loses_nothing():
    async def main():
        read_fd, write_fd = os.pipe()
        data = os.urandom(1 << 20)
        task = asyncio.create_task(Output(write_fd, pytest.fail).write(data))
        await asyncio.sleep(0.01)  # returns: the pipe is full, the loop is not
        assert not task.done()
        read = bytearray()
        os.set_blocking(read_fd, False)
        while len(read) < len(data):
            with contextlib.suppress(BlockingIOError):
                read += os.read(read_fd, READ_SIZE)
            await asyncio.sleep(0)
        await task
        os.close(read_fd)
        os.close(write_fd)
        return read == data

    assert asyncio.run(main())


def test_output_that_nobody_reads_says_so_once_and_drops_the_rest():
    async def main():
        read_fd, write_fd = os.pipe()
        os.close(read_fd)
        closed = []
        output = Output(write_fd, lambda: closed.append(True))
        await output.write(b"x" * 100_000)
        await output.write(b"y")
        os.close(write_fd)
        return closed

    assert asyncio.run(main()) == [True]
