"""The newc archive: bytes by hand, and what the kernel's other readers make of it."""

from __future__ import annotations

import io
import shutil
import subprocess

import pytest

from fastpath.image import cpio


def archive(entries):
    out = io.BytesIO()
    cpio.write(entries, out)
    return out.getvalue()


def test_a_file_is_a_header_its_name_and_its_data_each_padded_to_four():
    head = (
        b"070701"
        b"00000001"  # inode
        b"000081a4"  # regular file, 0644
        b"00000000"  # uid
        b"00000000"  # gid
        b"00000001"  # links
        b"00000000"  # mtime
        b"00000003"  # size
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000000"
        b"00000002"  # length of the name with its NUL
        b"00000000"
    )
    assert len(head) == 110
    expected = head + b"a\0" + b"xyz\0"
    assert archive({"a": cpio.file(b"xyz")}).startswith(expected)


def test_ends_with_the_trailer():
    data = archive({})
    assert data[110:] == b"TRAILER!!!\0" + b"\0" * 3
    assert len(data) % cpio.ALIGN == 0


def test_a_device_node_carries_its_numbers():
    data = archive({"console": cpio.character_device(5, 1)})
    assert data[6 + 8 : 6 + 16] == b"00002180"  # character device, 0600
    assert data[6 + 9 * 8 : 6 + 11 * 8] == b"00000005" + b"00000001"


def test_parents_that_are_only_implied_come_before_their_children():
    data = archive({"a/b/c": cpio.file(b"")})
    names = [data.index(name) for name in (b"a\0", b"a/b\0", b"a/b/c\0")]
    assert names == sorted(names)


def test_the_same_input_makes_the_same_archive():
    files = {"b": cpio.file(b"1"), "a": cpio.symlink("b")}
    assert archive(files) == archive(dict(reversed(files.items())))


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_busybox_lists_what_was_written():
    data = archive({"d/link": cpio.symlink("file"), "d/file": cpio.file(b"x" * 5)})
    listing = subprocess.run(
        ["busybox", "cpio", "-t"], input=data, capture_output=True, check=True
    )
    assert listing.stdout.split() == [b"d", b"d/file", b"d/link"]


def test_a_host_file_is_copied_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(cpio, "PIECE", 7)
    source = tmp_path / "source"
    source.write_bytes(bytes(range(100)))
    streamed = archive({"a": cpio.host_file(source, 0o600)})
    assert streamed == archive({"a": cpio.file(bytes(range(100)), 0o600)})


def test_a_host_file_is_not_held_in_memory(tmp_path):
    """A file with a hole of 1 GiB: it is opened, not read, until it is written."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(1 << 30)
    assert cpio.host_file(source, 0o600).data == b""


def test_a_host_file_that_shrinks_meanwhile_is_an_error(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(b"x" * 10)
    monkeypatch.setattr(cpio, "PIECE", 4)

    class Out(io.BytesIO):
        def write(self, data):
            source.write_bytes(b"")
            return super().write(data)

    with pytest.raises(cpio.SourceError, match="became shorter") as raised:
        cpio.write({"a": cpio.host_file(source, 0o600)}, Out())
    assert raised.value.path == source


def test_a_host_file_that_the_format_cannot_hold_is_an_error(tmp_path):
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(cpio.SourceError, match="4 GiB"):
        archive({"a": cpio.host_file(source, 0o600)})
