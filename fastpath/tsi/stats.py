"""What a TSI service counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TsiStats:
    """What a service has, and counters since it began."""

    streams: int = 0
    """Open now."""
    tokens: int = 0
    """Known now."""
    held: int = 0
    """Requests that wait for their ROUTE now."""
    refused: int = 0
    """Streams ended for what they sent, or for want of room."""
    unprivileged: int = 0
    """Streams reset because any program could have opened them."""
    ignored: int = 0
    """ROUTEs of tokens that were not the stream's to register."""
    forgotten: int = 0
    """Tokens dropped because there were too many."""
    unknown: int = 0
    """Requests for tokens that nobody registered."""
    unsent: int = 0
    """FAILED messages that the guest had left no room for."""
    listeners: int = 0
    """Published now."""
    refused_headers: int = 0
    """Clients of the application tunnel that had no good header."""
