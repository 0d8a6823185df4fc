"""`response_flags` of Istio's metrics: how a connection ended, or why it never was.

Spec: istio/ztunnel, `ResponseFlags`, and which of its errors has which.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, Literal

from vhost_user.hbone import Reason

if TYPE_CHECKING:
    from vhost_user.engine import Event

Flag = Literal[
    "-", "DENY", "CONNECT", "NETWORK_POLICY", "H2_HANDSHAKE_FAILURE", "CERT_REVOKED"
]
"""Fine; denied by policy; not reached, or ended with an error."""

_OF_HTTP2: Final = frozenset(
    {Reason.HTTP2, Reason.FLOOD, Reason.GOAWAY, Reason.RESET, Reason.REFUSED}
)
"""There was a tunnel, but no answer to CONNECT."""


def of_failure(event: Event) -> Flag:
    """Why a connection never was."""
    reason = Reason(event.reason)
    silent = reason is Reason.DIAL and event.error == errno.ETIMEDOUT
    if silent or reason is Reason.TIME:  # who drops packets to port 15008?
        return "NETWORK_POLICY"
    return "H2_HANDSHAKE_FAILURE" if reason in _OF_HTTP2 else "CONNECT"


def of_end(event: Event) -> Flag:
    """How a connection ended."""
    if Reason(event.reason) is Reason.REVOKED:
        return "CERT_REVOKED"
    return "CONNECT" if event.error else "-"
