"""Our ztunnel where Istio's in-pod rules and Kata's l3forwarding lead a guest to it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from fastpath.datapath import catalogue, inpod_l3forwarding
from fastpath.datapath.build import Built
from fastpath.datapath.standin import SERVER_PORT, Guest
from fastpath.errors import FastpathError
from tests.support.limits import LIMIT_S

pytestmark = pytest.mark.netns

ECHO = "198.18.0.1"
WORKLOAD = {
    "uid": "guest",
    "name": "guest",
    "namespace": "test",
    "serviceAccount": "guest",
    "trustDomain": "cluster.local",
    "workloadIps": ["10.200.1.2"],
    "services": {},
}


@pytest.fixture
def path(missing):
    try:
        with Built(catalogue.possible(inpod_l3forwarding.NAME)) as built:
            yield built
    except FastpathError as exc:
        missing(str(exc))


@pytest.fixture
def guest(path):
    with Guest(path.nic, path.path.sandbox) as guest:
        yield guest


@pytest.fixture
def ztunnel(path, tmp_path):
    """In the pod's namespace, with a sandbox that has its IP."""
    sandbox = {
        "name": "guest",
        "workload": "test/guest",
        "socket": str(tmp_path / "v"),
        "cid": 3,
        "egress": {"allow": ["0.0.0.0/0"]},
    }
    config = {
        "mesh": str(tmp_path / "mesh.yaml"),
        "sandboxes": [sandbox],
        "echo": ECHO,
        "outbound": {"redirect": "0.0.0.0:15001"},
        "accessLog": str(tmp_path / "log"),
        "drainS": 0,
    }
    (tmp_path / "z.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "mesh.yaml").write_text(yaml.safe_dump({"workloads": [WORKLOAD]}))
    argv = [sys.executable, "-m", "fastpath", "ztunnel", "--config"]
    with subprocess.Popen(
        path.netns["pod"].command([*argv, str(tmp_path / "z.yaml")]),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "REDIRECT on 0.0.0.0:15001" in process.stderr.readline()
        yield process
        process.terminate()
        process.communicate(timeout=LIMIT_S)


def test_ztunnel_knows_who_comes_and_where_to(path, guest, ztunnel):
    with guest.connect((ECHO, 7)) as client:
        client.sendall(b"over the tap")
        assert client.recv(64) == b"over the tap"
    with path.netns["server"].socket() as server:
        server.bind((path.path.server, SERVER_PORT))
        server.listen()
        with guest.connect((path.path.server, SERVER_PORT)) as client:
            accepted, peer = server.accept()
            with accepted:
                accepted.sendall(b"from behind")
                assert client.recv(64) == b"from behind"
    assert peer[0] == "10.200.1.2", "ztunnel dials from the pod's IP"


def test_127_0_0_1_of_the_pod_is_the_guests_port(path, guest):
    """Kata's forwarding, which `kubectl port-forward` takes."""
    with guest.listen() as server, path.netns["pod"].socket() as client:
        client.settimeout(LIMIT_S)
        client.connect(("127.0.0.1", SERVER_PORT))
        accepted, peer = server.accept()
        accepted.close()
    assert peer[0] == "169.254.0.1"


def test_the_rules_are_istios_and_katas():
    """As printed in kata-containers issue 13208 and istio PR 60876."""
    rules = inpod_l3forwarding.istio_rules()
    assert rules.index(
        "-t mangle -A ISTIO_PRERT -s 169.254.7.127 -p tcp -j ACCEPT"
    ) < rules.index(
        "-t mangle -A ISTIO_PRERT -i eth0 -p tcp -j MARK --set-xmark 0x111/0xfff"
    )
    assert rules.index(
        "-t nat -A ISTIO_PRERT -i tap0_kata -p tcp -j REDIRECT --to-ports 15001"
    ) < rules.index(
        "-t nat -A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp ! --dport 15008"
        " -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006"
    )
    assert (
        "-t mangle -A ISTIO_OUTPUT -d 10.200.1.2/32 -p tcp --dport 15008"
        " -j MARK --set-xmark 0x111/0xfff"
    ) in rules
