"""To a service on another network, by its gateway: HBONE within HBONE.

Envoy is the gateway. Ours are on one of the two nodes at least, or on both; the other
has Istio's ztunnel (`--ztunnel BIN`).
"""

from __future__ import annotations

import contextlib
import re
import threading

import pytest

from tests.netns.istio_world import identity
from tests.netns.mesh_world import PODS, SERVICE, VIPS, World, check_bulk
from tests.support.limits import LIMIT_S

pytestmark = pytest.mark.netns

ISTIO = pytest.mark.ztunnel
NAME = f"c.default.svc.cluster.local:{SERVICE}"


@pytest.fixture(
    params=[
        pytest.param(("ours", "ours"), id="ours-ours"),
        pytest.param(("ours", "istio"), id="ours-istio", marks=ISTIO),
        pytest.param(("istio", "ours"), id="istio-ours", marks=ISTIO),
    ]
)
def world(request, tmp_path):
    with contextlib.ExitStack() as stack:
        a, c = request.param
        kinds = {"a": a, "b": "gateway", "c": c}
        made = World(tmp_path, kinds, stack, request.config.getoption("--ztunnel"))
        made.programs["c"].listen(PODS["c"])
        yield made


def connected(world):
    """Connect to the service; return both ends, and the IP that its program sees."""
    near = []
    going = threading.Thread(
        target=lambda: near.append(world.programs["a"].connect((VIPS["c"], SERVICE)))
    )
    going.start()
    far, seen = world.programs["c"].accept(PODS["b"])
    going.join(LIMIT_S)
    return near[0], far, seen


def test_a_service_on_another_network_is_reached_by_its_gateway(world):
    """Bytes, ends, who is who in the logs; the program sees the gateway's IP."""
    near, far, seen = connected(world)
    assert seen == PODS["b"]
    check_bulk(near, far)
    near.end()
    far.ended()
    far.send(b"last")
    far.end()
    assert near.read(4) == b"last"
    near.ended()
    line = world.said("a", 'direction="outbound"')
    assert f"dst.hbone_addr={NAME}" in line
    assert f"dst.addr={PODS['b']}:15008" in line
    assert f'src.identity="{identity("a")}"' in line
    service = 'dst.service="c.default.svc.cluster.local"'
    far_end = f'dst.identity="{identity("c")}" dst.cluster="Kubernetes"'
    assert f'{service} dst.namespace="default" {far_end}' in line  # as it says
    assert " error=" not in line
    line = world.said("c", 'direction="inbound"')
    assert f"dst.hbone_addr={NAME}" in line
    assert re.search(rf'src\.identity="{identity("a")}"', line)
    assert "src.workload=" not in line  # that IP is the gateway's
    assert NAME in world.said("b", "authority")


def test_many_connections_go_by_the_gateway_at_once(world):
    found = [connected(world) for _ in range(50)]
    for index, (near, far, _) in enumerate(found):
        near.send(b"%02d" % index)
        assert far.read(2) == b"%02d" % index
    for near, far, _ in found:
        near.end()
        far.ended()
