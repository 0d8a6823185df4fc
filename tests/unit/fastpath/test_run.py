"""Options of `fastpath run`, and the folder that it works in."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import tempfile
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from fastpath import deadline as deadline_module
from fastpath.commands import run
from fastpath.deadline import Deadline, TimedOut
from fastpath.errors import FastpathError
from fastpath.image.images import Image
from fastpath.scratch import CONSOLE, KEPT_S, PREFIX, scratch
from fastpath.vm import accel
from fastpath.vm.spec import Accelerator
from fastpath.ztunnel.model import Publication
from vhost_user.vsock.hybrid import MAX_UDS_PATH

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_file_is_a_host_path_and_an_absolute_guest_path(tmp_path):
    source = tmp_path / "a:b"
    source.touch()
    assert run.parse_files([f"{source}:/opt/x"]) == {"/opt/x": source}


@pytest.mark.parametrize("value", ["x", "x:", ":/x", "/etc/passwd:relative", ""])
def test_a_file_that_cannot_be_read_as_source_and_target(value):
    with pytest.raises(FastpathError, match="must be SRC:/ABSOLUTE/DST"):
        run.parse_files([value])


def test_a_file_that_is_not_there():
    with pytest.raises(FastpathError, match="no file or directory"):
        run.parse_files(["/nonexistent/file:/x"])


def test_env_sets_a_value_or_takes_ours(monkeypatch):
    monkeypatch.setenv("FASTPATH_OURS", "ours")
    monkeypatch.delenv("FASTPATH_MISSING", raising=False)
    env = run.parse_env(["A=b=c", "B=", "FASTPATH_OURS", "FASTPATH_MISSING"])
    assert env == {"A": "b=c", "B": "", "FASTPATH_OURS": "ours"}


def test_env_needs_a_name():
    with pytest.raises(FastpathError, match="NAME=VALUE"):
        run.parse_env(["=x"])


def test_allow_is_a_prefix_and_ports():
    (rule,) = run.parse_allow(["127.0.0.0/8:80-90"])
    assert rule.covers(ip_address("127.0.0.1"), 80)
    assert not rule.covers(ip_address("127.0.0.1"), 91)


def test_allow_that_cannot_be_read_names_itself():
    with pytest.raises(FastpathError, match="--allow nonsense"):
        run.parse_allow(["nonsense"])


@pytest.mark.parametrize(
    ("text", "at", "port"),
    [
        ("8080:80", "127.0.0.1:8080", 80),
        ("192.0.2.1:443:8443", "192.0.2.1:443", 8443),
        ("[::1]:8080:80", "[::1]:8080", 80),
        ("127.0.0.2:*", "127.0.0.2:80", 80),
        ("[::1]:*", "[::1]:80", 80),
    ],
)
def test_publish_is_an_address_here_and_a_port_there(text, at, port):
    (publication,) = run.parse_publish([text])
    assert str(publication.of(port)) == at
    assert str(publication).endswith(text)


def test_publish_is_about_a_port_or_all():
    assert Publication.parse("8080:80").of(81) is None
    assert str(Publication.parse("[::1]:*").of(81)) == "[::1]:81"


@pytest.mark.parametrize(
    "text", ["80", "x:80", "0:80", "80:0", "::1:80:80", "80:", "80:*", "*", "x:*"]
)
def test_publish_that_cannot_be_read_names_itself(text):
    with pytest.raises(FastpathError, match=re.escape(f"--publish {text}")):
        run.parse_publish([text])


def test_the_folder_is_gone_after_success():
    with scratch() as folder:
        (folder / CONSOLE).write_text("booted")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_sockets_fit_in_the_folder_whatever_tmpdir_is(tmp_path, monkeypatch):
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with scratch() as folder:
        assert len(str(folder / "vsock")) <= MAX_UDS_PATH
    assert not folder.exists()


def _leave(error):
    """Work in the folder, end with `error`; return where the folder was."""
    with pytest.raises(type(error)) as raised:
        _work_and_raise(error)
    (folder,) = raised.value.args[-1:]
    return folder


def _work_and_raise(error):
    with scratch() as folder:
        (folder / CONSOLE).write_text("booted")
        (folder / "socket").touch()
        error.args = (*error.args, folder)
        if isinstance(error, FastpathError):
            error.why = error.why.format(console=folder / CONSOLE)
        raise error


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(), RuntimeError(), FastpathError("x", "failed")],
    ids=repr,
)
def test_the_folder_is_gone_whatever_ends_us(error):
    assert not _leave(error).exists()


def test_after_an_error_that_names_the_console_log_only_that_is_left():
    folder = _leave(FastpathError("guest", "panic (console log: {console})"))
    assert [path.name for path in folder.iterdir()] == [CONSOLE]
    (folder / CONSOLE).unlink()
    folder.rmdir()


def _work_until_killed(ready):
    with scratch() as folder:
        (folder / "folder").mkdir()
        (folder / "folder" / "file").touch()
        ready.send(folder)
        signal.pause()


def test_the_folder_of_a_killed_run_goes_with_the_next_run():
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_work_until_killed, args=(theirs,)
    )
    process.start()
    folder = ours.recv()
    with scratch():
        assert folder.exists()  # it lives
    process.kill()
    process.join()
    assert folder.exists()
    with scratch():
        assert not folder.exists()


@pytest.mark.parametrize(
    ("age_s", "stays"), [(KEPT_S - 600, True), (KEPT_S + 600, False)]
)
def test_a_console_log_that_an_error_named_stays_for_a_day(tmp_path, age_s, stays):
    kept = tmp_path / f"{PREFIX}kept"
    kept.mkdir()
    (kept / CONSOLE).touch()
    then = time.time() - age_s
    os.utime(kept, (then, then))
    with scratch():
        assert kept.exists() is stays


def test_what_is_not_a_runs_folder_is_left_alone(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "precious")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    with scratch():
        pass
    assert len(list(tmp_path.iterdir())) == 3


def test_a_deadline_ends_a_read_that_nobody_answers():
    reader, writer = os.pipe()
    with pytest.raises(TimedOut, match=r"not done within 0\.05 s"), Deadline(0.05):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)


def test_a_deadline_that_is_handed_over_is_the_loops():
    async def main(deadline):
        expired = asyncio.Event()
        deadline.hand_over(asyncio.get_running_loop(), expired.set)
        await expired.wait()

    with Deadline(0.05) as deadline:
        asyncio.run(main(deadline))
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_deadline_ends_a_loop_that_is_blocked(monkeypatch):
    """Such as by a policy file that is a pipe nobody writes to."""
    monkeypatch.setattr(deadline_module, "BLOCKED_S", 0.05)
    reader, writer = os.pipe()

    async def main(deadline):
        deadline.hand_over(asyncio.get_running_loop(), pytest.fail)
        os.read(reader, 1)

    with pytest.raises(TimedOut), Deadline(0.05) as deadline:
        asyncio.run(main(deadline))
    os.close(reader)
    os.close(writer)


def test_no_deadline_is_no_timer():
    with Deadline(None):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """An image and an accelerator without building or probing."""
    initramfs = tmp_path / "initramfs"
    initramfs.write_bytes(b"")
    image = Image("base", tmp_path / "kernel", initramfs, "6.1")
    monkeypatch.setattr(run, "build_image", lambda _name: image)
    monkeypatch.setattr(
        accel, "choose", lambda *_args, **_kwargs: Accelerator("tcg", "asked for")
    )


@pytest.mark.usefixtures("host")
def test_the_timeout_covers_a_file_that_is_a_pipe_nobody_writes_to(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    options = run.RunOptions(
        argv=("true",), files={"/x": tmp_path / "pipe"}, env={}, timeout_s=0.1
    )
    assert run.run(options) == run.EXIT_TIMEOUT
    assert capsys.readouterr().err == "fastpath: timed out: not done within 0.1 s\n"
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def test_the_timeout_covers_the_build_of_an_image(monkeypatch, capsys):
    monkeypatch.setattr(run, "build_image", lambda _name: time.sleep(600))
    options = run.RunOptions(argv=("true",), files={}, env={}, timeout_s=0.1)
    assert run.run(options) == run.EXIT_TIMEOUT
    assert "not done within 0.1 s" in capsys.readouterr().err


class Stuck:
    """A machine whose guest says something and stays where it is."""

    def __init__(self, spec):
        self._console = spec.console

    async def __aenter__(self):
        self._console.write_text("booting\n\x1b[31mstuck\n\n")
        return self

    async def __aexit__(self, *_exc):
        pass

    async def watch(self, work):
        if Stuck.expire is not None:
            Stuck.expire()
        return await work

    expire: Callable[[], None] | None = None


class TimeIsUpInTheBoot(Deadline):
    """Ends the run when the guest is waited for, however long that took to begin."""

    def hand_over(self, loop, expire):
        Stuck.expire = expire

    def close(self):
        Stuck.expire = None
        super().close()


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("limit", ["timeout_s", "boot_timeout_s"], ids=["run", "boot"])
def test_no_boot_is_said(tmp_path, monkeypatch, capsys, limit):
    """With what the console said last. A short name: a socket's path has it in it."""
    monkeypatch.setattr(run, "Machine", Stuck)
    options = run.RunOptions(argv=("true",), files={}, env={})
    if limit == "timeout_s":
        monkeypatch.setattr(run, "Deadline", TimeIsUpInTheBoot)
        options = dataclasses.replace(options, timeout_s=600)
        assert run.run(options) == run.EXIT_TIMEOUT
        said = capsys.readouterr().err
        assert "timed out: the guest has not booted within 600 s" in said
    else:
        options = dataclasses.replace(options, boot_timeout_s=0.1)
        with pytest.raises(FastpathError, match=r"--boot-timeout 0\.2") as raised:
            run.run(options)
        said = str(raised.value)
    assert "it said last: '[31mstuck'" in said
    (left,) = tmp_path.glob(f"{PREFIX}*/*")
    assert left.name == CONSOLE
    assert f"(console log: {left})" in said


def test_a_boot_may_take_longer_under_tcg():
    assert Accelerator("kvm", "").boot_timeout_s == 30
    assert Accelerator("tcg", "").boot_timeout_s == 180


@pytest.mark.parametrize(
    ("source", "found"),
    [("2001:db8::5", True), ("fd00::5", True), ("fe80::5", False), (None, False)],
    ids=["global", "unique-local", "link-local", "no-route"],
)
def test_the_program_has_an_ipv6_address_where_this_host_reaches_ipv6(
    monkeypatch, source, found
):
    class Probe:
        def __init__(self, *args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def connect(self, address):
            if source is None:
                raise OSError(errno.ENETUNREACH, "no route")

        def getsockname(self):
            return source, 0, 0, 0

    monkeypatch.setattr(socket, "socket", Probe)
    assert run.reaches_ipv6() is found


def options_of(tmp_path, **others):
    return run.RunOptions(
        argv=("true",), files={}, env={}, json=tmp_path / "run.json", **others
    )


def test_the_summary_of_what_did_not_run_says_why(monkeypatch, tmp_path):
    def fail(*_args, **_others):
        raise FastpathError("image base", "no space", "free some")

    monkeypatch.setattr(run, "build_image", fail)
    with pytest.raises(FastpathError):
        run.run(options_of(tmp_path))
    found = json.loads((tmp_path / "run.json").read_text())
    assert found["error"] == "image base: no space; hint: free some"
    assert (found["status"], found["ready_s"], found["argv"]) == (None, None, ["true"])


def test_the_summary_of_what_took_too_long_has_its_status(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "build_image", lambda _: time.sleep(60))
    assert run.run(options_of(tmp_path, timeout_s=0.05)) == 124
    found = json.loads((tmp_path / "run.json").read_text())
    assert (found["status"], found["error"]) == (124, None)
    assert 0.05 <= found["seconds"] < 60


def test_a_summary_that_cannot_be_written_is_an_error_before_anything_runs(tmp_path):
    with pytest.raises(OSError, match="directory"):
        run.run(options_of(tmp_path / "nothing"))
