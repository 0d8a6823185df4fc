"""Manual pages are roff that groff has nothing to say of, one for each command."""

from __future__ import annotations

import subprocess

import pytest

from tools import manual

PAGES = {
    parser.prog: parser
    for program in manual.PROGRAMS
    for parser in manual._with_commands(program())
}


def formatted(text):
    argv = ["groff", "-man", "-Tutf8", "-ww", "-P-c", "-P-b", "-P-u"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_good_roff_with_all_sections(name):
    text = formatted(manual.page(PAGES[name]))
    for section in "NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS":
        assert f"\n{section}\n" in text


def test_programs_and_commands_have_a_page_each(tmp_path):
    assert manual.main(tmp_path) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{name.replace(' ', '-')}.1" for name in PAGES}
    assert names > {
        "fastpath.1",
        "fastpath-run.1",
        "fastpath-image-build.1",
        "vhost-user-vsock.1",
        "vhost-user-rng.1",
    }


def test_a_groups_page_leaves_options_to_its_commands():
    text = manual.page(PAGES["fastpath"])
    assert "fastpath run" in text
    assert "own\\-kernel" not in text


def test_a_page_has_the_options_and_the_examples_to_copy():
    text = formatted(manual.page(PAGES["fastpath run"]))
    assert "--access-log FILE" in text
    assert "fastpath run --publish 8080:80 -- httpd -f -p 80" in text


def test_what_begins_a_line_is_no_request():
    assert manual._escaped(".so x\n'br") == "\\&.so x\n\\&'br"
