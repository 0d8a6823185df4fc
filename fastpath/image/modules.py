"""Kernel modules: which ones a list of modules needs, and in which order.

A kernel package has no modules.dep (its installation would make one), but each
module names the ones it needs in its .modinfo section.

Spec: Linux, include/linux/module.h (MODULE_INFO) and modprobe(8): a dash and an
underscore in a module's name are the same.
"""

from __future__ import annotations

import lzma
import re
from typing import TYPE_CHECKING

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MODULE_FILE = re.compile(r"/(?P<name>[^/]+)\.ko(?P<packed>\.xz)?$")
DEPENDS = re.compile(rb"\0depends=(?P<names>[^\0]*)\0")


def name_of(path: str) -> str | None:
    """The module in file `path`, spelt as the kernel does; None if it is none."""
    match = MODULE_FILE.search(path)
    return match["name"].replace("-", "_") if match else None


def unpack(path: str, data: bytes) -> bytes:
    """The ELF file in a module that may be compressed with xz."""
    return lzma.decompress(data) if path.endswith(".xz") else data


def in_load_order(
    wanted: Iterable[str], modules: Mapping[str, bytes], builtin: Iterable[str]
) -> list[str]:
    """Sort `wanted` and all that they need, dependencies first.

    Args:
        wanted: names, as the kernel spells them.
        modules: name -> ELF file.
        builtin: names that the kernel itself contains; they are left out.

    Raises:
        FastpathError: a module does not exist in this kernel.
    """
    order: list[str] = []
    seen = set(builtin)

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        if name not in modules:
            raise FastpathError(
                f"kernel module {name}", "the kernel package does not have it"
            )
        match = DEPENDS.search(modules[name])
        for needed in match["names"].decode().split(",") if match else ():
            if needed:
                visit(needed.replace("-", "_"))
        order.append(name)

    for name in wanted:
        visit(name)
    return order
