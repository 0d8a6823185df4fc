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

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "vm-images"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that the recipe itself declares; exactly one kind is set."""

    path: str
    content: str | None = None
    join: str | None = None
    link: str | None = None
    directory: bool | None = None
    mode: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A recipe with those that it extends already in it."""

    name: str
    source: Path
    text: str = ""
    """All recipe files that it comes from, for the hash."""
    suite: str = ""
    kernel: str = ""
    applets: str | None = None
    modules: tuple[str, ...] = ()
    own_modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    omit: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    programs: dict[str, str] = field(default_factory=dict)
    files: tuple[File, ...] = ()


STRINGS = ("suite", "kernel", "applets")
LISTS = ("modules", "own_modules", "packages", "omit", "exclude")
KINDS = ("content", "join", "link", "directory")
FILE_TYPES: dict[str, type] = {
    "path": str,
    "content": str,
    "join": str,
    "link": str,
    "directory": bool,
    "mode": int,
}


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
    keys = _Mapping.of_text(source, text)
    keys.only("extends", "files", "programs", *STRINGS, *LISTS)
    parent = keys.get("extends", str)
    recipe = (
        _load(parent, above) if parent is not None else Recipe(name=name, source=source)
    )
    changes: dict[str, Any] = {
        "name": name,
        "source": source,
        "text": recipe.text + text,
    }
    for key in STRINGS:
        if (value := keys.get(key, str)) is not None:
            changes[key] = value
    for key in LISTS:
        changes[key] = (*getattr(recipe, key), *keys.strings(key))
    changes["own_modules"] = tuple(
        name for name in changes["own_modules"] if name not in changes["omit"]
    )
    programs = keys.mapping("programs")
    changes["programs"] = recipe.programs | {
        program: programs.absolute(program) for program in programs
    }
    files = (_file(entry) for entry in keys.mappings("files"))
    changes["files"] = (*recipe.files, *files)
    return replace(recipe, **changes)


def _file(entry: _Mapping) -> File:
    entry.only(*FILE_TYPES)
    path = entry.absolute("path")
    values = {key: entry.get(key, FILE_TYPES[key]) for key in FILE_TYPES}
    if sum(values[kind] is not None for kind in KINDS) != 1:
        raise entry.error("path", f"needs exactly one of {', '.join(KINDS)}")
    return File(**values | {"path": path})


class _Mapping:
    """A YAML mapping that knows where each of its keys stands."""

    def __init__(self, source: Path, node: yaml.Node, key: str) -> None:
        self._source = source
        self._lines: dict[str, int] = {}
        self._values: dict[str, yaml.Node] = {}
        self._line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            raise self.error(key, "must be a mapping")
        for name, value in node.value:
            text, line = str(name.value), name.start_mark.line + 1
            if text in self._values:
                raise FastpathError(f"{source}:{line}: {text}", "is there twice")
            self._lines[text] = line
            self._values[text] = value

    @classmethod
    def of_text(cls, source: Path, text: str) -> _Mapping:
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise FastpathError(
                f"{source}:{line}", f"not YAML: {error.problem}"
            ) from None
        return cls(source, node or yaml.MappingNode("", [], *_NOWHERE), "recipe")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def error(self, key: str, why: str) -> FastpathError:
        line = self._lines.get(key, self._line)
        return FastpathError(f"{self._source}:{line}: {key}", why)

    def only(self, *keys: str) -> None:
        for key in self._values:
            if key not in keys:
                raise self.error(key, f"unknown key (known: {', '.join(sorted(keys))})")

    def get(self, key: str, kind: type) -> Any:  # noqa: ANN401
        if key not in self._values:
            return None
        value = _construct(self._values[key])
        if type(value) is not kind:
            raise self.error(key, f"must be a {kind.__name__}, not {value!r}")
        return value

    def absolute(self, key: str) -> str:
        value = self.get(key, str)
        if value is None or not value.startswith("/") or ".." in value.split("/"):
            raise self.error(key, "needs an absolute path")
        return str(value)

    def strings(self, key: str) -> list[str]:
        values = self.get(key, list) or []
        for value in values:
            if not isinstance(value, str):
                raise self.error(key, f"must hold strings, not {value!r}")
        return list(values)

    def mapping(self, key: str) -> _Mapping:
        node = self._values.get(key, yaml.MappingNode("", [], *_NOWHERE))
        return _Mapping(self._source, node, key)

    def mappings(self, key: str) -> list[_Mapping]:
        self.get(key, list)
        nodes = self._values[key].value if key in self._values else []
        return [_Mapping(self._source, node, key) for node in nodes]


_NOWHERE = (yaml.Mark("", 0, 0, 0, "", 0),) * 2


def _construct(node: yaml.Node) -> Any:  # noqa: ANN401
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()
