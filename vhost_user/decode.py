"""YAML into dataclasses, with the line and the key of everything that is wrong.

A schema is a frozen dataclass; its annotations are the only description of the
format. Field names are snake_case; how they are spelled in the file is the
document's. Unknown and repeated keys are errors, as in Istio's own parser. A
dataclass may raise ValueError for values that do not fit together.

Understood are: `str`, `bool`, enums (by value, or that as a tag: `!Allow`),
`Annotated[T, Parsed(...)]` and the other constraints of `schema.py`, dataclasses,
`tuple[T, ...]`, `Mapping[K, V]`, `T | None`, the types in `_PARSERS`, types with a
`parse` class method (a plain scalar) and types with a `from_tag` class method (a YAML
tag and a scalar, such as `!Exact a`, or an empty list, which is None).
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import gc
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import (
    Annotated,
    Any,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from vhost_user.schema import IpAddress, IpPrefix, parse_ip, parse_prefix

T = TypeVar("T")
Schema: TypeAlias = Any
"""A type as an annotation says it: `str`, `tuple[int, ...]`."""
Value: TypeAlias = Any
"""A value of the schema beside it."""
KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of the document to one value."""
MakeError = Callable[[str, str, str | None], Exception]
"""Makes an error of what is wrong (file, line, key), why, and a hint or None."""

_PARSERS: Mapping[object, Callable[[str], object]] = {
    IpAddress: parse_ip,
    IpPrefix: parse_prefix,
    Path: Path,
}
REQUIRED: Mapping[str, bool] = types.MappingProxyType({"required": True})
"""Metadata of a field that has a default in code, but none in a file."""
ALIASED_VALUES = 100_000
"""Values that aliases of a document may add to as many as it has bytes."""
_TAG = "tag:yaml.org,2002:"
_NOTHING = frozenset({"", "~", "null"})
_NULL = f"{_TAG}null"
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SMALL = 1 << 16
"""Bytes of a document that PyYAML's own, slow parser may read for its better errors."""
_KINDS = {
    yaml.ScalarNode: "a single value",
    yaml.SequenceNode: "a list",
    yaml.MappingNode: "a mapping",
}


@functools.cache
def camel_case(name: str) -> str:
    """The key that a field has in the file: `workload_ips` is `workloadIps`."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


@dataclasses.dataclass(frozen=True, slots=True)
class Spelling:
    """How a file spells the names of fields."""

    of_field: Callable[[str], str]
    """Returns the key of a field."""
    of_key: Callable[[str], str] = str
    """Returns a key as `of_field` spells it."""


CAMEL_CASE = Spelling(camel_case)
SNAKE_CASE = Spelling(str)
SNAKE_OR_KEBAB_CASE = Spelling(str, lambda key: key.replace("-", "_"))


class Document:
    """A file: how it is written, and where each of its values stands.

    Args:
        name: what to call the file in messages.
        error: makes the errors.
        hints: the hint for a wrong value, by its key.
        spelling: of its keys.
        columns: whether messages also have the column.
    """

    def __init__(
        self,
        name: str,
        error: MakeError,
        *,
        hints: Mapping[str, str] | None = None,
        spelling: Spelling = CAMEL_CASE,
        columns: bool = False,
    ) -> None:
        self.name = name
        self.spelling = spelling
        self.make_error = error
        self._hints = hints or {}
        self._columns = columns
        self._marks: dict[KeyPath, yaml.Mark] = {}

    def note(self, path: KeyPath, node: yaml.Node) -> None:
        """Remember `node` as what stands at `path`: a key where there is one."""
        self._marks[path] = node.start_mark

    def note_first(self, path: KeyPath, node: yaml.Node) -> None:
        """The same, unless something is known of `path` already."""
        self._marks.setdefault(path, node.start_mark)

    def error(self, path: KeyPath, why: str, hint: str | None = None) -> Exception:
        """`FILE:LINE: key.path: what is wrong; hint: what to do`.

        A path that is not in the file (a missing key, a value built in code)
        gets the line of what would contain it. Without `hint`, the innermost key that
        has one says it.
        """
        hint = hint or self.hint(path)
        where = self.where(path)
        what = f"{where}: {format_path(path)}" if path else where
        return self.make_error(what, why, hint)

    def hint(self, path: KeyPath) -> str | None:
        """The hint of the innermost key that has one."""
        keys = [key for key in path if isinstance(key, str) and key in self._hints]
        return self._hints[keys[-1]] if keys else None

    def error_at(self, line: int, column: int, why: str) -> Exception:
        """`FILE:LINE: what is wrong`; both count from 0."""
        return self.make_error(self._place(line, column), why, None)

    def where(self, path: KeyPath) -> str:
        """`FILE:LINE` of what stands at `path`, or of what would contain it."""
        known = path
        while known and known not in self._marks:
            known = known[:-1]
        mark = self._marks.get(known)
        return self._place(mark.line, mark.column) if mark else self._place(0, 0)

    def _place(self, line: int, column: int) -> str:
        place = f"{self.name}:{line + 1}"
        return f"{place}:{column + 1}" if self._columns else place


def format_path(path: KeyPath) -> str:
    """`workloads[0].services["default/example.com"]`."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        elif key.isidentifier():
            text += f".{key}" if text else key
        else:
            text += f'["{key}"]'
    return text


def load(file: Path, schema: type[T], document: Document) -> T:
    """Read `file`, which `document` is about, as one value of `schema`.

    Raises:
        Exception: the document's: it cannot be read, is not YAML, or does not fit.
    """
    try:
        data = file.read_bytes()
    except OSError as exc:
        why = exc.strerror or str(exc)
        raise document.make_error(f"{file}", why, None) from exc
    return loads(data, schema, document)


def loads(data: bytes, schema: type[T], document: Document) -> T:
    """Read the bytes of `document` as one value of `schema`.

    Raises:
        Exception: the document's: they are not YAML, or do not fit.
    """
    with _without_gc():
        node = _compose(data, document)
        try:
            decoder = _Decoder(document, len(data) + ALIASED_VALUES)
            value: T = decoder.decode(node, schema, ())
        except RecursionError:
            raise document.error((), "is nested too deeply") from None
    return value


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Nodes are many, and none is garbage before the end: looking is half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Loader(_Parser):  # type: ignore[misc]
    """Finds the tag of a scalar once for all that are spelled alike; that is slow."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._tags: dict[str, str] = {}

    def resolve(self, kind: type[yaml.Node], value: Value, implicit: Value) -> str:
        """Return the tag of a node without one."""
        if kind is not yaml.ScalarNode or not implicit[0]:
            return str(super().resolve(kind, value, implicit))
        tag = self._tags.get(value)
        if tag is None:
            tag = self._tags[value] = super().resolve(kind, value, implicit)
        return tag


def _compose(data: bytes, document: Document) -> yaml.Node:
    try:
        node = _parse(data)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        why = exc.problem or "is not YAML"
        if "nesting depth" in why:  # libyaml's words
            why = "is nested too deeply"
        raise document.error_at(line, column, why) from exc
    except yaml.reader.ReaderError as exc:
        before = data[: exc.position]
        column = len(before) - before.rfind(b"\n") - 1
        raise document.error_at(before.count(b"\n"), column, str(exc.reason)) from exc
    except RecursionError:
        raise document.error_at(0, 0, "is nested too deeply") from None
    if node is None:
        raise document.error_at(0, 0, "the file is empty")
    return node


def _parse(data: bytes) -> yaml.Node | None:
    try:
        return yaml.compose(data, Loader=_Loader)
    except yaml.YAMLError:
        if len(data) > _SMALL:
            raise
    return yaml.compose(data, Loader=yaml.SafeLoader)


@functools.cache
def _fields_of(schema: type[Any]) -> Mapping[str, tuple[Schema, str | None]]:
    """By a field's name: its type, and what to write if a file has to have it."""
    hints = get_type_hints(schema, include_extras=True)
    return {
        field.name: (hints[field.name], _required(field))
        for field in dataclasses.fields(schema)
    }


def _required(field: dataclasses.Field[Any]) -> str | None:
    if field.default is field.default_factory is dataclasses.MISSING:
        return ""
    if not field.metadata.get("required"):
        return None
    key, default = camel_case(field.name), field.default
    if default is dataclasses.MISSING:
        return f"write {key}: {{}} for none"
    return f"write {key}: {'[]' if default == () else str(default).lower()}"


class _Decoder:
    """Walks a node tree along a type."""

    def __init__(self, document: Document, values: int) -> None:
        self._document = document
        self._left = values

    def decode(self, node: yaml.Node, schema: Schema, path: KeyPath) -> Value:
        self._document.note_first(path, node)
        self._left -= 1
        if self._left < 0:  # aliases of aliases: few lines, any number of values
            raise self._document.error(path, "is repeated too often by aliases")
        origin: object = get_origin(schema)
        args = get_args(schema)
        if origin is Annotated:
            return self._annotated(node, args, path)
        if schema in _PARSERS:
            return self._parsed(node, _PARSERS[schema], path)
        if origin in (Union, types.UnionType):
            return self._optional(node, args, path)
        if origin is tuple:
            return self._sequence(node, args[0], path)
        if origin is Mapping:
            return self._mapping(node, args, path)
        if hasattr(schema, "from_tag"):
            return self._tagged(node, schema, path)
        if hasattr(schema, "parse"):
            return self._parsed(node, schema.parse, path)
        if dataclasses.is_dataclass(schema):
            return self._fields(node, schema, path)
        return self._scalar(node, schema, path)

    def _scalar(self, node: yaml.Node, schema: Schema, path: KeyPath) -> Value:
        text = self._text(node, path)
        tag = node.tag.removeprefix(_TAG)
        if schema is str:
            if tag != "str":
                raise self._document.error(
                    path, f'must be a string, not {text or "empty"}; write "{text}"'
                )
            return text
        if schema is bool:
            is_word = text.lower() in ("true", "false")
            if not is_word or tag != "bool":
                shown = f'"{text}"' if is_word and tag == "str" else text
                raise self._document.error(path, f"must be true or false, not {shown}")
            return text.lower() == "true"
        assert issubclass(schema, enum.Enum), schema
        choices = {str(member.value): member for member in schema}
        if tag.startswith("!"):  # serde's other form: !Allow, with nothing behind it
            text = f"{tag} {text}" if text not in _NOTHING else tag[1:]
        if text not in choices:
            raise self._document.error(
                path, f"must be one of {', '.join(choices)}, not {text}"
            )
        return choices[text]

    def _annotated(
        self, node: yaml.Node, args: tuple[Schema, ...], path: KeyPath
    ) -> Value:
        schema, constraint = args
        if schema is str:
            self._scalar(node, str, path)
        return self._parsed(node, constraint.parse, path)

    def _parsed(
        self, node: yaml.Node, parse: Callable[[str], Value], path: KeyPath
    ) -> Value:
        text = self._text(node, path)
        if node.tag == _NULL:
            raise self._document.error(path, "must not be empty")
        try:
            return parse(text)
        except ValueError as exc:
            raise self._document.error(path, str(exc)) from exc

    def _tagged(self, node: yaml.Node, schema: Schema, path: KeyPath) -> Value:
        empty_list = isinstance(node, yaml.SequenceNode) and not node.value
        text = None if empty_list else self._text(node, path)
        try:
            return schema.from_tag(node.tag, text)
        except ValueError as exc:
            raise self._document.error(path, str(exc)) from exc

    def _optional(
        self, node: yaml.Node, args: tuple[Schema, ...], path: KeyPath
    ) -> Value:
        rest = [arg for arg in args if arg is not types.NoneType]
        schema = functools.reduce(operator.or_, rest)
        if isinstance(node, yaml.ScalarNode) and node.tag == _NULL:
            return None
        return self.decode(node, schema, path)

    def _sequence(
        self, node: yaml.Node, schema: Schema, path: KeyPath
    ) -> tuple[Value, ...]:
        self._expect(node, yaml.SequenceNode, path)
        return tuple(
            self.decode(item, schema, (*path, index))
            for index, item in enumerate(node.value)
        )

    def _mapping(
        self, node: yaml.Node, args: tuple[Schema, ...], path: KeyPath
    ) -> Mapping[Value, Value]:
        key_schema, value_schema = args
        return {
            self.decode(key_node, key_schema, (*path, key)): self.decode(
                value_node, value_schema, (*path, key)
            )
            for key, key_node, value_node in self._items(node, path)
        }

    def _fields(self, node: yaml.Node, schema: Schema, path: KeyPath) -> Value:
        spelling = self._document.spelling
        fields = {spelling.of_field(name): name for name in _fields_of(schema)}
        values = {}
        for key, _, value_node in self._items(node, path, spelling.of_key):
            if key not in fields:
                raise self._unknown((*path, key), fields)
            of_field, _ = _fields_of(schema)[fields[key]]
            values[fields[key]] = self.decode(value_node, of_field, (*path, key))
        for key, name in fields.items():
            hint = _fields_of(schema)[name][1]
            if hint is not None and name not in values:
                raise self._document.error((*path, key), "is missing", hint)
        try:
            return schema(**values)
        except ValueError as exc:
            raise self._document.error(path, str(exc)) from exc

    def _unknown(self, path: KeyPath, fields: Iterable[str]) -> Exception:
        import difflib  # what is right needs no hint

        near = difflib.get_close_matches(str(path[-1]), fields, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        hint += f"use one of {', '.join(fields)}"
        known = self._document.hint(path[-1:])
        return self._document.error(path, "unknown field", known or hint)

    def _items(
        self, node: yaml.Node, path: KeyPath, of_key: Callable[[str], str] = str
    ) -> list[tuple[str, yaml.Node, yaml.Node]]:
        self._expect(node, yaml.MappingNode, path)
        items: list[tuple[str, yaml.Node, yaml.Node]] = []
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = of_key(self._text(key_node, path))
            self._document.note((*path, key), key_node)
            if key in seen:
                raise self._document.error((*path, key), "is given twice")
            seen.add(key)
            items.append((key, key_node, value_node))
        return items

    def _text(self, node: yaml.Node, path: KeyPath) -> str:
        self._expect(node, yaml.ScalarNode, path)
        return str(node.value)

    def _expect(self, node: yaml.Node, kind: type[yaml.Node], path: KeyPath) -> None:
        if not isinstance(node, kind):
            raise self._document.error(
                path, f"must be {_KINDS[kind]}, not {_KINDS[type(node)]}"
            )
