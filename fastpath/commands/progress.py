"""Building an image with a progress bar on stderr.

rich is imported when there is something to show: an image that is built
already costs nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from fastpath import stdio
from fastpath.image import images

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.progress import Progress, TaskID

    from fastpath.image.images import Image


def build_image(
    name: str, *, refresh: bool = False, own_kernel: Sequence[Path] | None = None
) -> Image:
    """Build image `name`, or return the cached one; blocks. As `images.build`.

    Raises:
        FastpathError: a recipe, package or tool is missing or broken.
    """
    with contextlib.ExitStack() as stack:
        bar: list[tuple[Progress, TaskID]] = []

        def show(step: str, done: int, total: int) -> None:
            if not bar:
                progress = stack.enter_context(_progress())
                bar.append((progress, progress.add_task("", total=None)))
            progress, task = bar[0]
            progress.update(
                task, description=f"image {name}: {step}", completed=done, total=total
            )

        return images.build(name, refresh=refresh, own_kernel=own_kernel, progress=show)


def _progress() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=stdio.console(progress=True),
        transient=True,
    )
