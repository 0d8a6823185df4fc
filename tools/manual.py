"""Manual pages of all programs, made of their parsers: `python -m tools.manual DIR`.

argparse-manpage writes them; what it doesn't know, exit statuses and examples, is added
as sections of their own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from argparse_manpage.manpage import Manpage

from fastpath.commands import cli
from vhost_user import rng
from vhost_user.options import version
from vhost_user.vsock import cli as vsock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhost_user.options import Parser

PROGRAMS: Final = (cli.parser, vsock.parser, rng.parser)
PROJECT: Final = "vsock-fastpath"


def main(folder: Path) -> int:
    """Write a page for each program and command; return the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        for parser in _with_commands(program()):
            name = parser.prog.replace(" ", "-")
            (folder / f"{name}.1").write_text(page(parser))
    return 0


def page(parser: Parser) -> str:
    """A command's page, in roff."""
    manual = Manpage(parser)
    manual.source = f"{PROJECT} {version()}"
    manual.manual = PROJECT
    manual.description = (parser.description or "").rstrip(".")
    title, name = f".TH {parser.prog.upper()} ", parser.prog.replace(" ", "-")
    text = str(manual).replace(title, f".TH {_escaped(name.upper())} ", 1)
    text = text.partition(".SH COMMAND \\fI")[0]  # those have pages of their own
    parts = [text.rstrip(), ".SH EXIT STATUS", _escaped(parser.status)]
    if parser.examples:
        parts.append(".SH EXAMPLES")
    for what, line in parser.examples:
        parts += [".TP", _escaped(what), f"\\fB{_escaped(line)}\\fR"]
    return "\n".join(parts) + "\n"


def _with_commands(parser: Parser) -> Iterator[Parser]:
    yield parser
    for each in parser.commands.values():
        yield from _with_commands(each)


def _escaped(text: str) -> str:
    """As roff takes it: no escapes, no requests, hyphens that can be copied."""
    text = text.replace("\\", "\\\\").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
