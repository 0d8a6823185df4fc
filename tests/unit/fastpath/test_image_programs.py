"""Programs of other suites: unpacked once, started with their own libraries."""

from __future__ import annotations

import dataclasses
import subprocess
from typing import TYPE_CHECKING

import pytest

from fastpath.errors import FastpathError
from fastpath.image import packages, programs
from fastpath.image.packages import Package
from fastpath.image.programs import Program, unpack

if TYPE_CHECKING:
    from pathlib import Path

HELLO = Program(
    name="hello",
    suite="sid",
    package="hello",
    path="usr/bin/hello",
    arguments=("-d", "{root}/share"),
)
LOADER = "#!/bin/sh\necho loader $*\n"


class FakeArchive:
    """An archive with one program, whose loader says what it was given."""

    version = "1"
    log: list[str] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, cache: Path, suite: str) -> None:
        self._debs = cache / "debs"
        self._debs.mkdir(parents=True, exist_ok=True)

    def update(self) -> None:
        self.log.append("update")

    def resolve(self, names):
        return (Package("hello", self.version, f"hello_{self.version}_all.deb"),)

    def fetch(self, found, progress):
        deb = self._debs / found[0].file
        root = self._debs / "tree"
        for path, text in {
            "DEBIAN/control": f"Package: hello\nVersion: {self.version}\n"
            "Architecture: all\nMaintainer: m\nDescription: d\n",
            f"lib/x86_64-linux-gnu/{programs.LOADER}": LOADER,
            "usr/bin/hello": "",
        }.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        (root / "lib/x86_64-linux-gnu" / programs.LOADER).chmod(0o755)
        command = ["dpkg-deb", "-Znone", "--root-owner-group", "-b", root, deb]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [deb]


@pytest.fixture(autouse=True)
def archive(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packages, "Archive", FakeArchive)
    monkeypatch.setattr(FakeArchive, "version", "1")
    monkeypatch.setattr(FakeArchive, "log", [])


def said(start, *arguments):
    command = [start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_program_starts_by_its_own_loader_with_its_own_libraries():
    start = unpack(HELLO).start
    root = start.parent
    libraries = f"{root}/lib/x86_64-linux-gnu:{root}/usr/lib/x86_64-linux-gnu"
    assert said(start, "a b") == (
        f"loader --library-path {libraries} {root}/usr/bin/hello -d {root}/share a b\n"
    )


def test_it_stays_at_its_version_until_a_refresh():
    first = unpack(HELLO)
    FakeArchive.log.clear()
    FakeArchive.version = "2"
    assert unpack(HELLO) == first
    assert FakeArchive.log == []
    assert unpack(HELLO, refresh=True).version == "2"
    assert not first.start.exists()


def test_another_version_than_the_one_wanted_is_an_error():
    pinned = dataclasses.replace(HELLO, wanted="2.")
    with pytest.raises(FastpathError, match=r"hello 2\.: Debian sid has 1"):
        unpack(pinned)


def test_a_package_without_the_program_is_named():
    other = Program(name="x", suite="sid", package="hello", path="usr/bin/other")
    with pytest.raises(FastpathError, match="hello: has no usr/bin/other"):
        unpack(other)
