"""The access log: ztunnel's line byte by byte, and a writer that never waits."""

from __future__ import annotations

import asyncio
import datetime
import os

import pytest

from fastpath.errors import FastpathError
from fastpath.ztunnel import access_log
from fastpath.ztunnel.access_log import AccessLog, Party, Record, format_line
from tests.support.descriptors import check_closed, descriptors
from tests.support.limits import until

TIME = datetime.datetime(2026, 1, 31, 9, 59, 5, 28709, datetime.UTC)
CLIENT = Party(
    addr="10.0.0.2:40000",
    workload="client",
    namespace="default",
    identity="spiffe://cluster.local/ns/default/sa/client",
)
RECORD = Record(
    level="info",
    message="connection complete",
    src=CLIENT,
    dst=Party(addr="10.0.0.11:8080", workload="web-1", namespace="default"),
    service="web.default.svc.cluster.local",
    bytes_sent=79,
    bytes_recv=4839,
    duration_ms=1,
)


def test_a_line_is_ztunnels():
    assert format_line(RECORD, TIME) == (
        "2026-01-31T09:59:05.028709Z\tinfo\taccess\tconnection complete\t"
        'src.addr=10.0.0.2:40000 src.workload="client" src.namespace="default" '
        'src.identity="spiffe://cluster.local/ns/default/sa/client" '
        'dst.addr=10.0.0.11:8080 dst.service="web.default.svc.cluster.local" '
        'dst.workload="web-1" dst.namespace="default" direction="outbound" '
        'bytes_sent=79 bytes_recv=4839 duration="1ms"'
    )


def test_a_refused_connection_has_no_bytes_and_no_duration():
    record = Record(
        level="warn",
        message="connection failed",
        src=Party(addr="[fd00::2]:40000"),
        dst=Party(addr="[fe80::1]:80"),
        error="policy",
    )
    assert format_line(record, TIME) == (
        "2026-01-31T09:59:05.028709Z\twarn\taccess\tconnection failed\t"
        "src.addr=[fd00::2]:40000 dst.addr=[fe80::1]:80 "
        'direction="outbound" error="policy"'
    )


def test_a_value_cannot_forge_a_line():
    record = Record(
        level="info",
        message="connection complete",
        src=Party(addr="10.0.0.2:1", workload='a" error="x\n\t'),
        dst=Party(addr="10.0.0.3:1"),
    )
    line = format_line(record, TIME)
    assert "\n" not in line
    assert line.count("\t") == 4
    assert r'src.workload="a\" error=\"x\n\t"' in line


def test_lines_are_in_the_file_once_the_log_is_closed(tmp_path):
    path = tmp_path / "access.log"
    path.write_text("before\n")

    async def main():
        log = AccessLog(path)
        for _ in range(3):
            log.write(RECORD)
        await log.close()

    asyncio.run(main())
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert len(lines) == 4


def test_lines_appear_without_a_close(tmp_path):
    path = tmp_path / "access.log"

    async def main():
        log = AccessLog(path)
        log.write(RECORD)
        await until(lambda: path.read_bytes().endswith(b"\n"))
        await log.close()

    asyncio.run(main())


def test_a_reader_that_does_not_read_costs_lines_and_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr(access_log, "MAX_QUEUED", 1000)
    monkeypatch.setattr(access_log, "CLOSE_TIMEOUT_S", 0.1)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    async def main():
        log = AccessLog(path)
        for _ in range(3):
            for _ in range(1000):  # 330 KB; a pipe holds 64 KiB
                log.write(RECORD)
            await asyncio.sleep(2 * access_log.FLUSH_S)
        dropped = log.dropped
        await log.close()
        return dropped

    dropped = asyncio.run(main())
    os.close(reader)
    assert dropped == 2000


def test_a_log_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FastpathError, match=r"access log .*/none/a: No such file"):
        AccessLog(tmp_path / "none" / "a")


async def written(path, lines):
    """Wait until the file has so many lines."""
    await until(lambda: path.exists() and path.read_text().count("\n") >= lines)


def test_a_file_that_was_rotated_is_opened_anew(tmp_path):
    path, old = tmp_path / "access.log", tmp_path / "access.log.1"

    async def main():
        log = AccessLog(path)
        log.write(RECORD)
        await written(path, 1)
        path.rename(old)
        log.write(RECORD)
        await written(path, 1)
        path.unlink()
        log.write(RECORD)
        await written(path, 1)
        await log.close()

    before = descriptors()
    asyncio.run(main())
    check_closed(before)
    assert old.read_text().count("\n") == 1
    assert path.read_text().count("\n") == 1


def test_lines_go_on_to_the_old_file_when_there_can_be_no_new_one(tmp_path, caplog):
    path = tmp_path / "folder" / "access.log"
    path.parent.mkdir()
    moved = tmp_path / "moved"

    async def main():
        log = AccessLog(path)
        path.parent.rename(moved)
        for count in (1, 2):
            log.write(RECORD)
            await written(moved / "access.log", count)
        await log.close()

    asyncio.run(main())
    (message,) = caplog.messages
    assert "lines go to the old file" in message
