"""README, CONTRIBUTING, ARCHITECTURE and docs name what there is, in lines of 100."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastpath.commands import cli
from fastpath.ztunnel import config
from tests.support import pages
from tests.support.pages import ROOT, WIDTH
from vhost_user import rng
from vhost_user.vsock import cli as vsock_cli

if TYPE_CHECKING:
    from tests.support.pages import Page
    from vhost_user.options import Parser

PAGES = pages.pages()
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FOLDERS = (
    *("bench", "docs", "examples", "fastpath", "guest", "lib", "tests", "tools"),
    *("vhost_user", "vm-images"),
)
OF_OTHERS = {
    "arch/um/drivers/virtio_uml.c",  # Linux's
    "docs/vsock.md",  # Firecracker's
}
"""Files of other projects that pages name."""


def tree() -> set[str]:
    """The files, each by all ends of its path."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    ends = set()
    for path in found:
        parts = path.relative_to(ROOT).parts
        ends |= {"/".join(parts[start:]) for start in range(len(parts))}
    return ends


def targets() -> set[str]:
    """The Makefile's, without patterns."""
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE))


@pytest.fixture(scope="module")
def files() -> set[str]:
    return tree()


@EVERY_PAGE
def test_no_line_of_prose_is_wider(page: Page):
    wide = [number for number, line in page.prose() if len(line) > WIDTH]
    assert not wide, f"{page.name}: lines {wide}: at most {WIDTH} columns"


@EVERY_PAGE
def test_make_has_the_targets(page: Page):
    for command in page.commands("make"):
        named = {word for word in command.words[1:] if re.match(r"[a-z]", word)}
        assert named <= targets(), command


@EVERY_PAGE
def test_there_are_the_files(page: Page, files: set[str]):
    named = {name.removeprefix("../") for name in page.files()} - OF_OTHERS
    missing = {
        name
        for name in named
        if "*" not in name and name not in files and not readers_own(name)
    }
    assert not missing, page.name
    for name in named:
        if "*" in name:
            assert any(Path(each).match(name) for each in files), (page.name, name)


def readers_own(name: str) -> bool:
    """A configuration that the reader, or an example, writes."""
    return name.endswith(".yaml") and not name.startswith(FOLDERS)


@EVERY_PAGE
def test_links_lead_somewhere(page: Page):
    for link in page.links():
        name, _, anchor = link.partition("#")
        there = (page.path.parent / name).resolve() if name else page.path
        assert there.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in pages.Page(there).anchors(), f"{page.name}: {link}"


@EVERY_PAGE
def test_sections_that_are_named_are_there(page: Page):
    for name, title in page.sections():
        (there,) = [each for each in PAGES if each.path.name == name]
        assert title in there.headings(), f"{page.name}: {name}, {title!r}"


@EVERY_PAGE
def test_fastpath_has_the_commands_and_options(page: Page):
    for command in page.commands("fastpath"):
        words = list(command.words[1:])
        if words and re.match(r"[A-Z]|-|\w+:$", words[0]):
            continue  # `fastpath COMMAND --help`, or what a command says
        known = options_of(the_command(words))
        assert set(command.options) <= known, f"{page.name}: {command}"


def the_command(words: list[str]) -> Parser:
    """Return the one that words begin with; fail if there is none."""
    found = cli.parser()
    for word in words:
        if not found.commands:
            break
        assert word in found.commands, f"fastpath {' '.join(words)}"
        found = found.commands[word]
    return found


def options_of(command: Parser) -> set[str]:
    """Return the options that a command takes."""
    return set(command._option_string_actions)


@EVERY_PAGE
@pytest.mark.parametrize(
    ("program", "module"),
    [("vhost-user-vsock", vsock_cli), ("vhost-user-rng", rng)],
    ids=["vsock", "rng"],
)
def test_a_back_end_has_the_options(page: Page, program: str, module):
    known = options_of(module.parser())
    for command in page.commands(program):
        assert set(command.options) <= known, f"{page.name}: {command}"


@pytest.fixture(scope="module")
def options() -> set[str]:
    """All that a program or a bench of ours takes, or that we give to another."""
    sources = [path for each in FOLDERS for path in (ROOT / each).rglob("*.py")]
    text = "\n".join(path.read_text() for path in [*sources, ROOT / "Makefile"])
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    for command in [["run"], ["compare"], ["ztunnel"], ["ca"], ["policy", "check"]]:
        known |= options_of(the_command(command))
    return known


@EVERY_PAGE
def test_options_in_prose_are_somebodys(page: Page, options: set[str]):
    assert page.options() - {"--"} <= options, page.name


@EVERY_PAGE
def test_settings_are_taken(page: Page, tmp_path: Path, monkeypatch):
    """With Istio's file made up."""
    monkeypatch.chdir(ROOT)
    mesh = tmp_path / "mesh.yaml"
    for number, text in enumerate(page.settings()):
        names = re.findall(r"workload: default/([\w-]+)", text)
        workloads = [
            f"{{name: {name}, namespace: default, workloadIps: [10.0.0.{at}],"
            f" services: {{}}}}"
            for at, name in enumerate(names, 1)
        ]
        mesh.write_text(f"workloads: [{', '.join(workloads)}]\n")
        file = tmp_path / f"{number}.yaml"
        file.write_text(
            f"mesh: {mesh}\n" + re.sub(r"^mesh: .*\n", "", text, flags=re.MULTILINE)
        )
        assert len(config.load(file).fastpath.sandboxes) == len(names)


@EVERY_PAGE
def test_modules_that_python_runs_are_there(page: Page):
    for command in page.commands("python", "python3"):
        words = command.words
        if "-m" not in words or (module := words[words.index("-m") + 1]) == "pytest":
            continue
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), command
