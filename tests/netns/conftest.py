"""Rights, and the small tools that the tests of the standard paths share."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing
from typing import NoReturn

import pytest

from fastpath.datapath import catalogue, geneve, netns
from fastpath.datapath.build import Built
from fastpath.datapath.declared import OUTBOUND_PORT
from fastpath.datapath.probe import Capturing
from fastpath.errors import FastpathError
from tests.support.limits import LIMIT_S as TIMEOUT_S

collect_ignore = []
if geneve.choose("auto") != "kernel":
    collect_ignore += ["test_geneve_labs.py"]  # tests/vm/test_node.py has them

IP_TRANSPARENT = 19
ECHO = ("198.18.0.1", 7)


def missing_right(why: str) -> NoReturn:
    """Skip loudly; in CI, where the rights must be there, fail."""
    text = f"{why} (as a user: unshare -Urn .venv/bin/pytest tests/netns)"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture
def missing():
    return missing_right


@pytest.fixture(scope="session", autouse=True)
def rights():
    if not netns.may_configure():
        missing_right("CAP_SYS_ADMIN or CAP_NET_ADMIN is missing")


def open_path(name):
    with ExitStack() as stack:
        try:
            path = stack.enter_context(Built(catalogue.possible(name)))
        except FastpathError as exc:
            missing_right(str(exc))
        yield path


@pytest.fixture(scope="module")
def path():
    yield from open_path("ambient-geneve")


@pytest.fixture
def istio_alpha():
    yield from open_path("ambient-geneve-alpha")


@pytest.fixture
def listen():
    """Open what stands in for ztunnel's listener, with nothing behind it."""
    with ExitStack() as stack:

        def make(path):
            listener = stack.enter_context(path.netns["ztunnel"].socket())
            listener.settimeout(TIMEOUT_S)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            listener.bind(("0.0.0.0", OUTBOUND_PORT))
            listener.listen()
            return listener

        yield make


@pytest.fixture
def connect():
    """Connect from the container, whose veth is the same as the sandbox's.

    Returns the client and ztunnel's end.
    """
    with ExitStack() as stack:

        def make(path, listener):
            client = stack.enter_context(path.netns["container"].socket())
            client.settimeout(TIMEOUT_S)
            client.connect(ECHO)
            server = stack.enter_context(listener.accept()[0])
            server.settimeout(TIMEOUT_S)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client, server

        yield make


@pytest.fixture
def capture():
    with ExitStack() as stack:

        def make(where, device):
            return stack.enter_context(closing(Capturing(where, device)))

        yield make
