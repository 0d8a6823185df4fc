"""Material that is kept fresh: half-life, files, retries, and what is said of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import pytest

from fastpath.errors import FastpathError
from fastpath.mesh.contexts import PemDirectory
from fastpath.mesh.material import Material, private_pem
from fastpath.mesh.rotation import FIRST_RETRY, LAST_RETRY, Phase, Rotation
from fastpath.mesh.sources import EmbeddedSource, FileSource
from tests.support import clock
from tests.unit.fastpath.mesh_pki import (
    HOUR,
    SECOND,
    T0,
    WEB,
    authority,
    root,
)


def now():
    """The wall clock: `T0` is when the loop began."""
    return T0 + asyncio.get_running_loop().time() * SECOND


class Failing:
    """A source of the embedded CA's material that fails while `broken`."""

    def __init__(self, folder, life=HOUR):
        self.inner = EmbeddedSource(authority(folder), WEB, life)
        self.paths = ()
        self.broken = False
        self.closed = False
        self.asked = []

    def look(self):
        """There is nothing to warn of."""

    async def fetch(self, when):
        self.asked.append(when)
        if self.broken:
            raise FastpathError("CA", "is away", "start it")
        return await self.inner.fetch(when)

    async def close(self):
        self.closed = True


def rotate(source, body, **options):
    """Run `body(rotation, seen)` while a rotation runs, by a clock of its own."""

    async def main():
        seen: list[Any] = []
        rotation = Rotation(source, name="web", now=now, changed=seen.append, **options)
        await rotation.start()
        task = asyncio.create_task(rotation.run())
        try:
            return await body(rotation, seen)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await rotation.close()

    return clock.run(main())


def phase(rotation):
    return rotation.phase


def lines(caplog, level=logging.ERROR):
    return [each.getMessage() for each in caplog.records if each.levelno >= level]


def test_there_is_new_material_at_half_life(tmp_path):
    source = Failing(tmp_path)

    async def body(rotation, seen):
        first = rotation.current
        await asyncio.sleep((first.half_life - now()).total_seconds() - 1)
        assert source.asked == [T0]
        await asyncio.sleep(2)
        assert len(source.asked) == 2
        assert seen == [rotation.current]
        assert rotation.current != first
        assert first.half_life <= source.asked[1] <= first.half_life + SECOND
        await asyncio.sleep(10 * 3600)
        assert phase(rotation) is Phase.FRESH
        return len(seen)

    rotations = rotate(source, body)
    assert rotations in range(19, 25)  # 10 h by less than half an hour each
    assert source.closed


def test_a_failure_is_said_once_and_tried_again_with_growing_rests(tmp_path, caplog):
    source = Failing(tmp_path)

    async def body(rotation, seen):
        first = rotation.current
        source.broken = True
        await asyncio.sleep(40 * 60)
        assert rotation.current == first
        assert phase(rotation) is Phase.STALE
        return first

    first = rotate(source, body)
    rests = [b - a for a, b in zip(source.asked[1:], source.asked[2:], strict=False)]
    for rest, want in zip(rests, (1, 2, 4, 8, 16, 32, 64, 128, 150, 150), strict=False):
        assert abs(rest - want * SECOND) < SECOND / 100
    assert (FIRST_RETRY, LAST_RETRY) == (SECOND, 150 * SECOND)
    (line,) = lines(caplog)
    until = first.not_after.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert line == (
        f"web: keeps the certificate until {until}: CA: is away; hint: start it"
    )


def test_the_end_of_what_there_is_is_said_once(tmp_path, caplog):
    source = Failing(tmp_path)

    async def body(rotation, seen):
        source.broken = True
        await asyncio.sleep(3 * 3600)
        assert phase(rotation) is Phase.EXPIRED
        assert seen == []
        source.broken = False
        await asyncio.sleep(200)
        assert phase(rotation) is Phase.FRESH
        assert len(seen) == 1

    with caplog.at_level(logging.INFO, "fastpath.mesh.rotation"):
        rotate(source, body)
    kept, over = lines(caplog)
    assert "keeps the certificate" in kept
    assert over == "web: the certificate has expired, peers refuse it"
    assert lines(caplog, logging.INFO)[-1].startswith("web: certificate until 2030-")


def test_after_a_success_the_next_failure_is_said_again(tmp_path, caplog):
    source = Failing(tmp_path)

    async def body(rotation, seen):
        for _ in range(2):
            source.broken = True
            await asyncio.sleep(40 * 60)
            source.broken = False
            await asyncio.sleep(200)
            assert phase(rotation) is Phase.FRESH

    rotate(source, body)
    assert len(lines(caplog)) == 2


def test_a_ca_whose_clock_is_behind_is_not_asked_all_the_time(tmp_path):
    source = Failing(tmp_path)
    fetch = source.inner.fetch

    async def behind(when):
        return await fetch(when - 0.9 * HOUR)

    object.__setattr__(source, "inner", type("", (), {"fetch": staticmethod(behind)}))

    async def body(rotation, seen):
        await asyncio.sleep(3600)

    rotate(source, body)
    assert len(source.asked) < 40


def test_a_wall_clock_that_is_set_forward_is_noticed(tmp_path):
    """As after a suspend, in which the loop's clock stood still."""
    source = Failing(tmp_path)
    ahead = [0 * SECOND]

    async def main():
        rotation = Rotation(source, name="web", now=lambda: now() + ahead[0])
        await rotation.start()
        task = asyncio.create_task(rotation.run())
        await asyncio.sleep(1)
        ahead[0] = HOUR
        await asyncio.sleep(61)
        task.cancel()
        return len(source.asked), rotation.current.not_after > T0 + HOUR

    assert clock.run(main()) == (2, True)


def test_without_any_material_it_does_not_start(tmp_path):
    source = Failing(tmp_path)
    source.broken = True

    async def main():
        with pytest.raises(FastpathError, match="CA: is away; hint: start it"):
            await Rotation(source, name="web", now=now).start()

    clock.run(main())
    assert source.closed


def files_of(folder):
    pems = PemDirectory(folder)
    return pems, FileSource(pems.key, pems.chain, pems.roots)


def test_files_are_read_again_when_they_change(tmp_path):
    ca = authority(tmp_path)
    pems, source = files_of(tmp_path / "pems")
    pems.write(ca.workload(WEB, HOUR, T0))

    async def body(rotation, seen):
        first = rotation.current
        await asyncio.sleep(50 * 60)  # nothing is asked for at half-life
        assert seen == []
        second = ca.workload(WEB, HOUR, now())
        pems.write(second)
        await asyncio.sleep(10)
        assert rotation.current == second != first
        assert seen == [second]

    rotate(source, body)


def test_three_files_written_one_after_another_are_one_change(tmp_path, caplog):
    ca = authority(tmp_path)
    names = ("key", "chain", "roots")
    paths = [tmp_path / name for name in names]

    def parts(material):
        return material.key_pem, material.chain_pem, material.roots_pem

    for path, data in zip(paths, parts(ca.workload(WEB, HOUR, T0)), strict=True):
        path.write_bytes(data)

    async def body(rotation, seen):
        second = ca.workload(WEB, HOUR, now())
        for path, data in zip(paths, parts(second), strict=True):
            path.write_bytes(data)
            await asyncio.sleep(0.2)
        await asyncio.sleep(10)
        assert seen == [second]

    rotate(FileSource(*paths), body)
    assert lines(caplog) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d, ca: (d / "key").write_bytes(b"x"), "the key can't be read"),
        (lambda d, ca: (d / "key").unlink(), "No such file or directory"),
        (
            lambda d, ca: (d / "key").write_bytes(private_pem(root().key)),
            "the key is not that of the first certificate",
        ),
        (
            lambda d, ca: (d / "chain").write_bytes(ca.root_pem),
            "the key is not that of the first certificate",
        ),
        (lambda d, ca: (d / "roots").write_bytes(b""), "the roots can't be read"),
    ],
    ids=["key", "no-key", "other-key", "chain", "roots"],
)
def test_files_that_are_not_good_leave_what_there_is(change, words, tmp_path, caplog):
    ca = authority(tmp_path)
    material = ca.workload(WEB, HOUR, T0)
    source = FileSource(*(tmp_path / name for name in ("key", "chain", "roots")))
    source.key.write_bytes(material.key_pem)
    source.chain.write_bytes(material.chain_pem)
    source.roots.write_bytes(material.roots_pem)

    async def body(rotation, seen):
        change(tmp_path, ca)
        await asyncio.sleep(1000)
        assert rotation.current == material
        assert phase(rotation) is Phase.STALE
        source.key.write_bytes(material.key_pem)
        source.chain.write_bytes(material.chain_pem)
        source.roots.write_bytes(material.roots_pem)
        await asyncio.sleep(10)
        assert phase(rotation) is Phase.FRESH

    rotate(source, body)
    (line,) = lines(caplog)
    assert words in line


def test_files_that_are_over_are_refused_at_the_start(tmp_path):
    pems, source = files_of(tmp_path)
    pems.write(authority(tmp_path).workload(WEB, HOUR, T0))

    async def main():
        late = Rotation(source, name="web", now=lambda: T0 + 2 * HOUR)
        with pytest.raises(FastpathError, match="was valid until 2030-01-01T01:00:00Z"):
            await late.start()
        early = Rotation(source, name="web", now=lambda: T0 - HOUR)
        with pytest.raises(FastpathError, match="is valid from 2029-12-31T23:58:00Z"):
            await early.start()

    clock.run(main())


def test_files_that_expire_are_said_to(tmp_path, caplog):
    pems, source = files_of(tmp_path / "pems")
    pems.write(authority(tmp_path).workload(WEB, HOUR, T0))

    async def body(rotation, seen):
        await asyncio.sleep(3 * 3600)
        assert phase(rotation) is Phase.EXPIRED

    rotate(source, body)
    assert lines(caplog) == ["web: the certificate has expired, peers refuse it"]


def test_a_missing_directory_is_said(tmp_path):
    _, source = files_of(tmp_path / "nothing")

    async def main():
        with pytest.raises(FastpathError, match=r"hint: make the directory"):
            await Rotation(source, name="web", now=now).start()

    clock.run(main())


def test_a_chain_ends_with_the_first_of_its_certificates():
    """And a root at its end is no part of it."""
    top = root()
    between = top.issue(ca="between", life=HOUR / 2)
    leaf = between.issue(WEB, life=HOUR)
    material = leaf.material(between, top, roots=[top])
    assert isinstance(material, Material)
    assert [each.subject for each in material.chain] == [
        leaf.cert.subject,
        between.cert.subject,
    ]
    assert material.not_after == T0 + HOUR / 2
    assert material.half_life == T0 + HOUR / 4


def test_retries_go_on_when_the_clock_is_set_back(tmp_path):
    """They do not wait for the time that it was."""
    source = Failing(tmp_path)
    ahead = [0 * SECOND]

    async def main():
        rotation = Rotation(source, name="web", now=lambda: now() + ahead[0])
        await rotation.start()
        task = asyncio.create_task(rotation.run())
        source.broken = True
        await asyncio.sleep(40 * 60)
        assert phase(rotation) is Phase.STALE
        ahead[0] = -300 * 24 * HOUR
        source.broken = False
        await asyncio.sleep(200)
        task.cancel()
        return rotation.current.not_after, phase(rotation)

    until, at_last = clock.run(main())
    assert (until < T0, at_last) == (True, Phase.FRESH)


def test_a_clock_that_is_set_back_before_the_certificate_gets_another(tmp_path, caplog):
    source = Failing(tmp_path)
    ahead = [0 * SECOND]

    async def main():
        rotation = Rotation(source, name="web", now=lambda: now() + ahead[0])
        await rotation.start()
        task = asyncio.create_task(rotation.run())
        await asyncio.sleep(1)
        ahead[0] = -24 * HOUR
        await asyncio.sleep(61)
        task.cancel()
        return len(source.asked), rotation.current.not_before < T0 - 23 * HOUR

    assert clock.run(main()) == (2, True)
    begin = "2029-12-31T23:58:00Z"
    assert lines(caplog) == [
        f"web: the certificate is valid from {begin} on only, peers refuse it"
    ]


def test_files_are_good_again_when_the_clock_is(tmp_path, caplog):
    pems, source = files_of(tmp_path / "pems")
    pems.write(authority(tmp_path).workload(WEB, HOUR, T0))
    ahead = [0 * SECOND]

    async def main():
        rotation = Rotation(source, name="web", now=lambda: now() + ahead[0])
        await rotation.start()
        task = asyncio.create_task(rotation.run())
        found = []
        for ahead[0] in (-24 * HOUR, 0 * HOUR, 24 * HOUR, 0 * HOUR):
            await asyncio.sleep(121)
            found.append(phase(rotation))
        task.cancel()
        return found

    assert clock.run(main()) == [Phase.EXPIRED, Phase.FRESH] * 2
    assert len(lines(caplog)) == 2


def test_a_directory_in_the_place_of_another_is_a_change(tmp_path):
    ca = authority(tmp_path)
    pems, source = files_of(tmp_path / "pems")
    pems.write(ca.workload(WEB, HOUR, T0))

    async def body(rotation, seen):
        second = ca.workload(WEB, HOUR, now())
        PemDirectory(tmp_path / "new").write(second)
        (tmp_path / "pems").rename(tmp_path / "old")
        (tmp_path / "new").rename(tmp_path / "pems")
        await asyncio.sleep(70)
        assert seen == [second]
        third = ca.workload(WEB, HOUR, now())
        pems.write(third)  # and it is followed
        await asyncio.sleep(10)
        assert seen == [second, third]

    rotate(source, body)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o644])
def test_a_key_that_others_can_read_is_warned_of_once(mode, tmp_path, caplog):
    material = authority(tmp_path).workload(WEB, HOUR, T0)
    source = FileSource(*(tmp_path / name for name in ("key", "chain", "roots")))
    source.key.write_bytes(material.key_pem)
    source.chain.write_bytes(material.chain_pem)
    source.roots.write_bytes(material.roots_pem)
    source.key.chmod(mode)

    async def body(rotation, seen):
        for _ in range(2):
            source.chain.write_bytes(material.chain_pem)
            await asyncio.sleep(10)

    rotate(source, body)
    said = lines(caplog, logging.WARNING)
    want = f"{source.key}: others can use it (mode {mode:04o}); hint: chmod 600, or"
    assert [it[: len(want)] for it in said] == [want] * bool(mode & 0o077)


def test_material_is_over_with_the_last_of_its_roots():
    top, old = root(life=2 * HOUR), root(life=HOUR)
    leaf = top.issue(WEB, life=HOUR * 24)
    material = leaf.material(roots=[top, old])
    assert material.not_after == T0 + 2 * HOUR
    with pytest.raises(ValueError, match="was valid until 2030-01-01T02:00:00Z"):
        material.check(T0 + 3 * HOUR)


def test_material_that_is_refused_counts_as_none(tmp_path, caplog):
    source = Failing(tmp_path)
    seen: list[Any] = []
    refuses = [True]

    def changed(material):
        if refuses[0]:
            raise FastpathError("TLS", "takes no such key")
        seen.append(material)

    async def main():
        rotation = Rotation(source, name="web", now=now, changed=changed)
        await rotation.start()
        task = asyncio.create_task(rotation.run())
        first = rotation.current
        await asyncio.sleep(40 * 60)
        assert rotation.current == first
        assert phase(rotation) is Phase.STALE
        refuses[0] = False
        await asyncio.sleep(200)
        assert seen == [rotation.current] != [first]
        task.cancel()

    clock.run(main())
    (line,) = lines(caplog)
    assert line.endswith("TLS: takes no such key")
