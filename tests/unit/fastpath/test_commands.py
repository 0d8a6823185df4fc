"""The real commands where the world around them is broken: one line, no traceback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.support.limits import LIMIT_S

ROOT = Path(__file__).parents[3]
FASTPATH = (sys.executable, "-m", "fastpath")
VSOCK = (sys.executable, "-c", "from vhost_user.entry import vsock; vsock()")


def run(*argv, **options):
    options = {"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
    return subprocess.run(
        argv,
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        cwd=ROOT,
        **options,
    )


def assert_one_line(done, status, words):
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param((*FASTPATH, "--help"), id="fastpath-help"),
        pytest.param((*FASTPATH, "image", "list"), id="image-list"),
        pytest.param((*FASTPATH, "doctor"), id="doctor"),
        pytest.param(
            (sys.executable, "-m", "vhost_user.vsock.cli", "--help"), id="vsock-help"
        ),
        pytest.param((sys.executable, "-m", "vhost_user.rng", "--help"), id="rng-help"),
    ],
)
@pytest.mark.parametrize("output", ["full", "gone", "closed"])
def test_an_output_that_takes_nothing(argv, output):
    if output == "full":
        with Path("/dev/full").open("w") as full:
            done = run(*argv, stdout=full)
        assert_one_line(done, 2, "stdout: No space left on device; hint: free some")
    elif output == "gone":
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = run(*argv, stdout=writer)
        finally:
            os.close(writer)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    else:
        shell = ("sh", "-c", 'exec "$@" >&-', "sh")
        assert run(*shell, *argv).stderr == ""


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "x"])
@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(("run", "--timeout", "{}", "true"), id="run-timeout"),
        pytest.param(("run", "--boot-timeout", "{}", "true"), id="run-boot-timeout"),
        pytest.param(("compare", "--budget", "{}"), id="compare-budget"),
    ],
)
def test_a_time_is_a_finite_number_above_zero(argv, value):
    done = run(*FASTPATH, *(word.format(value) for word in argv))
    assert_one_line(done, 2, argv[1])


CONFIG = "workloads: []\n"


@pytest.mark.parametrize(
    "fd",
    [pytest.param("77", id="closed"), pytest.param("0", id="for-reading")],
)
def test_a_descriptor_that_takes_no_ready_line(tmp_path, fd):
    (tmp_path / "c.yaml").write_text(CONFIG)
    argv = (*FASTPATH, "ztunnel", "--config", tmp_path / "c.yaml", "--ready-fd", fd)
    done = run(*argv, stdin=None, input="")
    assert_one_line(done, 2, f"--ready-fd {fd}: Bad file descriptor; hint: ")


QEMU = 'case "$1" in --version) echo "QEMU 7.2";; esac; exit 1'


@pytest.fixture
def qemu(tmp_path):
    """A QEMU that ends at once: nothing here gets as far as a guest."""
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{QEMU}\n")
    program.chmod(0o755)
    return program


def environment(**more):
    return {**os.environ, **{name: str(value) for name, value in more.items()}}


def test_a_cache_that_may_only_be_read(qemu):
    """Not even root makes a folder in /sys."""
    env = environment(XDG_CACHE_HOME="/sys")
    done = run(*FASTPATH, "run", "--qemu", qemu, "--", "true", env=env)
    assert_one_line(done, 2, "set XDG_CACHE_HOME to a directory you can write to")


def test_a_cache_that_is_a_file(tmp_path, qemu):
    (tmp_path / "cache").touch()
    env = environment(XDG_CACHE_HOME=tmp_path / "cache")
    done = run(*FASTPATH, "run", "--qemu", qemu, "--", "true", env=env)
    assert_one_line(done, 2, "XDG_CACHE_HOME")


def test_a_temporary_folder_that_is_not_there():
    """What Python makes of it differs; that it is one line does not."""
    code = """
        import sys, tempfile
        from fastpath.commands import cli, run
        run.build_image = lambda name: None
        run.accel.choose = lambda *args, **kwargs: None
        tempfile.tempdir = sys.argv[1]
        sys.exit(cli.invoke(["run", "true"]))
    """
    gone = "/proc/gone"
    done = run(sys.executable, "-c", textwrap.dedent(code), gone)
    assert_one_line(done, 2, gone)


def test_the_commands_input_is_not_read_for_an_option(tmp_path):
    for option in ("--policy=/dev/stdin", "--file=/dev/stdin:/x"):
        done = run(*FASTPATH, "run", option, "--", "cat", stdin=None, input="CMD's")
        assert_one_line(done, 2, "is CMD's input")


@pytest.mark.parametrize("argv", [(*FASTPATH, "run", "--", "true"), VSOCK])
def test_a_library_that_is_missing_is_named_in_one_line(tmp_path, argv):
    (tmp_path / "libnghttp2.so.14").touch()
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    assert_one_line(run(*argv, env=env), 2, "libnghttp2-14")


SLOW_IMPORT = """
import sys, time
sys.path.insert(0, {path!r})
from fastpath.entry import main
main()
"""


def test_ctrl_c_during_import_shows_no_traceback(tmp_path):
    """The import of argparse, which is a part of the start, says that it has begun."""
    (tmp_path / "argparse.py").write_text(
        "print('begun', flush=True)\nwhile True: pass\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT.format(path=str(tmp_path))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == -signal.SIGINT
        assert process.stderr.read() == ""


def test_a_line_of_the_log_says_when_and_how_grave(tmp_path):
    policies = """
        policies:
        - {name: p, namespace: default, scope: Namespace, action: Allow, rules: [],
           dryRun: false}
    """
    (tmp_path / "mesh.yaml").write_text(textwrap.dedent(policies))
    (tmp_path / "c.yaml").write_text(f"mesh: {tmp_path}/mesh.yaml\n")
    with subprocess.Popen(
        [*FASTPATH, "ztunnel", "--config", tmp_path / "c.yaml"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert process.stderr.readline().startswith("fastpath ztunnel: ready")
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    shape = r"(\S+)\.\d{3}Z WARNING fastpath\.ztunnel\.authorization: auth"
    stamp = re.match(shape, line)
    assert stamp, line
    told = time.strptime(stamp[1], "%Y-%m-%dT%H:%M:%S")
    assert abs(time.mktime(told) - time.mktime(time.gmtime())) < 3600


COMPARE = """
import contextlib, dataclasses, sys
from fastpath.commands import cli, compare
from fastpath.vm.spec import Accelerator
from tests.unit.fastpath import report_sample
from vhost_user import entry

@contextlib.contextmanager
def site(options, number):
    yield compare.HostSite(number)

async def measured(run):
    run.rounds.add({"tsi": report_sample.rounds(1.0)[0]})

compare.Run.measure, compare._site = measured, site
compare.Run.report = lambda run, interrupted: report_sample.report()
compare.build_image = lambda name: None
compare.accel.choose = lambda *args, **kwargs: Accelerator("tcg", "asked for")
entry.set_up_streams()
sys.exit(cli.invoke(["compare", "--paths", "tsi", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("output", ["full", "gone"])
def test_what_was_measured_is_kept_when_nobody_can_read_the_table(tmp_path, output):
    files = [tmp_path / "out.json", tmp_path / "out.html"]
    argv = (sys.executable, "-c", COMPARE, "--json", files[0], "--html", files[1])
    if output == "full":
        with Path("/dev/full").open("w") as full:
            done = run(*argv, stdout=full)
        assert_one_line(done, 2, "stdout: No space left on device")
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = run(*argv, stdout=writer)
        os.close(writer)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    assert '"ratios"' in files[0].read_text()
    assert files[1].read_text().endswith("</html>\n")


def test_a_file_that_cannot_be_written_is_found_out_before_and_left_alone(tmp_path):
    file = tmp_path / "new.json"
    argv = (sys.executable, "-c", COMPARE, "--json", file, "--html", "/nonexistent/x")
    assert_one_line(run(*argv), 2, "cannot write /nonexistent/x: No such file")
    assert list(tmp_path.iterdir()) == []
