"""Comparisons' hand-offs in pods' namespaces: what is wired there, and the proxies."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest

from fastpath.commands.compare import sandboxes
from fastpath.commands.compare.site import NodeSite
from fastpath.datapath import inpod, pods
from fastpath.errors import FastpathError
from tests.support import otherproxy
from tests.support.limits import LIMIT_S

from .conftest import missing_right

pytestmark = pytest.mark.netns

IP_RECVTTL = 12
NEAR = "198.18.0.3"
SERVER = "10.200.4.2"
HANDED_ON = ("tsi+pod", "tsi+inpod", "tsi+socks5")
BULK = bytes(range(256)) * 12000


@pytest.fixture(scope="module")
def site():
    try:
        with pods.Node() as node:
            yield NodeSite(node)
    except FastpathError as exc:
        missing_right(str(exc))


@pytest.fixture(scope="module")
def world(site, tmp_path_factory):
    """All pods with their proxies, and the server's port; by the hand-off's name."""
    folder = tmp_path_factory.mktemp("w")
    with ExitStack() as stack:
        plan = sandboxes.plan(HANDED_ON, site, folder, stack)
        make = site._node.server_netns.socket
        stack.enter_context(otherproxy.echoing(make, (SERVER, 7007)))
        for sandbox in plan:
            assert sandbox.netns
            assert sandbox.handoff
            if sandbox.name == "inpod":
                inpod.install(sandbox.netns.fileno(), {4})
            stack.enter_context(
                otherproxy.running(
                    sandbox.handoff.value,
                    wrap=sandbox.netns.command,
                    service=SERVER,
                    server=SERVER,
                )
            )
        yield {sandbox.name: sandbox for sandbox in plan}


@contextmanager
def connected(sandbox, ip, port):
    """Connect as ztunnel does: in the pod's namespace, by its hand-off."""
    with sandbox.netns.socket() as client:
        client.settimeout(LIMIT_S)
        client.bind((sandbox.ip, 0))
        if sandbox.name != "socks5":
            client.connect((ip, port))
        else:
            client.connect(("127.0.0.1", 15080))
            there = socket.inet_aton(ip) + port.to_bytes(2, "big")
            client.sendall(bytes.fromhex("05 01 00  05 01 00 01") + there)
            reply = bytes.fromhex("05 00  05 00 00 01 00000000 0000")
            assert client.recv(len(reply), socket.MSG_WAITALL) == reply
        yield client


@pytest.mark.parametrize("name", [name.partition("+")[2] for name in HANDED_ON])
def test_the_proxy_in_the_pod_answers_and_passes_on(world, name):
    for ip, port in ((NEAR, 7), (SERVER, 7007)):
        with connected(world[name], ip, port) as client:
            assert otherproxy.exchange(client, BULK) == BULK
    with connected(world[name], NEAR, 9) as client:
        assert otherproxy.exchange(client, BULK) == b""


def test_the_rules_lead_to_the_proxy_and_nothing_else_has_that_address(world):
    with connected(world["inpod"], NEAR, 7) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        listening = subprocess.run(
            world["inpod"].netns.command(["ss", "-Htln"]),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert ":15001" in listening
    assert f"{NEAR}:7" not in listening


def test_a_socks5_proxy_says_that_the_server_refuses(world):
    with world["socks5"].netns.socket() as client:
        client.settimeout(LIMIT_S)
        client.connect(("127.0.0.1", 15080))
        there = socket.inet_aton(SERVER) + (9999).to_bytes(2, "big")
        client.sendall(bytes.fromhex("05 01 00  05 01 00 01") + there)
        said = client.recv(12, socket.MSG_WAITALL)
    assert said[:4] == bytes.fromhex("05 00 05 01")


def test_a_pod_is_as_far_from_the_server_as_ztunnel_is(site, world):
    def ttl_at_server(namespace):
        """What is left of the hop limit when a datagram arrives there."""
        with (
            site._node.server_netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as at,
            namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            at.settimeout(LIMIT_S)
            at.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            at.bind((SERVER, 9))
            client.sendto(b"x", (SERVER, 9))
            _, ancillary, _, _ = at.recvmsg(16, 256)
            (ttl,) = [int.from_bytes(x[2], sys.byteorder) for x in ancillary]
            return ttl

    far = {ttl_at_server(sandbox.netns) for sandbox in world.values()}
    assert far == {ttl_at_server(site._node.ztunnel_netns)}


def test_a_node_is_gone_with_its_context():
    with pods.Node() as node:
        assert "server" in node.netns.run(_devices)
    with pytest.raises(ValueError, match="closed"):
        node.netns.fileno()


def _devices():
    return [name for _, name in socket.if_nameindex()]
