"""Command lines: one kind of help and one kind of error for all programs.

    usage: PROG [options] ...        help: what, options, exit statuses, examples
    PROG: WHAT; hint: PROG --help    a mistake: one line, exit status 2

`Parser` is argparse's, so that what makes manual pages and shell completion of
argparse's parsers makes ours.
"""

from __future__ import annotations

import argparse
import logging
import math
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")

DISTRIBUTION: Final = "vsock-fastpath"
COLUMNS_MIN: Final = 40
COLUMNS_MAX: Final = 100
"""Of a help text, as far as the terminal has them."""
LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
"""Of log lines, from -q to -vv."""


class MisuseError(Exception):
    """A command line is wrong.

    Args:
        command: whose, as its help is called.
        what: what is wrong with it.
    """

    def __init__(self, command: str, what: str) -> None:
        super().__init__(f"{' '.join(what.split())}; hint: {command} --help")


class Parser(argparse.ArgumentParser):
    """A command's options; `-h`, `--version`, `-v` and `-q` are among them.

    Args:
        description: what it does.
        status: its exit statuses, where there is more to say.
        examples: what, and its command line.
        options: as of `ArgumentParser`.
    """

    def __init__(
        self,
        *,
        description: str,
        status: str = "0, or 2 if it could not be done",
        examples: Sequence[tuple[str, str]] = (),
        **options: Any,  # noqa: ANN401  argparse's own
    ) -> None:
        super().__init__(
            description=description,
            formatter_class=_Help,
            allow_abbrev=False,
            add_help=False,
            **options,
        )
        self.commands: dict[str, Parser] = {}
        """Those of its group."""
        self.status = status
        self.examples = tuple(examples)
        self._general = self.add_argument_group("general")
        add = self._general.add_argument
        add("-h", "--help", action="help", help="show this text")
        add("--version", action=_Version, nargs=0, help="show the version")
        add("-v", "--verbose", action="count", default=0, help="say more; -vv: all")
        add("-q", "--quiet", action="store_true", help="say errors only")

    def parse_known_args(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        namespace: Any = None,  # noqa: ANN401
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse has it; what nobody knows is an error of this command's.

        Raises:
            MisuseError: the command line is wrong.
        """
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            kind = "option" if unknown[0].startswith("-") else "argument"
            self.error(f"no such {kind}: {unknown[0]}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage: one error is one line.

        Raises:
            MisuseError: always.
        """
        raise MisuseError(self.prog, message)

    def format_help(self) -> str:
        """Return the help text, `status` and `examples` at its end."""
        self._action_groups.sort(key=lambda group: group is self._general)
        import textwrap  # takes memory, as does shutil

        status = textwrap.fill(
            self.status, _columns(), initial_indent="  ", subsequent_indent="  "
        )
        text = f"{super().format_help()}\nexit status:\n{status}\n"
        if self.examples:
            lines = [f"  # {what}\n  {line}\n" for what, line in self.examples]
            text += "\nexamples:\n" + "".join(lines)
        return text


def level(options: argparse.Namespace, default: int = logging.WARNING) -> int:
    """The level of log lines that -v and -q ask for."""
    at = LEVELS.index(default)
    at = 0 if options.quiet else min(at + options.verbose, len(LEVELS) - 1)
    return LEVELS[at]


class Once(argparse.Action):
    """Store an option's value; given twice, it contradicts itself."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Store `values`, the first time."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice")
        setattr(namespace, self.dest, values)


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make argparse show what `parse` says of a value by a ValueError."""

    def check(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return check


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number of at least `low` and at most `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            limits = f"{low} or more" if high is None else f"{low} to {high}"
            raise ValueError(f"{value} is not {limits}")
        return value

    return checked(parse)


def number(low: float, high: float) -> Callable[[str], float]:
    """A number of at least `low` and at most `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"{text!r} is not a number of {low:g} to {high:g}")
        return value

    return checked(parse)


@checked
def seconds(text: str) -> float:
    """A time above 0; `float` reads "nan", too."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{text!r} is not a number of seconds above 0")
    return value


def version() -> str:
    """The package's."""
    from importlib import metadata  # takes memory

    return metadata.version(DISTRIBUTION)


class _Version(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, *_: object, **__: object
    ) -> NoReturn:
        print(parser.prog.split()[0], version())  # noqa: T201
        parser.exit()


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=_columns())

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[Any],
        prefix: str | None = None,
    ) -> None:
        """Name what has to be there; the options are listed below it."""
        if prefix is None:
            usage = " ".join(filter(None, ["%(prog)s [options]", *map(_word, actions)]))
        super().add_usage(usage, actions, groups, prefix)

    def _format_action(self, action: argparse.Action) -> str:
        """Of a group's commands only, without a line for the group."""
        if action.nargs == argparse.PARSER:
            each = self._iter_indented_subactions(action)
            self._dedent()
            text = "".join(map(self._format_action, each))
            self._indent()
            return text
        return super()._format_action(action)


def _word(action: argparse.Action) -> str:
    """What of an action has to be on a command line."""
    if not action.option_strings:
        name = f"{action.metavar}"
        return f"[{name}]" if action.nargs == "?" else name
    return f"{action.option_strings[-1]} {action.metavar}" if action.required else ""


def _columns() -> int:
    import shutil

    columns = shutil.get_terminal_size().columns - 2
    return min(max(columns, COLUMNS_MIN), COLUMNS_MAX)
