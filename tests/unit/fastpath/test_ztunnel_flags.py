"""`response_flags` by what an engine tells of a connection."""

from __future__ import annotations

import errno

import pytest

from fastpath.ztunnel import flags
from vhost_user.engine import Event, EventKind
from vhost_user.hbone import Reason

FAILED = {
    "tcp-refused": (Reason.DIAL, errno.ECONNREFUSED, "CONNECT"),
    "tcp-silent": (Reason.DIAL, errno.ETIMEDOUT, "NETWORK_POLICY"),
    "silent": (Reason.TIME, errno.ETIMEDOUT, "NETWORK_POLICY"),
    "another-name": (Reason.NAME, errno.ECONNREFUSED, "CONNECT"),
    "revoked": (Reason.REVOKED, errno.ECONNREFUSED, "CONNECT"),
    "alert": (Reason.ALERT, errno.ECONNRESET, "CONNECT"),
    "no-http2": (Reason.HTTP2, errno.ECONNRESET, "H2_HANDSHAKE_FAILURE"),
    "reset": (Reason.RESET, errno.ECONNRESET, "H2_HANDSHAKE_FAILURE"),
    "refused": (Reason.REFUSED, errno.ECONNREFUSED, "H2_HANDSHAKE_FAILURE"),
    "401": (Reason.UNAUTHORIZED, errno.EACCES, "CONNECT"),
    "503": (Reason.UNAVAILABLE, errno.ECONNREFUSED, "CONNECT"),
    "503-timeout": (Reason.UNAVAILABLE, errno.ETIMEDOUT, "CONNECT"),
    "no-tunnel": (Reason.NONE, errno.ETIMEDOUT, "CONNECT"),
}


def event(kind, reason, error=0):
    return Event(kind, conn=1, error=error, reason=int(reason))


@pytest.mark.parametrize(("reason", "error", "flag"), FAILED.values(), ids=FAILED)
def test_a_failure_has_the_flag_of_istios_ztunnel(reason, error, flag):
    assert flags.of_failure(event(EventKind.FAILED, reason, error)) == flag


@pytest.mark.parametrize(
    ("reason", "error", "flag"),
    [
        (Reason.NONE, 0, "-"),
        (Reason.NONE, errno.EPIPE, "CONNECT"),
        (Reason.RESET, errno.ECONNRESET, "CONNECT"),
        (Reason.REVOKED, errno.ECONNREFUSED, "CERT_REVOKED"),
    ],
)
def test_an_end_has_the_flag_of_istios_ztunnel(reason, error, flag):
    assert flags.of_end(event(EventKind.CLOSED, reason, error)) == flag
