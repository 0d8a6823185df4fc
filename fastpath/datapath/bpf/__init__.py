"""Compile and load the BPF programs of this folder, with no library between.

clang compiles a source once into the user's cache. An ELF section is one
program; the undefined symbols that it refers to are its parameters, and
`load` writes their values where the relocations point. There are no maps, no
BTF and no other relocations, which is why so little is enough.

Spec: bpf(2); Linux, Documentation/bpf/llvm_reloc.rst, "Different Relocation
Types" (R_BPF_64_64); ELF-64 Object File Format, version 1.5.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from fastpath.errors import FastpathError
from fastpath.image.compiling import compiled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BPF_PROG_LOAD: Final = 5
BPF_PROG_TYPE_SCHED_CLS: Final = 3

# The head of `union bpf_attr` for BPF_PROG_LOAD: type, number of instructions,
# instructions, license, log level, log length, log, kernel version, flags, name.
_PROG_LOAD: Final = struct.Struct("=IIQQIIQII16s")

_SYSCALL_BPF: Final = {"x86_64": 321, "aarch64": 280}
_LOG_LEN: Final = 1 << 20

_SECTION_HEADER: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_RELOCATION: Final = struct.Struct("<QQ")
_SHT_SYMTAB: Final = 2
_SHT_REL: Final = 9
_R_BPF_64_64: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Section(NamedTuple):
    """One section of an ELF object: the header's fields that count here."""

    name: str
    kind: int
    body: bytes
    link: int
    """Of a symbol table: its strings' section."""
    info: int
    """Of relocations: the section that they apply to."""


def compile_source(source: Path) -> Path:
    """Compile `source` for the BPF machine, once; later calls find the object.

    Returns:
        The object file, in the cache.

    Raises:
        FastpathError: clang or the kernel's headers are missing.
    """
    # The target has no headers of its own: asm/ is the host's.
    headers = f"/usr/include/{platform.machine()}-linux-gnu"
    argv = ["clang", "-O2", "-target", "bpf", "-Wall", "-Wextra", "-Wconversion"]
    argv += ["-Werror", "-idirafter", headers, "-c"]
    hint = "sudo apt-get install clang linux-libc-dev"
    return compiled(f"bpf/{source.name.split('.')[0]}.o", argv, [source], hint=hint)


def load(elf: Path, section: str, parameters: Mapping[str, int]) -> int:
    """Load the tc program in `section`.

    Args:
        elf: what `compile_source` returned.
        section: such as "tc/encap".
        parameters: a value, up to 64 bits, for each undefined symbol.

    Returns:
        The program's descriptor; the caller closes it. A filter that the
        program is attached to keeps the program.

    Raises:
        FastpathError: this process may not load BPF programs.
        OSError: the kernel refused the program; the text has the verifier's end.
    """
    code = instructions(elf.read_bytes(), section, parameters)
    name = section.rpartition("/")[2]
    try:
        return _load(code, name, log=None)
    except PermissionError as exc:
        raise FastpathError(
            f"cannot load the BPF program {name}",
            "root of the whole host is needed (CAP_BPF in the first user namespace)",
            "run with sudo, or use a kernel with Geneve: sudo modprobe geneve",
        ) from exc
    except OSError as exc:
        log = ctypes.create_string_buffer(_LOG_LEN)
        try:
            return _load(code, name, log=log)
        except OSError:
            last = log.value.decode(errors="replace").strip().splitlines()[-3:]
            raise OSError(
                exc.errno, f"{exc.strerror}: BPF program {name}: " + " / ".join(last)
            ) from exc


def instructions(elf: bytes, section: str, parameters: Mapping[str, int]) -> bytes:
    """The program in `section` of the object `elf`, its parameters filled in.

    Raises:
        KeyError: no such section, or a parameter without a value.
    """
    sections = list(_sections(elf))
    index, code = next(
        ((i, bytearray(s.body)) for i, s in enumerate(sections) if s.name == section),
        (0, None),
    )
    if code is None:
        raise KeyError(section)
    symbols = _symbols(sections)
    for relocations in sections:
        if relocations.kind != _SHT_REL or relocations.info != index:
            continue
        for offset, info in _RELOCATION.iter_unpack(relocations.body):
            if info & 0xFFFF_FFFF != _R_BPF_64_64:
                raise ValueError(f"{section}: relocation type {info & 0xFFFF_FFFF}")
            _set_immediate(code, offset, parameters[symbols[info >> 32]])
    return bytes(code)


def bpf(command: int, attr: bytearray) -> int:
    """The system call; no library wraps it.

    Args:
        command: BPF_...
        attr: `union bpf_attr`, or its head; the kernel may write to it.

    Raises:
        OSError: it failed.
    """
    number = _SYSCALL_BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2): unknown machine {platform.machine()}")
    union = (ctypes.c_char * len(attr)).from_buffer(attr)
    result = int(_libc.syscall(number, command, ctypes.byref(union), len(attr)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _load(code: bytes, name: str, *, log: ctypes.Array[ctypes.c_char] | None) -> int:
    insns = ctypes.create_string_buffer(code, len(code))
    gpl = ctypes.create_string_buffer(b"GPL")
    attr = _PROG_LOAD.pack(
        BPF_PROG_TYPE_SCHED_CLS,
        len(code) // 8,
        ctypes.addressof(insns),
        ctypes.addressof(gpl),
        0 if log is None else 1,
        0 if log is None else len(log),
        0 if log is None else ctypes.addressof(log),
        0,
        0,
        name.encode()[:15],
    )
    return bpf(BPF_PROG_LOAD, bytearray(attr))


def _set_immediate(code: bytearray, offset: int, value: int) -> None:
    """Write the halves of a 64-bit load: the `imm` of two instructions."""
    low, high = value & 0xFFFF_FFFF, value >> 32
    struct.pack_into("<I", code, offset + 4, low)
    struct.pack_into("<I", code, offset + 12, high)


def _sections(elf: bytes) -> Iterator[_Section]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    _, count, names_index = struct.unpack_from("<3H", elf, 0x3A)
    headers = [
        _SECTION_HEADER.unpack_from(elf, table + i * _SECTION_HEADER.size)
        for i in range(count)
    ]
    names = elf[headers[names_index][4] :]
    for name, kind, _, _, offset, size, link, info, _, _ in headers:
        body = elf[offset : offset + size]
        yield _Section(_string(names, name), kind, body, link, info)


def _symbols(sections: list[_Section]) -> list[str]:
    table = next(s for s in sections if s.kind == _SHT_SYMTAB)
    strings = sections[table.link].body
    return [_string(strings, entry[0]) for entry in _SYMBOL.iter_unpack(table.body)]


def _string(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()
