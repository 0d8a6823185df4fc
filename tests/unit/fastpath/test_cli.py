"""The command line: what is wrong becomes one line and exit status 2."""

from __future__ import annotations

import logging
import shlex
import subprocess
from importlib import metadata

import pytest

from fastpath.commands import cli
from fastpath.errors import FastpathError


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run"], "-- CMD..."),
        (["run", "--memory", "0", "--", "true"], "--memory"),
        (["run", "--nonsense", "--", "true"], "no such option: --nonsense"),
        (["ztunnel"], "--config"),
        (["compare", "--rounds", "1"], "--rounds"),
        (["compare", "--paths", "tsi,nothing"], "no path 'nothing'"),
        (["compare", "--paths", "tsi,tsi"], "named twice"),
        (["compare", "--geneve", "vxlan"], "'auto', 'kernel', 'bpf'"),
        (["compare", "--json", "/nonexistent/x"], "No such file or directory"),
        (["image", "list", "nothing"], "unknown; there are"),
        (["nothing"], "invalid choice: 'nothing'"),
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
    monkeypatch.setattr("fastpath.commands.image.IMAGES", tmp_path)
    for command in ("list", "build"):
        assert cli.invoke(["image", command]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert f"there are no recipes in {tmp_path}; hint: install the" in err


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
def test_each_command_has_help(command, capsys, monkeypatch):
    texts = []
    for option in "-h", "--help":
        monkeypatch.setenv("COLUMNS", "60")
        assert cli.invoke([*command, option]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith(" ".join(["usage: fastpath", *command, "[options]"]))
    assert "exit status:" in texts[0]
    body = texts[0].partition("\nexamples:")[0]
    assert max(map(len, body.splitlines())) <= 60


@pytest.mark.parametrize("group", [[], ["image"], ["path"], ["policy"]])
def test_a_group_without_a_command_says_which_there_are(group, capsys):
    assert cli.invoke(group) == 0
    said = capsys.readouterr()
    assert cli.invoke([*group, "--help"]) == 0
    assert capsys.readouterr() == said


def test_every_example_is_a_command_line_of_ours():
    """As far as the parsers say."""
    for command in every_command():
        for _, line in command.examples:
            words = shlex.split(line.split(" > ")[0])
            if words[0] == "fastpath" and "--help" not in words:
                cli.parser().parse_args(words[1:])


def every_command():
    groups = cli.image, cli.path, cli.policy, cli.report
    for commands in cli.COMMANDS, *(each.COMMANDS for each in groups):
        yield from commands.values()
    yield cli.parser()


def test_version_is_the_packages(capsys):
    assert cli.invoke(["--version"]) == 0
    assert capsys.readouterr().out == f"fastpath {metadata.version('vsock-fastpath')}\n"


@pytest.mark.parametrize(
    ("options", "level"),
    [
        (["-q"], logging.ERROR),
        ([], logging.WARNING),
        (["-v"], logging.INFO),
        (["-vv"], logging.DEBUG),
        (["-vvvv"], logging.DEBUG),
    ],
)
def test_log_lines_are_more_with_v_and_fewer_with_q(options, level, monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr("fastpath.commands.doctor.run", lambda **_: len(seen))
    monkeypatch.setattr("vhost_user.logs.show", seen.append)
    assert cli.invoke(["doctor", *options]) == 1  # after the level is set
    assert seen == [level]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands_and_their_options(shell, capsys):
    assert cli.invoke(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in "compare", "access-log", "trust-domain", "own-kernel":
        assert word in script


def test_bash_completes_by_it(tmp_path, capsys):
    assert cli.invoke(["completion", "bash"]) == 0
    script = tmp_path / "fastpath"
    script.write_text(capsys.readouterr().out)
    ask = f"""
        . {script}
        COMP_WORDS=(fastpath image li); COMP_CWORD=2
        $(complete -p fastpath | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("list\n", "")


def test_localhost_is_an_address_where_a_person_writes_it(monkeypatch):
    monkeypatch.setattr(
        "fastpath.commands.run.run",
        lambda options: options.publish[0].at.host._ip & 255,
    )
    assert cli.invoke(["run", "--publish", "localhost:8080:80", "--", "true"]) == 1
