"""README, CONTRIBUTING, ARCHITECTURE and docs name what there is, in lines of 100."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer.main

from fastpath.commands import cli
from tests.support import pages
from tests.support.pages import ROOT, WIDTH
from vhost_user import rng
from vhost_user.vsock import cli as vsock_cli

if TYPE_CHECKING:
    from tests.support.pages import Page

PAGES = pages.pages()
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_a_back_end_has_the_options(page: Page, program: str, module):
    known = set(module._parser()._option_string_actions)
    for command in page.commands(program):
        assert set(command.options) <= known, f"{page.name}: {command}"


@pytest.fixture(scope="module")
def options() -> set[str]:
    """All that a program or a bench of ours takes, or that we give to another."""
    sources = [path for each in FOLDERS for path in (ROOT / each).rglob("*.py")]
    text = "\n".join(path.read_text() for path in [*sources, ROOT / "Makefile"])
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    for command in [["run"], ["compare"], ["ztunnel"], ["ca"], ["policy", "check"]]:
        known |= {name for each in the_command(command).params for name in each.opts}
    return known


@EVERY_PAGE
def test_options_in_prose_are_somebodys(page: Page, options: set[str]):
    assert page.options() - {"--"} <= options, page.name


@EVERY_PAGE
def test_modules_that_python_runs_are_there(page: Page):
    for command in page.commands("python", "python3"):
        words = command.words
        if "-m" not in words or (module := words[words.index("-m") + 1]) == "pytest":
            continue
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), command
