"""The command line: what is wrong becomes one line and exit status 2."""

from __future__ import annotations

import pytest

from fastpath.commands import cli
from fastpath.errors import FastpathError


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run"], "-- CMD..."),
        (["run", "--memory", "0", "--", "true"], "--memory"),
        (["run", "--nonsense", "--", "true"], "No such option: --nonsense"),
        (["ztunnel"], "--config"),
        (["compare", "--rounds", "1"], "--rounds"),
        (["compare", "--paths", "tsi,nothing"], "no path 'nothing'"),
        (["compare", "--paths", "tsi,tsi"], "named twice"),
        (["compare", "--geneve", "vxlan"], "auto, kernel or bpf"),
        (["compare", "--json", "/nonexistent/x"], "No such file or directory"),
        (["image", "list", "nothing"], "unknown; there are"),
        (["nothing"], "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line_and_exit_status_2(args, words, capsys):
    assert cli.invoke(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("fastpath: ")
    assert words in err


def test_an_error_names_what_why_and_the_command_that_fixes_it(monkeypatch, capsys):
    def run(_options):
        raise FastpathError("qemu", "not found", "apt-get install qemu-system-x86")

    monkeypatch.setattr("fastpath.commands.run.run", run)
    assert cli.invoke(["run", "--", "true"]) == 2
    assert capsys.readouterr().err == (
        "fastpath: qemu: not found; hint: apt-get install qemu-system-x86\n"
    )


def test_no_recipes_is_said_and_not_an_empty_list(monkeypatch, tmp_path, capsys):
    """As where the package is installed without them."""
    monkeypatch.setattr("fastpath.image.recipe.IMAGES", tmp_path)
    for command in ("list", "build"):
        assert cli.invoke(["image", command]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert f"there are no recipes in {tmp_path}; hint: run fastpath from" in err


def test_what_a_guest_said_steers_no_terminal(monkeypatch, capsys):
    def run(_options):
        raise FastpathError("microVM", "exec: \x1b]0;owned\x07\u202e\r\n\x9b2J\ud800")

    monkeypatch.setattr("fastpath.commands.run.run", run)
    assert cli.invoke(["run", "--", "true"]) == 2
    assert capsys.readouterr().err == (
        "fastpath: microVM: exec: \\x1b]0;owned\\x07\\u202e \\x9b2J\\ud800\n"
    )


def test_options_after_the_command_are_the_commands(monkeypatch):
    seen = []

    def run(options):
        seen.append(options)
        return 7

    monkeypatch.setattr("fastpath.commands.run.run", run)
    args = ["run", "--env", "A=b", "--timeout", "5", "ls", "-l", "--all"]
    assert cli.invoke(args) == 7
    assert seen[0].argv == ("ls", "-l", "--all")
    assert seen[0].env == {"A": "b"}
    assert seen[0].timeout_s == 5.0


def test_ctrl_c_is_exit_status_130(monkeypatch):
    def run(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastpath.commands.run.run", run)
    assert cli.invoke(["run", "--", "true"]) == 130


@pytest.mark.parametrize(
    "command",
    [
        *([], ["run"], ["compare"], ["doctor"], ["ztunnel"], ["image", "build"]),
        ["policy", "check"],
    ],
)
def test_each_command_has_help(command, capsys):
    assert cli.invoke([*command, "--help"]) == 0
    assert "usage: fastpath" in capsys.readouterr().out.lower()
