"""`fastpath image`: build the images of vm-images/, or say which there are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastpath.commands.progress import build_image
from fastpath.data import IMAGES
from fastpath.errors import FastpathError
from fastpath.image import images, recipe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


BASE = "base"


def build(
    name: str | None, *, refresh: bool, own_kernel: bool, fragments: Sequence[Path]
) -> int:
    """Build an image, or all; return the exit status.

    Args:
        name: which; None: all.
        refresh: whether to ask for newer packages first.
        own_kernel: whether with a kernel of our own: of the base image, if no other.
        fragments: of that kernel's configuration.

    Raises:
        FastpathError: a recipe, package or tool is missing or broken.
    """
    if fragments and not own_kernel:
        raise FastpathError(
            "--kernel-config", "Debian's kernels are as they are", "add --own-kernel"
        )
    if own_kernel:
        image = build_image(name or BASE, refresh=refresh, own_kernel=fragments)
        print(f"{image.name}: kernel {image.kernel_release}, {image.kernel}")  # noqa: T201
        return 0
    for each in [name] if name else _known():
        image = build_image(each, refresh=refresh)
        print(f"{image.name}: kernel {image.kernel_release}, {image.initramfs}")  # noqa: T201
    return 0


def show(name: str | None, *, as_json: bool) -> int:
    """Print the images that can be built; return the exit status.

    Raises:
        FastpathError: there is none, or none of this name.
    """
    known = _known()
    if name is not None and name not in known:
        raise FastpathError(
            f"image {name}", f"unknown; there are {', '.join(known)}", None
        )
    states = [_state(each) for each in ([name] if name else known)]
    if as_json:
        print(json.dumps(states, indent=2))  # noqa: T201
        return 0
    width = max(len(each["name"]) for each in states)
    for each in states:
        built = each["kernel_release"]
        what = f"{each['bytes'] / 1e6:6.1f} MB  Linux {built}" if built else "not built"
        print(f"{each['name']:{width}}  {what}")  # noqa: T201
    return 0


def _state(name: str) -> dict[str, Any]:
    """What is known of an image without building it."""
    image = images.cached(name)
    if image is None:
        return {"name": name, "kernel_release": None, "bytes": None}
    size = image.kernel.stat().st_size + image.initramfs.stat().st_size
    return {
        "name": name,
        "kernel_release": image.kernel_release,
        "bytes": size,
        "kernel": str(image.kernel),
        "initramfs": str(image.initramfs),
    }


def _known() -> list[str]:
    known = recipe.known()
    if not known:
        raise FastpathError(
            "images",
            f"there are no recipes in {IMAGES}",
            "install the package again: they come with it",
        )
    return known
