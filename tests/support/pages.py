"""What the pages of the project name: commands, targets, files, headings.

The names are found in Markdown: code spans and indented blocks are code, all else is
prose. `test_pages.py` holds them to the tree.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
WIDTH: Final = 100

_INDENTED: Final = "    "
_SPAN: Final = re.compile(r"`([^`]+)`")
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_SECTION: Final = re.compile(r'([\w-]+\.md)[`)\]]*,\s+"([^"]+)"')
_PATH: Final = re.compile(r"(?<![\w./<{$~-])(?:[\w.*-]+/)*[\w.*-]*\w(?![\w/])/?")
_SUFFIXES: Final = frozenset(
    {".c", ".dot", ".h", ".md", ".py", ".pyi", ".svg", ".toml", ".yaml"}
)
_ITEM: Final = re.compile(r"^\s*(?:[-*]|\d+\.) ")


@dataclass(frozen=True, slots=True)
class Command:
    """A command as a reader would type it, without what it is given by a shell."""

    words: tuple[str, ...]

    @property
    def options(self) -> list[str]:
        """Return its own options, by name; those behind `--` are another's."""
        own = self.words[: self.words.index("--")] if "--" in self.words else self.words
        return [word.partition("=")[0] for word in own if re.match(r"--?[a-z]", word)]


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @cached_property
    def text(self) -> str:
        """Return all of it."""
        return self.path.read_text(encoding="utf-8")

    @property
    def name(self) -> str:
        """Return its path in the tree."""
        return str(self.path.relative_to(ROOT))

    def prose(self) -> Iterator[tuple[int, str]]:
        """Yield numbers and lines of what is neither a table nor code."""
        fenced = block = False
        before = ""
        for number, line in enumerate(self.text.splitlines(), 1):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif not fenced and line.strip():
                indented = line.startswith(_INDENTED)
                if not before.strip() or not indented:
                    block = indented and not _ITEM.match(line)
                if not block and not line.lstrip().startswith("|"):
                    yield number, line
            before = line

    def code(self) -> list[str]:
        """Return what is code: spans, and the lines of blocks."""
        of_prose = {number for number, _ in self.prose()}
        lines = self.text.splitlines()
        blocks = [
            line
            for number, line in enumerate(lines, 1)
            if number not in of_prose and not line.lstrip().startswith(("|", "```"))
        ]
        spans = [" ".join(span.split()) for span in _SPAN.findall(self.text)]
        joined = "\n".join(blocks).replace("\\\n", " ")
        return [*spans, *(line.strip() for line in joined.splitlines() if line.strip())]

    def settings(self) -> list[str]:
        """Return the blocks that are a file of `fastpath ztunnel`."""
        blocks = re.findall(r"(?:^    .*\n)+", self.text, re.MULTILINE)
        return [
            textwrap.dedent(block)
            for block in blocks
            if re.search(r"^ +sandboxes:$", block, re.MULTILINE)
        ]

    def commands(self, *programs: str) -> list[Command]:
        """Return the commands that begin with one of `programs`."""
        found = []
        for line in self.code():
            for part in re.split(r"[|;&()]", re.sub(r" #.*|   .*", "", line)):
                words = _split(part.removeprefix("$ ").strip())
                while words and (words[0] in {"sudo", "env"} or "=" in words[0]):
                    words = words[1:]
                if words and Path(words[0]).name in programs:
                    found.append(Command((Path(words[0]).name, *words[1:])))
        return found

    def options(self) -> set[str]:
        """Return options that stand for themselves in prose."""
        spans = _SPAN.findall(self.text)
        return {span.split()[0].partition("=")[0] for span in spans if span[:2] == "--"}

    def links(self) -> list[str]:
        """Return the targets of links in the tree."""
        return [link for link in _LINK.findall(self.text) if "://" not in link]

    def sections(self) -> list[tuple[str, str]]:
        """Return what is named as `page.md, "Heading"`."""
        return [
            (page, " ".join(title.replace("`", "").split()))
            for page, title in _SECTION.findall(self.text)
        ]

    def headings(self) -> set[str]:
        """Return its headings, without marks of code."""
        return {title.replace("`", "") for title in _HEADING.findall(self.text)}

    def anchors(self) -> set[str]:
        """Return what a link may have behind `#`."""
        return {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            for title in self.headings()
        }

    def files(self) -> set[str]:
        """Return the names of files of the tree, as they stand there."""
        return {
            found
            for found in _PATH.findall(self.text)
            if "://" not in found and Path(found).suffix in _SUFFIXES
        }


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def pages() -> list[Page]:
    """Return all of them but the change log, which is about what was."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/*/*.md")]
    return [
        Page(path)
        for path in sorted(found)
        if path.name != "CHANGELOG.md" and not path.parts[-3].startswith((".", "build"))
    ]
