"""The fixtures of fastpath.pytest_plugin, in a project of somebody else's."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastpath.errors import FastpathError
from tests.support.limits import GUEST_LIMIT_S, wait_until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.vm


def test_a_program_runs_with_its_input_environment_and_directory(session_microvm):
    done = session_microvm.run(
        *("sh", "-c", 'echo "$WHO $PWD"; cat; echo bad >&2; exit 3'),
        stdin=b"input",
        env={"WHO": "me"},
        cwd="/tmp",
    )
    assert done.status == 3
    assert done.text == "me /tmp\ninput"
    with pytest.raises(FastpathError, match="status 3: bad"):
        done.check()


def test_a_program_that_takes_too_long_is_killed(session_microvm):
    with pytest.raises(TimeoutError):
        session_microvm.run("sleep", "600", timeout_s=0.5)
    assert session_microvm.run("true").status == 0


def test_a_program_is_started_and_talked_to(session_microvm):
    with session_microvm.start("cat") as program:
        program.write(b"hello\n")
        program.wait_for_output("hello")
        program.close_stdin()
        assert program.wait().text == "hello\n"


def test_a_program_that_ends_without_its_words_is_an_error(session_microvm):
    with (
        session_microvm.start("echo", "other") as program,
        pytest.raises(FastpathError, match="ended without 'hello'"),
    ):
        program.wait_for_output("hello")


def test_a_server_in_the_guest_is_reached(session_microvm):
    vm = session_microvm
    with pytest.raises(ConnectionRefusedError):
        vm.connect(8080)
    with vm.start("nc", "-ll", "-p", "8080", "-e", "cat"):
        vm.wait_for_port(8080)
        with vm.connect(8080) as sock:
            sock.sendall(b"ping")
            assert sock.recv(4) == b"ping"


def test_a_server_on_the_host_is_reached_by_name(session_microvm):
    vm = session_microvm
    with vm.listen() as server:
        host, port = server.address
        with vm.start("nc", host, str(port)) as client, server.accept() as sock:
            client.write(b"ping\n")
            assert sock.recv(5) == b"ping\n"
            sock.shutdown(socket.SHUT_WR)
            client.close_stdin()
            client.wait()
    wait_until(lambda: f"dst.addr=127.0.0.1:{port}" in vm.access_log)
    with vm.start("nc", host, str(port)) as client:
        assert client.wait().status == 1


def test_files_go_in_and_out(session_microvm, tmp_path):
    there = tmp_path / "there"
    (there / "deep").mkdir(parents=True)
    (there / "deep" / "script").write_text("#!/bin/sh\necho ran\n")
    (there / "deep" / "script").chmod(0o755)
    session_microvm.copy_in(there, "/opt/a/b")
    assert session_microvm.run("/opt/a/b/deep/script").text == "ran\n"
    session_microvm.run("sh", "-c", "echo more > /opt/a/b/new").check()
    session_microvm.copy_out("/opt/a/b", tmp_path / "back")
    assert (tmp_path / "back" / "new").read_text() == "more\n"
    session_microvm.copy_out("/opt/a/b/new", tmp_path / "one")
    assert (tmp_path / "one").read_text() == "more\n"
    with pytest.raises(FastpathError, match="/no"):
        session_microvm.copy_out("/no/such", tmp_path / "none")
    with pytest.raises(FastpathError, match="must be an absolute path"):
        session_microvm.copy_in(there, "relative")


def test_a_link_that_leads_out_of_what_is_copied_is_refused(session_microvm, tmp_path):
    vm = session_microvm
    vm.run("sh", "-c", "mkdir -p /evil && ln -sfn /etc/passwd /evil/link").check()
    with pytest.raises(FastpathError, match="link"):
        vm.copy_out("/evil", tmp_path / "evil")
    assert not (tmp_path / "evil").exists()


def test_microvms_of_a_test_are_its_own(vm_factory):
    one, two = vm_factory(), vm_factory(memory_mib=256)
    one.run("touch", "/tmp/mine").check()
    assert two.run("ls", "/tmp").text == ""
    assert one.run("hostname").text.split() == [one.name]
    assert one.address != two.address
    with two.start("nc", "-l", "-p", "80", "-e", "echo", "two"):
        two.wait_for_port(80)


def test_a_microvm_that_dies_says_so_from_then_on(microvm):
    for argv in (("sh", "-c", "echo c > /proc/sysrq-trigger"), ("true",)):
        with pytest.raises(FastpathError, match="panicked"):
            microvm.run(*argv)


def test_ztunnel_and_sandbox_are_the_microvms(microvm, ztunnel, sandbox):
    microvm.run("nc", "-w", "1", "198.18.0.77", "9", timeout_s=GUEST_LIMIT_S)
    assert ztunnel.sandboxes[microvm.name] is sandbox
    assert sandbox.device.handle.stats().opened >= 2


def test_the_tests_of_its_page_pass(project):
    page = (ROOT / "docs" / "pytest.md").read_text(encoding="utf-8")
    text = page.partition("```python\n")[2].partition("```")[0]
    done = project(text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


FAILS = """
def test_fails(microvm):
    microvm.run("sh", "-c", "echo said > /dev/console")
    assert False
"""


@pytest.fixture
def project(tmp_path):
    """Runs a file of tests as a project of its own does."""

    def run(text, *options, env=None):
        (tmp_path / "test_it.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=GUEST_LIMIT_S,
            check=False,
        )

    return run


def test_what_microvms_said_is_in_the_report_of_a_test_that_fails(project, tmp_path):
    done = project(FAILS, "--fastpath-artefacts=kept")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"- vm1: console -+\n(.*\n)*said", done.stdout)
    (kept,) = (tmp_path / "kept").glob("*/vm1-console.log")
    assert "said" in kept.read_text()


def test_where_no_microvm_can_run_tests_are_skipped_with_the_reason(project, tmp_path):
    env = {"PATH": "/nonexistent", "HOME": str(tmp_path)}
    done = project(FAILS, "-rs", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "there is no such program" in done.stdout
    assert project(FAILS, "--fastpath-required", env=env).returncode == 1
