"""Rights, and the small tools that the tests of the standard paths share."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, closing
from typing import NoReturn

import pytest

from fastpath.datapath import netns
from fastpath.datapath.ambient_geneve import TPROXY_PORT, AmbientGeneve, Mode
from fastpath.errors import FastpathError
from tests.support.limits import LIMIT_S as TIMEOUT_S

ETH_P_ALL = 0x0003
IP_TRANSPARENT = 19
SO_RCVBUFFORCE = 33
PACKET_OUTGOING = 4
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


def open_path(mode):
    with ExitStack() as stack:
        try:
            path = stack.enter_context(AmbientGeneve(mode=mode))
        except FastpathError as exc:
            missing_right(str(exc))
        yield path


@pytest.fixture(scope="module")
def path():
    yield from open_path(Mode.EVERY_PACKET)


@pytest.fixture
def istio_alpha():
    yield from open_path(Mode.ISTIO_ALPHA)


@pytest.fixture
def listen():
    """Open what stands in for ztunnel's listener, with nothing behind it."""
    with ExitStack() as stack:

        def make(path):
            listener = stack.enter_context(path.ztunnel_netns.socket())
            listener.settimeout(TIMEOUT_S)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
            listener.bind(("0.0.0.0", TPROXY_PORT))
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
            client = stack.enter_context(path.container_netns.socket())
            client.settimeout(TIMEOUT_S)
            client.connect(ECHO)
            server = stack.enter_context(listener.accept()[0])
            server.settimeout(TIMEOUT_S)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return client, server

        yield make


class Capture:
    """All frames that a device sends and receives, since it was made."""

    def __init__(self, where, device):
        self._socket = where.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((device, ETH_P_ALL))
        self._socket.setblocking(False)

    def frames(self):
        """What came so far, as pairs: whether the device sent it, and the frame."""
        while True:
            try:
                frame, address = self._socket.recvfrom(1 << 17)
            except BlockingIOError:
                return
            yield address[2] == PACKET_OUTGOING, frame

    def close(self):
        self._socket.close()


@pytest.fixture
def capture():
    with ExitStack() as stack:

        def make(where, device):
            return stack.enter_context(closing(Capture(where, device)))

        yield make
