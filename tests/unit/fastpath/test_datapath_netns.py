"""Namespaces as far as they need no rights: wrapping, refusing, and re-starting."""

from __future__ import annotations

import os
import subprocess

import pytest

from fastpath.datapath import netns
from fastpath.errors import FastpathError


class Closed(netns.Namespace):
    """One that holds an ordinary file in place of a namespace."""

    def __init__(self):
        self._fd = os.open("/dev/null", os.O_RDONLY)


def test_a_command_is_wrapped_and_left_as_it_is():
    with Closed() as namespace:
        path = f"/proc/{os.getpid()}/fd/{namespace.fileno()}"
        argv = namespace.command(["ping", "-c", "1"])
        assert argv == ["nsenter", f"--net={path}", "--", "ping", "-c", "1"]


def test_a_closed_namespace_is_refused_not_confused_with_another():
    namespace = Closed()
    namespace.close()
    namespace.close()
    with pytest.raises(ValueError, match="closed"):
        namespace.fileno()


def test_an_error_inside_is_the_callers():
    with Closed() as namespace, pytest.raises(OSError, match="Invalid argument"):
        namespace.run(os.getpid)


def test_a_process_without_rights_is_told_how_to_get_them(monkeypatch):
    def refuse():
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(netns, "_new_namespace", refuse)
    with pytest.raises(FastpathError, match="CAP_SYS_ADMIN is missing; hint: "):
        netns.Namespace()


def test_who_may_configure_networks_goes_on_as_it_is(monkeypatch):
    monkeypatch.setattr(netns, "may_configure", lambda: True)
    monkeypatch.setattr(os, "execvp", None)
    netns.own_user_namespace(["fastpath", "compare"])


def test_who_may_not_starts_again_as_root_of_a_namespace(monkeypatch):
    started = []
    monkeypatch.setattr(netns, "may_configure", lambda: False)
    monkeypatch.setattr(netns, "user_namespace_problem", lambda: None)
    monkeypatch.setattr(os, "execvp", lambda *args: started.append(args))
    netns.own_user_namespace(["fastpath", "compare"])
    argv = ["unshare", "--user", "--map-root-user", "--net", "--"]
    assert started == [("unshare", [*argv, "fastpath", "compare"])]


def test_a_host_without_user_namespaces_is_an_error_with_a_hint(monkeypatch):
    def run(argv, **_):
        return subprocess.CompletedProcess(argv, 1, "", "unshare: not permitted\n")

    monkeypatch.setattr(netns, "may_configure", lambda: False)
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(FastpathError, match="not permitted; hint: sudo sysctl"):
        netns.own_user_namespace(["fastpath", "compare"])
