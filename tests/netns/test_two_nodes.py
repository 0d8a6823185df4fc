"""Programs on two nodes of one mesh: ours on one at least, whatever the other has.

No VM here: guests are in user space (tests/vm/test_two_nodes.py boots some).
"""

from __future__ import annotations

import contextlib
import re

import pytest

from tests.netns.istio_world import identity
from tests.netns.mesh_world import NODES, PODS, PORT, SERVICE, VIP, World, check_bulk

pytestmark = pytest.mark.netns

COUNT = 200
ISTIO = pytest.mark.ztunnel
PAIRS = [
    pytest.param({"a": "ours", "b": "ours"}, id="ours-ours"),
    pytest.param({"a": "pod", "b": "pod"}, id="pod-pod"),
    pytest.param({"a": "capture", "b": "ours"}, id="capture-ours"),
    pytest.param({"a": "ours", "b": "plain"}, id="ours-plain"),
    pytest.param({"a": "ours", "b": "envoy"}, id="ours-envoy"),
    pytest.param({"a": "envoy", "b": "ours"}, id="envoy-ours"),
    pytest.param({"a": "ours", "b": "istio"}, id="ours-istio", marks=ISTIO),
    pytest.param({"a": "istio", "b": "ours"}, id="istio-ours", marks=ISTIO),
]
pairs = pytest.mark.parametrize("world", PAIRS, indirect=True)


@pytest.fixture
def world(request, tmp_path):
    with contextlib.ExitStack() as stack:
        binary = request.config.getoption("--ztunnel")
        made = World(tmp_path, request.param, stack, binary)
        made.programs["b"].listen(PODS["b"])
        yield made


@pairs
def test_bytes_and_the_clients_address_reach_the_other_node(world):
    near, far, seen = world.connected()
    near.send(b"ping")
    assert far.read(4) == b"ping"
    far.send(b"pong")
    assert near.read(4) == b"pong"
    at = world.kinds
    if at["b"] == "envoy":  # its upstream socket is its own
        assert seen == PODS["b"]
    elif at["a"] == "capture":  # so is ours for what we capture
        assert seen == NODES["a"]
    else:
        assert seen == PODS["a"]


@pairs
@pytest.mark.parametrize("first", ["client", "server"])
def test_either_end_may_end_first(world, first):
    near, far, _ = world.connected()
    if first == "server":
        if world.kinds["b"] == "envoy":
            return  # it takes no more from then on (conformance/test_hbone_envoy.py)
        near, far = far, near
    near.send(b"last")
    near.end()
    assert far.read(4) == b"last"
    far.ended()
    far.send(b"answer")
    far.end()
    assert near.read(6) == b"answer"
    near.ended()


@pairs
def test_megabytes_arrive_as_they_were_sent(world):
    near, far, _ = world.connected()
    check_bulk(near, far)


@pairs
def test_both_logs_have_both_identities(world):
    """SPIFFE identities, by mutual TLS: of the one who asks, and of who answers."""
    near, far, _ = world.connected()
    near.send(b"12345")
    far.read(5)
    near.end()
    far.ended()
    far.end()
    near.ended()
    if world.kinds["a"] != "envoy":
        line = world.said("a", 'direction="outbound"')
        assert f'src.identity="{identity("a")}"' in line
        if world.kinds["b"] != "plain":
            assert f'dst.identity="{identity("b")}"' in line
            assert f"dst.hbone_addr={PODS['b']}:{PORT}" in line
            assert f"dst.addr={PODS['b']}:15008" in line
        assert "bytes_sent=5" in line
    if world.kinds["b"] in {"ours", "istio"}:
        line = world.said("b", 'direction="inbound"')
        for name, who in (("src", "a"), ("dst", "b")):
            assert re.search(rf'{name}\.identity="{identity(who)}"', line)
    if world.kinds["b"] == "envoy":
        assert identity("a") in world.said("b", "authority")


@pairs
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_ends_the_other_end(world, who):
    near, far, _ = world.connected()
    if who == "server":
        near, far = far, near
    near.send(b"x")
    far.read(1)
    near.reset()
    ended = far.is_over()
    if {"ours", "pod"} >= set(world.kinds.values()):
        assert ended == "reset"  # Istio's makes FINs of some


@pytest.mark.parametrize(
    "world",
    [each for each in PAIRS if each.id != "envoy-ours"],
    indirect=True,
)
def test_a_service_is_reached_by_its_vip(world):
    near, far, _ = world.connected(address=(VIP, SERVICE))
    near.send(b"ping")
    assert far.read(4) == b"ping"


@pairs
def test_hundreds_of_connections_go_at_once(world):
    found = [world.connected() for _ in range(COUNT)]
    for index, (near, far, _) in enumerate(found):
        near.send(b"%03d" % index)
        assert far.read(3) == b"%03d" % index
    for near, far, _ in found:
        near.end()
        far.ended()
