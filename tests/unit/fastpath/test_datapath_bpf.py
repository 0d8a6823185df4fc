"""ELF objects by hand: the loader finds the program and fills its parameters in."""

from __future__ import annotations

import struct

import pytest

from fastpath.datapath import bpf
from fastpath.errors import FastpathError

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_REL = 1, 2, 3, 9
R_BPF_64_64, R_BPF_64_32 = 1, 10

# lddw r1, 0; exit: bpf(2) code 0x18 takes two slots.
LOAD_AND_EXIT = bytes.fromhex("1801000000000000 0000000000000000 9500000000000000")


def elf(code=LOAD_AND_EXIT, relocation=R_BPF_64_64):
    """A relocatable object: one program, one undefined symbol `limit`."""
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0x10, 0, 0, 0, 0)
    sections = [
        ("", 0, b"", 0, 0),
        ("tc/prog", SHT_PROGBITS, code, 0, 0),
        (".reltc/prog", SHT_REL, struct.pack("<QQ", 0, 1 << 32 | relocation), 3, 1),
        (".symtab", SHT_SYMTAB, symbols, 4, 1),
        (".strtab", SHT_STRTAB, b"\0limit\0", 0, 0),
    ]
    names = b"".join(name.encode() + b"\0" for name, *_ in sections) + b".names\0"
    sections.append((".names", SHT_STRTAB, names, 0, 0))

    body, headers = b"", b""
    for name, kind, content, link, info in sections:
        at = names.index(name.encode() + b"\0")
        offset = 64 + len(body)
        headers += struct.pack(
            "<IIQQQQIIQQ", at, kind, 0, 0, offset, len(content), link, info, 8, 0
        )
        body += content
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHH", 1, 247, 1, 0, 0, 64 + len(body), 0, 64, 0, 0)
    head += struct.pack("<HHH", 64, len(sections), len(sections) - 1)
    return head + body + headers


def test_a_parameter_becomes_both_halves_of_the_immediate():
    code = bpf.instructions(elf(), "tc/prog", {"limit": 0x1122334455667788})
    assert code == bytes.fromhex("1801000088776655 0000000044332211 9500000000000000")


def test_a_parameter_without_a_value_is_named():
    with pytest.raises(KeyError, match="limit"):
        bpf.instructions(elf(), "tc/prog", {})


def test_a_section_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="tc/other"):
        bpf.instructions(elf(), "tc/other", {"limit": 1})


def test_another_relocation_is_refused():
    with pytest.raises(ValueError, match="relocation type 10"):
        bpf.instructions(elf(relocation=R_BPF_64_32), "tc/prog", {"limit": 1})


def test_a_missing_compiler_is_an_error_with_a_hint(tmp_path, monkeypatch):
    source = tmp_path / "some.bpf.c"
    source.write_text("int x;\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FastpathError, match="apt-get install clang"):
        bpf.compile_source(source)


def test_a_source_is_compiled_once(tmp_path, monkeypatch):
    clang = tmp_path / "clang"
    clang.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho x >> "$2"\n'
    )
    clang.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "some.bpf.c"
    source.write_text("int x;\n")
    first = bpf.compile_source(source)
    assert bpf.compile_source(source) == first
    assert first.read_text() == "x\n"
    source.write_text("int y;\n")
    assert bpf.compile_source(source) != first
