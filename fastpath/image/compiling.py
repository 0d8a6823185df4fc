"""Programs of the host that are compiled on it: once, into the cache.

    NAME-CONTENT     a program or an object; CONTENT is a hash of what it is made of

What runs in a guest is a part of its image (`images.py`); what runs in this process
was built with the package.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from typing import TYPE_CHECKING, Final

from fastpath import tools
from fastpath.errors import FastpathError
from fastpath.image.images import cache_directory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_TIMEOUT_S: Final = 60.0


def compiled(
    name: str,
    argv: Sequence[str],
    sources: Sequence[Path],
    *,
    headers: Sequence[Path] = (),
    hint: str,
) -> Path:
    """Compile, unless that was done before; return the result.

    Args:
        name: of the result in the cache: `FOLDER/STEM` or `FOLDER/STEM.SUFFIX`.
        argv: the compiler and its options.
        sources: what it is given.
        headers: what it reads besides, of ours.
        hint: what to install where it fails.

    Raises:
        FastpathError: there is no such compiler, or it fails.
    """
    what = f"cannot compile {sources[0].name}"
    digest = hashlib.sha256()
    for path in (*sources, *headers):
        digest.update(path.read_bytes())
    out = cache_directory() / name
    out = out.with_name(f"{out.stem}-{digest.hexdigest()[:16]}{out.suffix}")
    if out.exists():
        return out
    if (compiler := tools.find(argv[0])) is None:
        raise FastpathError(what, f"{argv[0]} is not installed", hint)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(f".{os.getpid()}")
    done = subprocess.run(
        [compiler, *argv[1:], *map(str, sources), "-o", str(partial)],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        why = done.stderr.strip() or f"{argv[0]} exits with {done.returncode}"
        raise FastpathError(what, why, hint)
    partial.replace(out)
    return out
