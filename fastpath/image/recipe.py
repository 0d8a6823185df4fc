"""Recipes: what goes into an image, declared in vm-images/NAME/recipe.yaml.

    extends: NAME           start from another recipe; its lists come first
    suite: CODENAME         Debian release that packages come from
    kernel: PACKAGE         Debian package with the kernel, or one that needs it
    modules: [NAME...]      kernel modules, loaded at boot in this order
    own_modules: [NAME...]  same, from guest/kernel, after those
    packages: [NAME...]     Debian packages, with all that they depend on
    omit: [NAME...]         packages and own modules left out again
    applets: PATH           a busybox in the image; gets a link for each applet
    programs: {NAME: PATH}  programs of guest/ and where they go
    files: [...]            path, and one of content, join (a pattern of files
                            that are concatenated), link or directory; mode
    exclude: [PATTERN...]   files of the packages left out; * matches a /, too

A mistake is reported with its file, line and key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003  read when a file is
from dataclasses import dataclass, field, replace
from pathlib import Path  # noqa: TC003  read when a file is
from typing import Annotated, Any, Final

from fastpath.data import IMAGES
from fastpath.errors import FastpathError
from vhost_user import decode
from vhost_user.schema import Parsed

KINDS: Final = ("content", "join", "link", "directory")
"""Of which a file has exactly one."""


def _absolute(text: str) -> str:
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError(f"must be an absolute path, not {text!r}")
    return text


def _mode(text: str) -> int:
    if not re.fullmatch("0[0-7]{3,4}", text):
        raise ValueError(f"must be a mode in octal, such as 0755, not {text}")
    return int(text, 8)


AbsolutePath = Annotated[str, Parsed(_absolute)]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that the recipe itself declares; exactly one kind is set."""

    path: AbsolutePath
    content: str | None = None
    join: str | None = None
    link: str | None = None
    directory: bool | None = None
    mode: Annotated[int, Parsed(_mode)] | None = None

    def __post_init__(self) -> None:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"needs exactly one of {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a recipe says of the image itself."""

    suite: str | None = None
    kernel: str | None = None
    applets: str | None = None
    modules: tuple[str, ...] = ()
    own_modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    omit: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    programs: Mapping[str, AbsolutePath] = field(default_factory=dict)
    files: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFile(Contents):
    """One recipe.yaml, as it is written."""

    extends: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Contents):
    """A recipe with those that it extends already in it."""

    name: str
    source: Path
    suite: str = ""
    kernel: str = ""
    text: str = ""
    """All recipe files that it comes from, for the hash."""


STRINGS: Final = ("suite", "kernel", "applets")
LISTS: Final = ("modules", "own_modules", "packages", "omit", "exclude", "files")


def known() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.parent.name for path in IMAGES.glob("*/recipe.yaml"))


def load(name: str) -> Recipe:
    """Read a recipe and those that it extends.

    Raises:
        FastpathError: there is no such recipe, or it has a mistake.
    """
    return _load(name, ())


def _load(name: str, above: tuple[str, ...]) -> Recipe:
    source = IMAGES / name / "recipe.yaml"
    if name not in known():
        names = ", ".join(known()) or "none"
        raise FastpathError(
            f"image {name}",
            f"there is no {source} (known: {names})",
            "fastpath image list",
        )
    if name in above:
        raise FastpathError(f"image {name}", f"{source} extends itself")
    recipe = parse(name, source, source.read_text(encoding="utf-8"), (*above, name))
    for key in ("suite", "kernel"):
        if not getattr(recipe, key):
            raise FastpathError(f"{source}:1: {key}", "the recipe needs this key")
    return recipe


def parse(name: str, source: Path, text: str, above: tuple[str, ...] = ()) -> Recipe:
    """Make a recipe of its text.

    Args:
        name: the image's.
        source: where the text comes from, for errors.
        text: YAML.
        above: names of the recipes that are being loaded.

    Raises:
        FastpathError: at file, line and key of the first mistake.
    """
    document = decode.Document(str(source), FastpathError, spelling=decode.SNAKE_CASE)
    file = decode.loads(text.encode(), RecipeFile, document)
    recipe = (
        Recipe(name=name, source=source)
        if file.extends is None
        else _load(file.extends, above)
    )
    changes: dict[str, Any] = {
        "name": name,
        "source": source,
        "text": recipe.text + text,
        "programs": {**recipe.programs, **file.programs},
    }
    for key in STRINGS:
        changes[key] = getattr(file, key) or getattr(recipe, key)
    for key in LISTS:
        changes[key] = (*getattr(recipe, key), *getattr(file, key))
    changes["own_modules"] = tuple(
        name for name in changes["own_modules"] if name not in changes["omit"]
    )
    return replace(recipe, **changes)
