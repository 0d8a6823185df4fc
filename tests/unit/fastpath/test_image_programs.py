"""Debian's programs in the cache; the archive is a stand-in, the packages are made."""

from __future__ import annotations

import pytest

from fastpath.errors import FastpathError
from fastpath.image import programs
from fastpath.image.packages import Package
from fastpath.image.programs import Program
from tests.unit.fastpath.test_image_tree import make_deb

LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


class FakeArchive:
    """A program "peer" that needs a "libc6"."""

    packages = (
        Package("libc6", "9", "libc6_9_all.deb"),
        Package("peer", "1.2-3", "peer_1.2-3_all.deb"),
    )
    updates = 0

    def __init__(self, cache, suite):
        self._debs = cache / "debs"
        self._debs.mkdir(parents=True, exist_ok=True)

    def update(self):
        FakeArchive.updates += 1

    def resolve(self, names):
        assert names == ["peer"]
        return self.packages

    def fetch(self, packages, progress):
        files = {"libc6": {LOADER: b""}, "peer": {"usr/bin/peer": b"#!/bin/true"}}
        debs = (self._debs / each.file for each in packages)
        return [
            make_deb(deb, files[each.name])
            for deb, each in zip(debs, packages, strict=True)
        ]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(programs, "Archive", FakeArchive)
    monkeypatch.setattr(FakeArchive, "updates", 0)
    return tmp_path / "vsock-fastpath"


def test_a_program_is_unpacked_alone_and_once(cache):
    program = Program(package="peer", version="1.2")
    own = cache / "peer/peer/1.2-3"
    assert program.command() == [str(own / "usr/bin/peer")]
    assert program.path() == own / "usr/bin/peer"
    assert FakeArchive.updates == 1
    assert not (own / LOADER).exists()
    assert [path.name for path in own.parent.iterdir()] == ["1.2-3"]


def test_a_program_of_another_c_library_is_started_by_its_own_loader(cache):
    own = cache / "peer/peer/1.2-3"
    assert Program(package="peer", alone=False).command("other") == [
        str(own / LOADER),
        "--library-path",
        str((own / LOADER).parent),
        str(own / "usr/bin/other"),
    ]


def test_another_version_than_the_one_asked_for_is_an_error(cache):
    with pytest.raises(FastpathError, match=r"peer 2\..*Debian sid has 1\.2-3"):
        Program(package="peer", version="2.").path()
    assert not (cache / "peer").exists()


def test_what_fails_half_way_leaves_nothing(cache, monkeypatch):
    broken = cache / "broken.deb"
    cache.mkdir()
    broken.write_bytes(b"half a pack")
    monkeypatch.setattr(FakeArchive, "fetch", lambda *_: [broken])
    with pytest.raises(FastpathError, match="cannot unpack broken"):
        Program(package="peer").path()
    assert list((cache / "peer/peer").iterdir()) == []
