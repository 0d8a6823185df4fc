"""Hold the sources to the layers of layers.toml: `python tools/layers.py`.

Finds arrows that run up, between the layers of C and of Python; circles of files in C
and of modules in Python; what is in no layer; files that are too long. In C an arrow is
an #include or the use of another file's symbol, in Python an import, also one for types
only or inside a function.

Exit status 1 if there is a fault that `known` doesn't list, or the other way round.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

HERE = Path(__file__).resolve().parent
NATIVE = "vhost_user/native"
GUEST = "guest"
PROGRAMS = ("agent", "init", "probe")
"""Folders of guest/ that become a program each, with lib/ and include/."""
PACKAGES = ("vhost_user", "fastpath")
SUFFIXES = (".c", ".h", ".py")

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_RINGS = f"-I{HERE.parent / 'lib' / 'ring'}"  # a library: whoever likes includes it
_COMPILE = ("-std=gnu11", "-D_GNU_SOURCE", "-O0", "-w", "-c")


@dataclass(frozen=True, order=True)
class Arrow:
    """`source` needs `target`: files of native/, or Python modules."""

    source: str
    target: str


@dataclass(frozen=True)
class Layers:
    """Names in an order, the lowest first."""

    names: tuple[str, ...]
    parts: Mapping[str, int]
    separator: str

    @classmethod
    def of(cls, table: Iterable[Mapping[str, Any]], separator: str) -> Layers:
        """Return the layers of one list of the table."""
        rows = list(table)
        parts = {part: i for i, row in enumerate(rows) for part in row["parts"]}
        return cls(tuple(row["name"] for row in rows), parts, separator)

    def level(self, name: str) -> int | None:
        """Return how high a file or module is; None: it is in no layer."""
        while name:
            if name in self.parts:
                return self.parts[name]
            name = name.rpartition(self.separator)[0]
        return None

    def faults(self, nodes: Iterable[str], arrows: Iterable[Arrow]) -> Iterator[str]:
        """Say what is in no layer or not there, and which arrows run up."""
        there = set(nodes)
        for node in sorted(there):
            if self.level(node) is None:
                yield f"in no layer: {node}"
        for arrow in sorted(set(arrows)):
            low, high = self.level(arrow.source), self.level(arrow.target)
            if arrow.target not in there:
                yield f"not there: {arrow.target}, which {arrow.source} needs"
            elif low is not None and high is not None and low < high:
                yield (
                    f"arrow up: {arrow.source} -> {arrow.target} "
                    f"({self.names[low]} -> {self.names[high]})"
                )


# ---- arrows ----


def includes(native: Path, files: Iterable[Path]) -> Iterator[Arrow]:
    """Return who includes which file of ours; paths start at `native`."""
    for path in sorted(files):
        for name in _INCLUDE.findall(path.read_text()):
            yield Arrow(path.relative_to(native).as_posix(), name)


def symbols(native: Path, files: Iterable[Path]) -> Iterator[Arrow]:
    """Compile all files; return who uses what another one of them defines."""
    sources = sorted(path for path in files if path.suffix == ".c")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        objects = [Path(folder, f"{i}.o") for i in range(len(sources))]
        listed = list(pool.map(functools.partial(_nm, native), sources, objects))
    names = [source.relative_to(native).as_posix() for source in sources]
    home = {
        symbol: name
        for name, found in zip(names, listed, strict=True)
        for symbol, kind in found
        if kind.isupper() and kind != "U"
    }
    for name, found in zip(names, listed, strict=True):
        for symbol, kind in found:
            if kind == "U" and symbol in home:
                yield Arrow(name, home[symbol])


def _nm(native: Path, source: Path, compiled: Path) -> list[tuple[str, str]]:
    compiler = os.environ.get("CC", "gcc")
    subprocess.run(
        [compiler, *_COMPILE, f"-I{native}", _RINGS, str(source), "-o", str(compiled)],
        check=True,
    )
    nm = ["nm", "--format=posix", str(compiled)]
    listing = subprocess.run(nm, check=True, capture_output=True, text=True)
    rows = (line.split() for line in listing.stdout.splitlines())
    return [(row[0], row[1]) for row in rows]


def modules(root: Path) -> dict[str, Path]:
    """Return the Python modules of both packages by name."""
    found = {}
    for package in PACKAGES:
        for path in (root / package).rglob("*.py*"):
            if path.suffix in {".py", ".pyi"}:
                name = ".".join(path.relative_to(root).with_suffix("").parts)
                if name != f"{package}.__init__":  # else all would be below it
                    name = name.removesuffix(".__init__")
                found[name] = path
    return found


def imports(known: Mapping[str, Path]) -> Iterator[Arrow]:
    """Return which module imports which other one of ours."""
    for name, path in sorted(known.items()):
        for target in _imported(ast.parse(path.read_text()), known):
            if target in known and target != name:
                yield Arrow(name, target)


def _imported(tree: ast.Module, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


# ---- faults ----


def circles(arrows: Iterable[Arrow]) -> Iterator[str]:
    """Say which files or modules need each other, all of a circle in one line."""
    targets: dict[str, set[str]] = {}
    for arrow in arrows:
        targets.setdefault(arrow.source, set()).add(arrow.target)
    reach = {node: _reachable(node, targets) for node in sorted(targets)}
    told: set[str] = set()
    for node, reached in reach.items():
        if node in reached and node not in told:
            members = sorted(m for m in reached if node in reach.get(m, ()))
            told.update(members)
            yield f"circle: {' '.join(members)}"


def _reachable(start: str, targets: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    left = [start]
    while left:
        more = targets.get(left.pop(), set()) - reached
        reached |= more
        left += more
    return reached


def long_files(root: Path, lines: Mapping[str, Any]) -> Iterator[str]:
    """Say which files have more lines than they may."""
    for folder in lines["folders"]:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.suffix not in SUFFIXES or name in lines["generated"]:
                continue
            native = name.startswith(f"{NATIVE}/") and path.suffix != ".py"
            limit = lines["native" if native else "any"]
            if len(path.read_text().splitlines()) > limit:
                yield f"more than {limit} lines: {name}"


def guest_programs(guest: Path) -> list[list[Path]]:
    """Return the files of each program; they share some, and names of functions."""
    shared = [*guest.glob("include/*"), *guest.glob("lib/*.[ch]")]
    return [[*shared, *(guest / name).rglob("*.[ch]")] for name in PROGRAMS]


def faults_in_c(
    root: Path, programs: Iterable[list[Path]], rows: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return the faults of C sources, each program's by itself, once."""
    layers = Layers.of(rows, "/")
    found: dict[str, None] = {}
    for paths in programs:
        files = [path.relative_to(root).as_posix() for path in paths]
        arrows = [*includes(root, paths), *symbols(root, paths)]
        found.update(dict.fromkeys([*layers.faults(files, arrows), *circles(arrows)]))
    return list(found)


def faults(root: Path, table: Mapping[str, Any]) -> list[str]:
    """Return all faults of a source tree, a line each."""
    known = modules(root)
    in_python = list(imports(known))
    native, guest = root / NATIVE, root / GUEST
    return [
        *faults_in_c(native, [list(native.rglob("*.[ch]"))], table["native"]),
        *faults_in_c(guest, guest_programs(guest), table["guest"]),
        *Layers.of(table["python"], ".").faults(known, in_python),
        *circles(in_python),
        *long_files(root, table["lines"]),
    ]


def differences(root: Path, table: Mapping[str, Any]) -> list[str]:
    """Return what to fix, in the sources or in the table's list of known faults."""
    found, known = faults(root, table), table["known"]["faults"]
    gone = (fault for fault in known if fault not in found)
    return [
        *(fault for fault in found if fault not in known),
        *(f"fixed, remove it from tools/layers.toml: {fault}" for fault in gone),
    ]


def main() -> int:
    """Print what is to fix; return the exit status."""
    table = tomllib.loads((HERE / "layers.toml").read_text())
    lines = differences(HERE.parent, table)
    sys.stderr.writelines(f"layers: {line}\n" for line in lines)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
