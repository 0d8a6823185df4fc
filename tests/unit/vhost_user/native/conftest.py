"""Files of native/, built alone: without an engine, rings, sockets or threads."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from cffi import FFI

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[3] / "vhost_user" / "native"
FLAGS = [
    "-std=gnu11",
    "-O1",
    "-g",
    "-D_GNU_SOURCE",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-shared",
    "-fPIC",
    "-fsanitize=undefined",
    "-fno-sanitize-recover=all",
]


def declarations(header):
    """Return a header as cffi's parser takes it: plain numbers instead of macros."""
    text = header.read_text()
    for name, value in re.findall(
        r"^#define (\w+)\s+\(?(\d\w*)\)?\s", text, re.MULTILINE
    ):
        number = value.rstrip("Uu")
        text = re.sub(rf"\b{name}\b(?!\s+{value})", number, text)
    return re.sub(r"^(#|static inline).*$", "", text, flags=re.MULTILINE)


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Return a function that builds files and returns cffi's view of them."""

    def build_library(cdef, *sources, options=()):
        ffi = FFI()
        ffi.cdef("struct iovec { void *iov_base; size_t iov_len; };\n" + cdef)
        out = tmp_path_factory.mktemp("native") / "library.so"
        command = ["gcc", *FLAGS, f"-I{NATIVE}", *map(str, sources), "-o", str(out)]
        subprocess.run([*command, *options, "-lpthread"], check=True)
        return ffi, ffi.dlopen(str(out))

    return build_library
