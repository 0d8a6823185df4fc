"""Write the archive that a Linux initramfs is, without root.

An archive of device nodes and files owned by root cannot be collected from a
directory by an ordinary user, and the format is 13 numbers and a name.

Spec: Linux, "initramfs buffer format" (early-userspace/buffer-format).
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping

ALIGN = 4
"""Names and data are padded to this, and so is each archive in a row, bytes."""
TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive, owned by root."""

    mode: int
    """Type and permissions, as in `stat`."""
    data: bytes = b""
    """Content, or where a symbolic link points to."""
    rdev: tuple[int, int] = (0, 0)
    """Major and minor number of a device."""


def directory(mode: int = 0o755) -> Entry:
    """A directory."""
    return Entry(stat.S_IFDIR | mode)


def file(data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(stat.S_IFREG | mode, data)


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
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        links,
        0,  # mtime: the same input makes the same archive
        len(entry.data),
        0,  # major and minor number of the device that holds the file
        0,
        *entry.rdev,
        len(name),
        0,  # checksum, unused in this format
    )
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    out.write(_padded(head))
    out.write(_padded(entry.data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGN)
