"""MicroVM images from the recipes in vm-images/, built once and cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastpath.vm.spec import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Progress = Callable[[str, int, int], None]

__all__ = ["Image", "build", "known", "with_files"]


def known() -> list[str]:
    """Names of the images that have a recipe, sorted."""
    raise NotImplementedError


def build(
    name: str, *, refresh: bool = False, progress: Progress | None = None
) -> Image:
    """Build image `name`, or return the cached one when no input changed.

    Blocks; call it through `asyncio.to_thread` from a coroutine. Concurrent
    calls, also of other processes, wait for each other.

    Args:
        name: a folder of vm-images/.
        refresh: ask the package archive for newer versions first. Without it
            an image whose recipe and sources did not change needs no network.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        FastpathError: a recipe, package or tool is missing or broken.
    """
    raise NotImplementedError


def with_files(image: Image, files: Mapping[str, Path], out: Path) -> Image:
    """`image` with host files added, as a new initramfs at `out`.

    Args:
        image: left as it is.
        files: absolute guest path -> host file or directory.
        out: initramfs to write; the caller removes it.
    """
    raise NotImplementedError
