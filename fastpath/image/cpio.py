"""Write the archive that a Linux initramfs is, without root.

An archive of device nodes and files owned by root cannot be collected from a
directory by an ordinary user, and the format is 13 numbers and a name.

Spec: Linux, "initramfs buffer format" (early-userspace/buffer-format).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping
    from pathlib import Path

ALIGN = 4
"""Names and data are padded to this, and so is each archive in a row, bytes."""
TRAILER = "TRAILER!!!"
LARGEST = 2**32 - 1
"""Bytes of a file, which the format has eight digits for."""
PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive, owned by root."""

    mode: int
    """Type and permissions, as in `stat`."""
    data: bytes = b""
    """Content, or where a symbolic link points to."""
    rdev: tuple[int, int] = (0, 0)
    """Major and minor number of a device."""
    source: Path | None = None
    """A host file that has the content, in place of `data`."""


class SourceError(OSError):
    """A host file cannot be read, or not as it was when its size was written."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(why)
        self.path = path


def directory(mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(stat.S_IFDIR | mode)


def file(data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(stat.S_IFREG | mode, data)


def host_file(path: Path, mode: int) -> Entry:
    """A regular file with what the host's `path` has when the archive is written.

    It is copied piece by piece. A pipe or device has no size before its end, so it
    is read here, into memory.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_file():
        return Entry(stat.S_IFREG | mode, source=path)
    return file(path.read_bytes(), mode)


def symlink(target: str) -> Entry:
    """A symbolic link."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def character_device(major: int, minor: int, mode: int = 0o600) -> Entry:
    """A character device."""
    return Entry(stat.S_IFCHR | mode, rdev=(major, minor))


def write(
    entries: Mapping[str, Entry], out: BinaryIO, *, existing: Container[str] = ()
) -> None:
    """Write one archive; archives may follow each other in a file.

    Args:
        entries: path without a leading slash -> file. Directories that are
            only implied are added; parents come before their children.
        out: written to from its position on, a multiple of `ALIGN`.
        existing: implied directories that an archive before this one has; the
            kernel would set their mode, or replace a link by a directory.

    Raises:
        SourceError: a host file cannot be copied.
    """
    tree = dict(entries)
    for path in entries:
        for parent in _parents(path):
            if parent not in existing:
                tree.setdefault(parent, directory())
    for inode, path in enumerate(sorted(tree), start=1):
        _write_one(out, inode, path, tree[path])
    _write_one(out, 0, TRAILER, Entry(0))


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _write_one(out: BinaryIO, inode: int, path: str, entry: Entry) -> None:
    if entry.source is None:
        out.write(_head(inode, path, entry, len(entry.data)))
        out.write(_padded(entry.data))
        return
    try:
        content = entry.source.open("rb")
    except OSError as error:
        raise SourceError(entry.source, error.strerror or str(error)) from error
    with content:
        size = os.fstat(content.fileno()).st_size
        if size > LARGEST:
            raise SourceError(entry.source, "is larger than the 4 GiB of this format")
        out.write(_head(inode, path, entry, size))
        _copy(entry.source, content, out, size)
    out.write(bytes(-size % ALIGN))


def _copy(path: Path, source: BinaryIO, out: BinaryIO, size: int) -> None:
    """Copy as many bytes as the archive says that there are."""
    while size:
        try:
            piece = source.read(min(size, PIECE))
        except OSError as error:
            raise SourceError(path, error.strerror or str(error)) from error
        if not piece:
            raise SourceError(path, "became shorter while it was read")
        out.write(piece)
        size -= len(piece)


def _head(inode: int, path: str, entry: Entry, size: int) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        links,
        0,  # mtime: the same input makes the same archive
        size,
        0,  # major and minor number of the device that holds the file
        0,
        *entry.rdev,
        len(name),
        0,  # checksum, unused in this format
    )
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return _padded(head)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGN)
