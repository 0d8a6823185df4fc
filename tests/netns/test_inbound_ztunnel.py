"""Istio's own ztunnel answers CONNECT by the same files as we do: `--ztunnel BIN`.

It runs in dedicated mode, for `server` of the file, with a certificate of `fastpath
ca`; a client of ours, by hand, asks. tests/unit/fastpath/test_istio_inbound_cases.py
holds ours to the same tables.

Spec: RFC 9113 section 4.1 (frames), 8.5 (CONNECT); RFC 7541 section 6, appendix A.
"""

from __future__ import annotations

import contextlib
import struct

import pytest
from prometheus_client.openmetrics import parser as openmetrics

from fastpath.mesh.contexts import client_context
from tests.conformance.frames import field
from tests.netns.test_istio_ztunnel import HBONE_PORT, TOKENS, World, client_of
from tests.support.inbound_cases import (
    ACTIONS,
    AUTHORITIES,
    FIELDS,
    FIRST,
    IP,
    OPEN,
    PLAIN,
    SAID,
    SCOPES,
    SERVER,
    TUNNELLED,
    UNKNOWN,
    denying_fields,
    with_policies,
    with_scope,
    with_tunnel,
)
from tests.unit.fastpath.gate_world import fields

pytestmark = [pytest.mark.netns, pytest.mark.ztunnel]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS = 4, 1
END_HEADERS = 4
STATUSES = {
    # `:status` as the first header of a block: indexed, or with Huffman's code
    200: b"\x88",
    400: b"\x8c",
    401: b"\x48\x82\x68\x01",
    503: b"\x48\x83\x6c\x0c\xff",
}


def frame(kind, flags, stream, payload=b""):
    return (
        struct.pack("!I", len(payload))[1:]
        + struct.pack("!BBI", kind, flags, stream)
        + payload
    )


def read(tls, size):
    data = b""
    while len(data) < size:
        more = tls.recv(size - len(data))
        assert more, "it hung up"
        data += more
    return data


class Mesh:
    """`fastpath ca`, a server, and a client's certificate; ztunnel by the case."""

    def __init__(self, folder, binary, stack):
        self.world = World(folder, binary, stack)
        tokens = TOKENS.replace("identity: default/web", "identity: default/server")
        self.world.write("tokens.yaml", tokens)
        self.world.serve()
        self.world.wait_for("ca.log", "ready")
        self.world.listen((IP, OPEN))
        self.material = client_of(self.world.authority())

    @contextlib.contextmanager
    def running(self, mesh):
        """Istio's ztunnel with a file."""
        self.world.write("workloads.yaml", mesh)
        more = {"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": SERVER}
        with contextlib.ExitStack() as stack:
            self.world.ztunnel(stack=stack, ENABLE_ORIG_SRC="false", **more)
            yield self

    def answer(self, authority, **more):
        """The status of a CONNECT."""
        name = authority.encode()
        block = b"\x02\x07CONNECT" + b"\x01" + bytes([len(name)]) + name
        for key, value in more.items():
            block += field(key.replace("_", "-").encode(), value.encode())
        sock = self.world.connect(HBONE_PORT)
        with client_context(self.material).wrap_socket(sock) as tls:
            tls.sendall(PREFACE + frame(SETTINGS, 0, 0))
            tls.sendall(frame(HEADERS, END_HEADERS, 1, block))
            while True:
                head = read(tls, 9)
                size = int.from_bytes(head[:3], "big")
                kind, _, stream = struct.unpack("!BBI", head[3:])
                payload = read(tls, size)
                if (kind, stream) == (HEADERS, 1):
                    found = (it for it in STATUSES if payload.startswith(STATUSES[it]))
                    return next(found)


@pytest.fixture(scope="module")
def mesh(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inbound")
    with contextlib.ExitStack() as stack:
        yield Mesh(folder, request.config.getoption("--ztunnel"), stack)


def test_it_answers_authorities_as_we_do(mesh):
    with mesh.running(PLAIN) as there:
        found = {name: there.answer(it.text) for name, it in AUTHORITIES.items()}
    assert found == {name: case.status for name, case in AUTHORITIES.items()}


def test_it_answers_a_tunnels_authorities_as_we_do(mesh):
    with mesh.running(with_tunnel()) as there:
        found = {name: there.answer(it.text) for name, it in TUNNELLED.items()}
    assert found == {name: case.status for name, case in TUNNELLED.items()}


def test_its_matches_are_ours(mesh):
    with mesh.running(denying_fields()) as there:
        found = {
            name: there.answer(f"{IP}:{FIRST + i}") == 401
            for i, name in enumerate(FIELDS)
        }
    assert found == {name: expected for name, (_, expected) in FIELDS.items()}


@pytest.mark.parametrize(("policies", "allowed"), ACTIONS.values(), ids=ACTIONS.keys())
def test_it_allows_what_we_allow(mesh, policies, allowed):
    with mesh.running(with_policies(policies)) as there:
        assert there.answer(f"{IP}:{OPEN}") == (200 if allowed else 401)


def test_whom_it_does_not_know_is_who_baggage_says(mesh):
    """In its log, and in the labels of its metrics."""
    with mesh.running(PLAIN) as there:
        for baggage, _, _ in SAID.values():
            far = {"baggage": baggage, "x_forwarded_network": "far"}
            assert there.answer(f"{IP}:{OPEN}", **far) == 200
        page = there.world.page(15020, "/metrics")
    found = [
        {key[4:]: fields(line).get(key) for key in KEYS if key in fields(line)}
        for line in mesh.world.said("ztunnel.log").splitlines()
        if "\taccess\tconnection complete\t" in line
    ]
    expected = [log for _, log, _ in SAID.values()]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert sources(page) == {
        tuple((UNKNOWN | labels).items()) for _, _, labels in SAID.values()
    }


KEYS = "src.workload", "src.namespace", "src.cluster"


def sources(page):
    """The clients of opened connections, as labels have them."""
    return {
        tuple((name, sample.labels[f"source_{name}"]) for name in UNKNOWN)
        for family in openmetrics.text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == "istio_tcp_connections_opened_total"
    }


@pytest.mark.parametrize(("where", "denied"), SCOPES.values(), ids=SCOPES.keys())
def test_its_scopes_are_ours(mesh, where, denied):
    with mesh.running(with_scope(where)) as there:
        assert there.answer(f"{IP}:{OPEN}") == (401 if denied else 200)
