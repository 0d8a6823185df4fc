"""Options of `fastpath run`, and the folder that it works in."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

import pytest

from fastpath import run
from fastpath.errors import FastpathError
from fastpath.scratch import CONSOLE, scratch


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
    ],
)
def test_publish_is_an_address_here_and_a_port_there(text, at, port):
    (publication,) = run.parse_publish([text])
    assert (str(publication.at), publication.port) == (at, port)


@pytest.mark.parametrize("text", ["80", "x:80", "0:80", "80:0", "::1:80:80", "80:"])
def test_publish_that_cannot_be_read_names_itself(text):
    with pytest.raises(FastpathError, match=f"--publish {text}"):
        run.parse_publish([text])


def test_the_folder_is_gone_after_success():
    with scratch() as folder:
        (folder / CONSOLE).write_text("booted")
        assert folder.stat().st_mode & 0o777 == 0o700
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
