"""An agent in the guest: its control stream, and the range of its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fastpath.tsi.clients import Announcer
from vhost_user.engine import FIRST_OPENED_PORT

if TYPE_CHECKING:
    from fastpath.tsi.stream import ControlStream

RANGE_SIZE: Final = 1 << 20
"""Tokens of a range."""
RANGES: Final = FIRST_OPENED_PORT // RANGE_SIZE - 1
"""Ranges from number 1 on; number 0 has the plain vsock ports."""


@dataclass(slots=True, eq=False)
class Agent:
    """A control stream and the tokens it may register."""

    range: int
    """Number of its range of tokens."""
    stream: ControlStream | None = None
    greeted: bool = False
    announcer: Announcer = field(init=False)
    next_token: int = field(init=False)

    def __post_init__(self) -> None:
        self.next_token = self.range * RANGE_SIZE
        self.announcer = Announcer(self.send)

    def send(self, message: bytes) -> bool:
        """Send a message; False: the guest has left no room, or is gone."""
        return self.stream is not None and self.stream.send(message)

    def owns(self, token: int) -> bool:
        """Whether it may register the token."""
        return token // RANGE_SIZE == self.range
