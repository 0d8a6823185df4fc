"""Recipes: what they mean, and that a mistake is named by file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpath.errors import FastpathError
from fastpath.image import recipe

SOURCE = Path("x/recipe.yaml")


def parse(text):
    return recipe.parse("x", SOURCE, text)


@pytest.mark.parametrize("name", recipe.known())
def test_each_recipe_of_the_project_loads(name):
    assert recipe.load(name).kernel


def test_apps_has_what_base_has_and_more():
    base, apps = recipe.load("base"), recipe.load("apps")
    assert apps.packages[: len(base.packages)] == base.packages
    assert apps.programs == base.programs
    assert base.text in apps.text


def test_a_module_of_ours_can_be_left_out_again():
    base = recipe.load("base")
    assert base.own_modules
    text = f"extends: base\nomit: [{base.own_modules[0]}]\n"
    assert parse(text).own_modules == base.own_modules[1:]


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        pytest.param("a: 1", 1, "a: unknown field", id="unknown-key"),
        pytest.param(
            "suite: s\nkernel: [k]", 2, "kernel: must be a single value", id="type"
        ),
        pytest.param("suite: a\nsuite: b", 2, "suite: is given twice", id="twice"),
        pytest.param("modules: [a, 1]", 1, "modules[1]: must be a string", id="item"),
        pytest.param("- a", 1, "must be a mapping", id="list"),
        pytest.param(
            "programs: {init: bin}", 1, "programs.init: must be an abs", id="relative"
        ),
        pytest.param(
            "programs: {init: /../a}", 1, "programs.init: must be an abs", id="dots"
        ),
        pytest.param(
            "files:\n  - path: /a", 2, "files[0]: needs exactly one of", id="no-kind"
        ),
        pytest.param(
            "files:\n  - {path: /a, link: b, content: c}",
            2,
            "files[0]: needs exactly one of",
            id="two-kinds",
        ),
        pytest.param("files:\n  - 3", 2, "files[0]: must be a mapping", id="file"),
        pytest.param("a: [", 1, "expected the node content", id="yaml"),
    ],
)
def test_a_mistake_is_named_by_file_line_and_key(text, line, why):
    with pytest.raises(FastpathError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"x/recipe.yaml:{line}: {why}".rstrip())


def test_an_unknown_image_is_told_what_there_is():
    with pytest.raises(FastpathError, match=r"no-such.*known: .*base"):
        recipe.load("no-such")


def test_a_recipe_that_extends_itself_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "IMAGES", tmp_path)
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "recipe.yaml").write_text("extends: loop\n")
    with pytest.raises(FastpathError, match="extends itself"):
        recipe.load("loop")


def test_an_octal_mode_is_a_number():
    (file,) = parse("files: [{path: /a, directory: true, mode: 01777}]").files
    assert file.mode == 0o1777
