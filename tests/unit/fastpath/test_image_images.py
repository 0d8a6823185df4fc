"""Images: built once, built again only when an input changed, whole or not at all."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fastpath.errors import FastpathError
from fastpath.image import images, kbuild, packages, recipe
from fastpath.image.packages import Package

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """
suite: bookworm
kernel: linux-image-test
modules: [first]
files: [{path: /root, directory: true, mode: 0700}]
"""


class FakeArchive:
    """An archive with one kernel package, whose version can be raised."""

    version = "1"
    log: list[str] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, cache: Path, suite: str) -> None:
        self._debs = cache / "debs"
        self._debs.mkdir(parents=True, exist_ok=True)

    def has_lists(self) -> bool:
        return True

    def update(self) -> None:
        self.log.append("update")

    def resolve(self, names):
        file = f"linux-image-test_{self.version}_all.deb"
        return (Package("linux-image-test", self.version, file),) if names else ()

    def fetch(self, found, progress):
        self.log.append("fetch")
        progress(1.0)
        return [self._deb(each) for each in found]

    def _deb(self, package):
        deb = self._debs / package.file
        if deb.exists():
            return deb
        root = self._debs / f"tree-{package.version}"
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN" / "control").write_text(
            f"Package: {package.name}\nVersion: {package.version}\n"
            "Architecture: all\nMaintainer: m\nDescription: d\n"
        )
        for name, data in {
            "boot/vmlinuz-9.9": b"kernel",
            "lib/modules/9.9/first.ko": b"\0depends=\0",
        }.items():
            (root / name).parent.mkdir(parents=True)
            (root / name).write_bytes(data)
        command = ["dpkg-deb", "-Znone", "--root-owner-group", "-b", root, deb]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return deb


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The recipe of an image "tiny", with an archive and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "Archive", FakeArchive)
    monkeypatch.setattr(FakeArchive, "version", "1")
    monkeypatch.setattr(FakeArchive, "log", [])
    monkeypatch.setattr(recipe, "IMAGES", tmp_path / "recipes")
    path = tmp_path / "recipes" / "tiny" / "recipe.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(RECIPE)
    return path


def test_an_image_has_a_kernel_an_initramfs_and_its_release(source):
    image = images.build("tiny")
    assert image.kernel.read_bytes() == b"kernel"
    assert image.initramfs.read_bytes().startswith(b"070701")
    assert image.kernel_release == "9.9"


def test_an_unchanged_image_does_not_ask_the_archive(source):
    first = images.build("tiny")
    FakeArchive.log.clear()
    assert images.build("tiny") == first
    assert FakeArchive.log == []


def test_a_changed_recipe_is_built_again(source):
    first = images.build("tiny")
    source.write_text(RECIPE + "omit: [x]\n")
    assert images.build("tiny").initramfs != first.initramfs


def test_modules_of_ours_are_built_with_the_kernels_headers(source, monkeypatch):
    source.write_text(RECIPE + "own_modules: [tsi]\n")
    monkeypatch.setattr(kbuild, "KERNEL", re.compile("linux-image-(?P<release>.*)"))
    monkeypatch.setattr(kbuild, "NEEDED", ("linux-image-",))  # all that there is
    asked = []

    def build(guest, names, headers, cache):
        asked.append((names, [deb.name for deb in headers]))
        return {"tsi": b"\0depends=\0"}

    monkeypatch.setattr(kbuild, "build", build)
    image = images.build("tiny")
    assert asked == [(("tsi",), ["linux-image-test_1_all.deb"])]
    assert b"lib/modules/9.9/tsi.ko" in image.initramfs.read_bytes()


def test_a_refresh_builds_again_only_for_new_packages(source):
    first = images.build("tiny")
    made = first.initramfs.stat().st_mtime_ns
    assert images.build("tiny", refresh=True) == first
    assert first.initramfs.stat().st_mtime_ns == made
    FakeArchive.version = "2"
    assert images.build("tiny") == first
    assert images.build("tiny", refresh=True) != first


def test_concurrent_builds_make_one_image(source):
    with ThreadPoolExecutor(4) as pool:
        built = set(pool.map(lambda _: images.build("tiny"), range(4)))
    assert len(built) == 1
    assert FakeArchive.log == ["fetch"]


def test_progress_grows_and_ends_at_its_total(source):
    seen = []
    images.build("tiny", progress=lambda what, done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (100, 100)


def test_a_build_that_fails_leaves_nothing(source, tmp_path):
    source.write_text(RECIPE.replace("[first]", "[nope]"))
    with pytest.raises(FastpathError, match="kernel module nope"):
        images.build("tiny")
    assert list((tmp_path / "cache/vsock-fastpath/images").iterdir()) == []


@pytest.mark.parametrize(("in_use_s", "kept"), [(0, images.KEPT), (3600, 6)])
def test_builds_that_nobody_uses_are_forgotten(
    source, tmp_path, monkeypatch, in_use_s, kept
):
    monkeypatch.setattr(images, "IN_USE_S", in_use_s)
    for version in range(2, 8):
        FakeArchive.version = str(version)
        images.build("tiny", refresh=True)
    folders = list((tmp_path / "cache/vsock-fastpath/images").glob("tiny-*"))
    assert len(folders) == kept


def test_a_cache_that_cannot_be_written_is_an_error_with_a_hint(source, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no")
    with pytest.raises(FastpathError, match="set XDG_CACHE_HOME"):
        images.build("tiny")


def test_added_files_follow_the_image_and_leave_it_alone(source, tmp_path):
    image = images.build("tiny")
    before = image.initramfs.read_bytes()
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    more = images.with_files(image, {"/root/a/script": script}, tmp_path / "out")
    assert image.initramfs.read_bytes() == before
    added = more.initramfs.read_bytes()[len(before) :]
    assert b"root/a/script\0" in added
    assert b"root/a\0" in added
    assert b"root\0" not in added  # it keeps the mode that the image gave it


def test_a_directory_is_added_with_all_that_is_in_it(source, tmp_path):
    folder = tmp_path / "folder" / "sub"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"content")
    image = images.build("tiny")
    more = images.with_files(image, {"/bin/x": tmp_path / "folder"}, tmp_path / "out")
    assert b"usr/bin/x/sub/file\0" in more.initramfs.read_bytes()


@pytest.mark.parametrize("path", ["relative", "/a/../../etc"])
def test_a_file_must_have_an_absolute_path_in_the_guest(source, tmp_path, path):
    with pytest.raises(FastpathError, match="not an absolute path"):
        images.with_files(images.build("tiny"), {path: source}, tmp_path / "out")


def test_a_missing_host_file_is_named(source, tmp_path):
    with pytest.raises(FastpathError, match="no-such-file: No such file"):
        images.with_files(
            images.build("tiny"), {"/a": tmp_path / "no-such-file"}, tmp_path / "out"
        )


def test_an_image_that_a_crash_damaged_is_built_again(source):
    first = images.build("tiny")
    (first.initramfs.parent / "image.json").write_text("")
    assert images.build("tiny") == first
    assert images.build("tiny").kernel_release == "9.9"
    assert FakeArchive.log == ["fetch", "fetch"]


def test_what_a_killed_build_has_begun_is_removed_by_the_next(source, tmp_path):
    begun = tmp_path / "cache/vsock-fastpath/images" / f"{images.BEGUN}x" / "image"
    begun.mkdir(parents=True)
    images.build("tiny")
    assert not begun.parent.exists()


def test_a_host_file_that_goes_while_it_is_added_is_named(
    source, tmp_path, monkeypatch
):
    image = images.build("tiny")
    gone = tmp_path / "gone"
    gone.write_text("x" * 100)

    real = shutil.copyfile

    def copy(*args):
        real(*args)
        gone.unlink()

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(FastpathError, match=r"file .*gone: No such file"):
        images.with_files(image, {"/a": gone}, tmp_path / "out")
