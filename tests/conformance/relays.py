"""Listeners of the engine: connections between two sockets, without a guest."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.conformance.links import wait_for
from tests.conformance.threads import TIMEOUT_S
from vhost_user.engine import ALL_EVENTS, Ask, Event, EventKind, Target

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conformance.conftest import Host


class Relay:
    """A listener of the engine, whose connections wait for an answer.

    Args:
        host: whose engine.
        directory: where its unix socket goes.
        tcp: listen on TCP instead.
        target: where connections go; by default each waits for `answer()`.
    """

    def __init__(
        self, host: Host, directory: Path, *, tcp: bool, target: Target | None = None
    ) -> None:
        if tcp:
            sock = socket.create_server(("127.0.0.1", 0))
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(directory / "relay"))
            sock.listen()
        self._host = host
        self._family, self._name = sock.family, sock.getsockname()
        self.events: list[Event] = []
        self.handle = host.call(
            lambda: host.engine.add_listener(
                sock, target or Ask(), on_event=self.events.append, want=ALL_EVENTS
            )
        )

    def dial(self) -> socket.socket:
        """Connect."""
        sock = socket.socket(self._family)
        sock.settimeout(TIMEOUT_S)
        sock.connect(self._name)
        return sock

    def client(self) -> tuple[socket.socket, int]:
        """Connect, and wait until the engine asks; return socket and connection."""
        seen = len(self.events)
        sock = self.dial()
        wait_for(lambda: len(self.events) > seen, "the REQUEST event")
        assert self.events[seen].kind is EventKind.REQUEST
        return sock, self.events[seen].conn

    def answer(self, conn: int) -> socket.socket:
        """Give a connection a unix socket; return its other end."""
        ours: socket.socket
        ours, theirs = self._host.pair()
        assert self._host.call(self._host.engine.answer_fd, conn, theirs)
        return ours
