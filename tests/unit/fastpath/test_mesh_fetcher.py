"""Material that another process fetches, which is there only meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastpath.errors import FastpathError
from fastpath.identity import Identity
from fastpath.mesh.authority import Authority
from fastpath.mesh.contexts import PemDirectory
from fastpath.mesh.fetcher import Fetcher
from fastpath.mesh.issued import Plain
from fastpath.mesh.material import Material
from fastpath.mesh.sources import FileSource, RootSource
from tests.support.limits import LIMIT_S, wait_until

WEB = Identity("cluster.local", "default", "web")
HOUR = dt.timedelta(hours=1)


def now():
    return dt.datetime.now(dt.UTC)


def children():
    """The processes that fetch for this one."""
    text = "".join(
        (task / "children").read_text() for task in Path("/proc/self/task").iterdir()
    )
    return {
        int(pid)
        for pid in text.split()
        if b"fastpath.mesh.fetching" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


async def until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.01)


def fetching(body, **options):
    """Run `body(fetcher)`; afterwards no process is left."""

    async def main():
        before = children()
        fetcher = Fetcher(**options)
        try:
            async with asyncio.timeout(LIMIT_S):
                await body(fetcher)
        finally:
            await fetcher.close()
        assert children() == before

    asyncio.run(main())


@dataclass
class Slow:
    """A source that takes long; it leaves a file when it is asked."""

    told: Path

    async def fetch(self, when):
        self.told.write_text(f"{os.getpid()}")
        await asyncio.sleep(LIMIT_S)


@dataclass
class Broken:
    """A source with a bug."""

    async def fetch(self, when):
        raise ZeroDivisionError("a bug")


def test_it_is_the_material_that_would_be_fetched_here(tmp_path):
    begin = now()
    made = Authority.open(tmp_path / "ca", "cluster.local", begin)
    pems = PemDirectory(tmp_path / "pems")
    pems.write(made.workload(WEB, HOUR, begin))
    source = FileSource(pems.key, pems.chain, pems.roots)
    data = (each.read_bytes() for each in source.paths)
    here = Plain.of(Material.parse(*data))

    async def body(fetcher):
        assert await fetcher.fetch(source, now()) == here

    fetching(body)


def test_many_that_ask_at_once_have_one_process(tmp_path):
    async def body(fetcher):
        names = [Identity("cluster.local", "default", f"a{n}") for n in range(9)]
        sources = [RootSource(tmp_path / "ca", name, HOUR) for name in names]
        found = await asyncio.gather(*(fetcher.fetch(it, now()) for it in sources))
        assert [each.identity for each in found] == names
        assert len({each.key_pem for each in found}) == len(names)
        assert len(children()) == 1

    fetching(body)


def test_what_is_wrong_comes_back_as_it_was_said(tmp_path):
    source = FileSource(*(tmp_path / name for name in ("key", "chain", "roots")))

    async def body(fetcher):
        with pytest.raises(FastpathError) as caught:
            await fetcher.fetch(source, now())
        error = caught.value
        assert error.what == f"{tmp_path / 'key'}"
        assert (error.why, error.hint) == (
            "No such file or directory",
            "put the file there",
        )

    fetching(body)


def test_a_bug_there_is_an_error_here(capfd):
    async def body(fetcher):
        with pytest.raises(FastpathError, match="certificates: ZeroDivisionError: a"):
            await fetcher.fetch(Broken(), now())

    fetching(body)
    assert "Traceback" in capfd.readouterr().err


def test_it_ends_when_nobody_asks_and_is_there_again_for_who_does(tmp_path):
    source = RootSource(tmp_path / "ca", WEB, HOUR)

    async def body(fetcher):
        await fetcher.fetch(source, now())
        await until(lambda: not children())
        assert (await fetcher.fetch(source, now())).identity == WEB

    fetching(body, rest_s=0.01)


def test_one_that_is_killed_is_an_error_and_the_next_one_is_another(tmp_path):
    async def body(fetcher):
        asked = asyncio.create_task(fetcher.fetch(Slow(tmp_path / "told"), now()))
        await until(lambda: (tmp_path / "told").exists() and children())
        (pid,) = children()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(FastpathError, match="the process that fetches them ended"):
            await asked
        source = RootSource(tmp_path / "ca", WEB, HOUR)
        assert (await fetcher.fetch(source, now())).identity == WEB

    fetching(body)


def test_who_asks_no_more_leaves_the_others_theirs(tmp_path):
    async def body(fetcher):
        asked = asyncio.create_task(fetcher.fetch(Slow(tmp_path / "told"), now()))
        await until((tmp_path / "told").exists)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        source = RootSource(tmp_path / "ca", WEB, HOUR)
        assert (await fetcher.fetch(source, now())).identity == WEB

    fetching(body)


def test_closing_ends_it_whatever_it_does(tmp_path):
    async def body(fetcher):
        asked = asyncio.create_task(fetcher.fetch(Slow(tmp_path / "told"), now()))
        await until((tmp_path / "told").exists)
        await fetcher.close()
        with pytest.raises(FastpathError, match="the process that fetches them ended"):
            await asked

    fetching(body)


def test_it_ends_with_who_has_started_it(tmp_path):
    """Who was killed, and could end nothing."""
    told = tmp_path / "told"
    code = textwrap.dedent(f"""
        import asyncio, datetime, os, signal, sys
        from pathlib import Path
        from fastpath.mesh.fetcher import Fetcher
        from tests.unit.fastpath.test_mesh_fetcher import Slow
        async def main():
            now = datetime.datetime.now(datetime.UTC)
            asyncio.create_task(Fetcher().fetch(Slow(Path({f"{told}"!r})), now))
            while not Path({f"{told}"!r}).exists():
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
    """)
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=False, cwd=root)
    pid = int(told.read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="its end")
