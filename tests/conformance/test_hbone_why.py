"""Why a far side can't be reached: 503 with "proxy-status", RFC 9209, both ways."""

from __future__ import annotations

import errno
import socket

import h2.events
import pytest

from tests.conformance.tunnels import Mesh
from tests.support import envoy, pki
from vhost_user.engine import Dial, EventKind, Reset
from vhost_user.hbone import Headers, Reason


def says(peer, stream):
    """All that an answer says."""
    answer = peer.until(
        h2.events.ResponseReceived, lambda event: event.stream_id == stream
    )
    return dict(answer.headers)


# ---- as a gate ----

WORDS = {
    errno.ECONNREFUSED: "fastpath; error=connection_refused",
    errno.ETIMEDOUT: "fastpath; error=connection_timeout",
    errno.ECONNRESET: "fastpath; error=connection_terminated",
    errno.ENETUNREACH: "fastpath; error=destination_ip_unroutable",
    errno.EHOSTUNREACH: "fastpath; error=destination_unavailable",
}


@pytest.mark.parametrize("error", WORDS, ids=errno.errorcode.get)
def test_a_peer_hears_which_errno_it_was(mesh, error):
    gate = mesh.gate()
    peer = gate.dial()
    stream = peer.connect()
    gate.answer(gate.asked(), Reset(error))
    assert says(peer, stream) == {":status": "503", "proxy-status": WORDS[error]}


def test_a_dial_that_fails_is_told(mesh, host):
    """And nothing else: baggage is who took a connection."""
    gate = mesh.gate()
    nobody = mesh.kept(socket.socket())
    nobody.bind(("127.0.0.1", 0))
    peer = gate.dial()
    stream = peer.connect()
    conn = gate.asked()
    headers = mesh.call(Headers, host.engine, baggage="service.name=db")
    assert mesh.call(gate.gate.respond, conn, headers)
    gate.answer(conn, Dial(nobody.getsockname()))
    assert says(peer, stream) == {
        ":status": "503",
        "proxy-status": "fastpath; error=connection_refused",
    }


def test_a_connect_that_is_never_answered_is_a_timeout(make_host, tmp_path):
    with Mesh(make_host(dial_timeout_s=0.3), tmp_path) as mesh:
        peer = mesh.gate().dial()
        stream = peer.connect()
        assert says(peer, stream) == {
            ":status": "503",
            "proxy-status": "fastpath; error=connection_timeout",
        }


@pytest.mark.parametrize(
    ("error", "status"),
    [(errno.EACCES, "401"), (errno.EINVAL, "400"), (errno.ENETDOWN, "503")],
)
def test_what_has_no_word_is_told_by_the_status_alone(mesh, error, status):
    gate = mesh.gate()
    peer = gate.dial()
    stream = peer.connect()
    gate.answer(gate.asked(), Reset(error))
    assert says(peer, stream) == {":status": status}


# ---- as a pool ----

SAID = {
    "refused": ("a; error=connection_refused", errno.ECONNREFUSED),
    "timeout": ("a; error=connection_timeout", errno.ETIMEDOUT),
    "terminated": ("a; error=connection_terminated", errno.ECONNRESET),
    "unroutable": ("a; error=destination_ip_unroutable", errno.ENETUNREACH),
    "unavailable": ("a; error=destination_unavailable", errno.EHOSTUNREACH),
    "not-found": ("a; error=destination_not_found", errno.EHOSTUNREACH),
    "prohibited": ("a; error=destination_ip_prohibited", errno.EACCES),
    "the-first-of-a-list": (
        "a, b; error=connection_timeout, c; error=connection_refused",
        errno.ETIMEDOUT,
    ),
    "no-space": ("a;error=connection_timeout", errno.ETIMEDOUT),
    "behind-others": (
        'a; received-status=503; details="x"; error=connection_timeout',
        errno.ETIMEDOUT,
    ),
    "in-a-string": ('a; details="; error=connection_timeout"', errno.ECONNREFUSED),
    "behind-an-escape": (
        r'a; details="\"; error=connection_timeout"; error=destination_unavailable',
        errno.EHOSTUNREACH,
    ),
    "another-parameter": ("a; xerror=connection_timeout", errno.ECONNREFUSED),
    "longer": ("a; error=connection_timeouts", errno.ECONNREFUSED),
    "shorter": ("a; error=connection_time", errno.ECONNREFUSED),
    "no-word": ("a; error=", errno.ECONNREFUSED),
    "unknown": ("a; error=tls_protocol_error", errno.ECONNREFUSED),
    "a-name-alone": ("error=connection_timeout", errno.ECONNREFUSED),
    "an-open-string": ('a; details="; error=connection_timeout', errno.ECONNREFUSED),
    "an-open-escape": ('a; details="\\', errno.ECONNREFUSED),
    "empty": ("", errno.ECONNREFUSED),
    "long": (f"{'a; ' * 4000}error=connection_timeout", errno.ETIMEDOUT),
}


@pytest.mark.parametrize("status", [503, 504])
@pytest.mark.parametrize(("said", "error"), SAID.values(), ids=SAID)
def test_connect_fails_with_the_errno_of_the_far_side(mesh, said, error, status):
    pool = mesh.pool()
    pool.client()
    peer = pool.accept()
    peer.answer(peer.request()[0], status, ("proxy-status", said))
    reason = Reason.UNAVAILABLE if status == 503 else Reason.STATUS
    assert pool.failed() == (error, reason)
    peer.fence()
    pool.pair(peer)  # by the same tunnel


def test_the_first_of_several_fields_counts(mesh):
    pool = mesh.pool()
    pool.client()
    peer = pool.accept()
    fields = [("proxy-status", f"a; error={it}") for it in ("x", "connection_timeout")]
    peer.answer(peer.request()[0], 503, *fields)
    assert pool.failed() == (errno.ETIMEDOUT, Reason.UNAVAILABLE)


@pytest.mark.parametrize("status", [200, 401])
def test_it_counts_for_no_other_answer(mesh, status):
    pool = mesh.pool()
    pool.client()
    peer = pool.accept()
    stream, _ = peer.request()
    peer.answer(stream, status, ("proxy-status", "a; error=connection_timeout"))
    if status == 200:
        pool.conns.wait(EventKind.OPENED)
    else:
        assert pool.failed() == (errno.EACCES, Reason.UNAUTHORIZED)


def test_envoy_says_why(mesh, tmp_path):
    """As B, for a cluster in which nobody is."""
    transport = envoy.tls(mesh.ca.issue(pki.DB), mesh.ca.roots, pki.WEB, server=True)
    nobody = {"name": "nobody", "type": "STATIC"}
    resources = envoy.terminating(
        tmp_path, transport, nobody, proxy_status={"use_node_id": False}
    )
    with envoy.running(tmp_path, resources) as b:
        pool = mesh.pool(b.address)
        pool.client()
        assert pool.failed() == (errno.EHOSTUNREACH, Reason.UNAVAILABLE)
