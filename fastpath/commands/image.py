"""`fastpath image`: build the images of vm-images/, or say which there are."""

from __future__ import annotations

from fastpath.commands.progress import build_image
from fastpath.errors import FastpathError
from fastpath.image import recipe


def build(name: str | None, *, refresh: bool) -> int:
    """Build an image, or all; return the exit status.

    Raises:
        FastpathError: a recipe, package or tool is missing or broken.
    """
    for each in [name] if name else _known():
        image = build_image(each, refresh=refresh)
        print(f"{image.name}: kernel {image.kernel_release}, {image.initramfs}")  # noqa: T201
    return 0


def show(name: str | None) -> int:
    """Print the names of images that can be built; return the exit status.

    Raises:
        FastpathError: there is none, or none of this name.
    """
    known = _known()
    if name is not None and name not in known:
        raise FastpathError(
            f"image {name}", f"unknown; there are {', '.join(known)}", None
        )
    for each in [name] if name else known:
        print(each)  # noqa: T201
    return 0


def _known() -> list[str]:
    known = recipe.known()
    if not known:
        raise FastpathError(
            "images",
            f"there are no recipes in {recipe.IMAGES}",
            "run fastpath from a checkout: an installed package does not have them",
        )
    return known
