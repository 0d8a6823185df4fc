"""Python's bytecode for an image, as the installation of its package would make it.

Without it each program compiles what it imports: 3.9 s for ssl, urllib and asyncio
under tcg, which take 0.6 s with it. Bytecode fits one version of Python, so it
is only made when ours is the image's; the image works without, too.

Spec: PEP 552, unchecked hash-based pycs: the files' times, which an image does not
keep, do not count.
"""

from __future__ import annotations

import importlib.util
import marshal
import sys
import warnings
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from fastpath.image import cpio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIBRARY = f"usr/lib/python{sys.version_info.major}.{sys.version_info.minor}/"
UNCHECKED_HASH = 1
"""Flags of a pyc whose source is never looked at."""


def of(entries: Mapping[str, cpio.Entry]) -> Iterator[tuple[str, cpio.Entry]]:
    """The bytecode files of the standard library in `entries`, if it is ours."""
    for path, entry in entries.items():
        if path.startswith(LIBRARY) and path.endswith(".py") and entry.data:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # they are not about us
                    code = compile(entry.data, f"/{path}", "exec", dont_inherit=True)
            except (SyntaxError, ValueError):
                continue  # a test of the compiler, or a template
            where = PurePosixPath(path)
            tag = f"{where.stem}.{sys.implementation.cache_tag}.pyc"
            yield (
                str(where.parent / "__pycache__" / tag),
                cpio.file(
                    importlib.util.MAGIC_NUMBER
                    + UNCHECKED_HASH.to_bytes(4, "little")
                    + importlib.util.source_hash(entry.data)
                    + marshal.dumps(code)
                ),
            )
