"""A guest's kernel folder for tests of what compiles it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def kernel_sources(folder: Path, name: str, text: str) -> Path:
    """Sources of a module that takes a header from the folder beside it.

    Args:
        folder: is made.
        name: of a file more, which says how it is built.
        text: of that.
    """
    (folder / "kernel").mkdir(parents=True)
    (folder / "include").mkdir()
    (folder / "include" / "shared.h").write_text("#define ANSWER 42\n")
    (folder / "kernel" / name).write_text(text)
    source = '#include "../include/shared.h"\nint answer = ANSWER;\n'
    (folder / "kernel" / "tsi.c").write_text(source)
    return folder
