"""Build `vhost_user._vu` from the C files next to this one and in its folders.

And beside it `_maker`, the program of maker/.

Run it by path (`python vhost_user/native/build.py`), never as a module: importing
`vhost_user` needs what this builds. `VU_SANITIZE=address,undefined` (or `thread`) in
the environment builds it with those sanitizers.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIBRARIES = ["ssl", "crypto", "IPSec_MB", "nghttp2"]
RINGS = ROOT / "lib" / "ring"  # a library that is also for others
MAIN = HERE / "maker" / "main.c"
MAKER = (MAIN, HERE / "maker" / "maker.c")
SOURCES = sorted({*HERE.rglob("*.c"), *RINGS.glob("*.c")} - {MAIN})
HEADERS = sorted([*HERE.rglob("*.h"), *RINGS.glob("*.h")])
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
# cffi's own generated file: its conversions are not ours to fix
GENERATED = ["-Wno-conversion", "-Wno-sign-conversion", "-Wno-unused-parameter"]
IOVEC = "struct iovec { void *iov_base; size_t iov_len; };\n"


def declarations() -> str:
    """Return vu.h and what it includes as cffi's parser takes it: no preprocessor."""
    joined = re.sub(r"\\\n", " ", _included("vu.h", set()))
    return IOVEC + re.sub(r"^#.*$", "", joined, flags=re.MULTILINE)


def _included(name: str, seen: set[str]) -> str:
    """Return a header with its includes of ours in their places, each once."""
    if name in seen:
        return ""
    seen.add(name)
    return re.sub(
        r'^#include "(.*)"$',
        lambda include: _included(include[1], seen),
        (HERE / name).read_text(),
        flags=re.MULTILINE,
    )


def linked_whole() -> list[str]:
    """Return the flags by which small functions are inlined across files.

    A packet goes through half a dozen of them. Not with sanitizers, nor with clang,
    which needs a linker's plugin for it that Debian has in another package.
    """
    plain = not os.environ.get("VU_SANITIZE") and "clang" not in os.environ.get(
        "CC", ""
    )
    return ["-O2", "-flto=auto"] if plain else []


def flags() -> list[str]:
    """Return compiler flags; warnings are errors in our files."""
    sanitize = os.environ.get("VU_SANITIZE")
    extra = [f"-fsanitize={sanitize}", "-O1", "-g", "-fno-omit-frame-pointer"]
    extra.append("-UNDEBUG")  # Python's own flags turn assert() off
    if sanitize == "thread":
        extra.append("-Wno-tsan")  # it sees no fences; what they order is atomic
    return [
        "-std=gnu11",
        "-O2",
        "-g",
        "-D_GNU_SOURCE",
        "-fvisibility=hidden",
        *WARNINGS,
        *GENERATED,
        *linked_whole(),
        *(extra if sanitize else []),
    ]


def build_maker(package: Path) -> None:
    """Build the program that makes sockets in other network namespaces.

    Args:
        package: the directory of `vhost_user`.
    """
    sanitize = os.environ.get("VU_SANITIZE")
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    argv = [*shlex.split(compiler), "-std=gnu11", "-O2", "-g", "-D_GNU_SOURCE"]
    argv += [*WARNINGS, *([f"-fsanitize={sanitize}"] if sanitize else [])]
    argv += [f"-I{HERE}", *map(str, MAKER), "-o", str(package / "_maker")]
    subprocess.run(argv, check=True)


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "vhost_user._vu",
    '#include "vu.h"',
    sources=[str(path.relative_to(ROOT)) for path in SOURCES],
    depends=[str(path.relative_to(ROOT)) for path in HEADERS],
    include_dirs=[str(folder.relative_to(ROOT)) for folder in (HERE, RINGS)],
    libraries=LIBRARIES,
    extra_compile_args=flags(),
    extra_link_args=linked_whole()
    + [f"-fsanitize={kind}" for kind in [os.environ.get("VU_SANITIZE")] if kind],
)

if __name__ == "__main__":
    os.chdir(ROOT)
    ffibuilder.compile(tmpdir=str(ROOT), verbose=False)
    build_maker(HERE.parent)
