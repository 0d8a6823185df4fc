"""From one sandbox to another by HBONE, our pool to our gate, on one node or two."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
from ipaddress import ip_address

import pytest

from fastpath.ztunnel.istio import file as istio
from fastpath.ztunnel.model import Protocol, Sandbox
from fastpath.ztunnel.process import Ztunnel
from fastpath.ztunnel.reload import Mesh
from tests.support.limits import LIMIT_S, wait_until
from tests.unit.fastpath import gate_world, tsi_guest
from tests.unit.fastpath.gate_world import fields
from tests.unit.fastpath.hbone_world import CLIENT, VIP, WEB, World, own_address
from vhost_user.vsock.packet import Op, Shutdown

DENY_ALL = f"""
policies:
- name: deny
  namespace: {WEB.namespace}
  scope: Namespace
  action: Deny
  dryRun: false
  rules: [[[{{principals: [!Exact "cluster.local/ns/default/sa/client"]}}]]]
"""
DATA = bytes(range(256)) * 1024


class Nodes:
    """Two sandboxes, `client` and `web`, in one process or each in its own."""

    def __init__(self, world: World, *, two: bool) -> None:
        self.world = world
        self.ip = own_address()
        web = world.web(workload_ips=(ip_address(self.ip),))
        config = world.config(web=web, drain_s=2)
        client = dataclasses.replace(
            config.workloads[0],
            workload_ips=(ip_address("127.0.0.1"), ip_address("fd00::2")),
            protocol=Protocol.HBONE,
        )
        policy = world.path / "policy.yaml"
        policy.write_text('published: ["8080"]\n')
        sandbox = Sandbox(
            name="web",
            workload="web-1",
            socket=world.path / "w",
            cid=3,
            policy=policy,
        )
        own = config.fastpath
        config = dataclasses.replace(config, workloads=(client, web))
        mine = dataclasses.replace(own.sandboxes[0], cid=4, pod_listeners=False)
        if two:
            logs = [world.path / "a.log", world.path / "b.log"]
            owns = [
                dataclasses.replace(own, sandboxes=(mine,), access_log=logs[0]),
                dataclasses.replace(own, sandboxes=(sandbox,), access_log=logs[1]),
            ]
        else:
            owns = [dataclasses.replace(own, sandboxes=(mine, sandbox))]
        self.configs = [dataclasses.replace(config, fastpath=each) for each in owns]
        self.loop: asyncio.AbstractEventLoop
        self.ztunnels: list[Ztunnel] = []

    def run(self, play):
        """Run `play(nodes)` beside them; return both access logs, merged."""

        async def main():
            self.loop = asyncio.get_running_loop()
            async with asyncio.timeout(LIMIT_S), contextlib.AsyncExitStack() as stack:
                for config in self.configs:
                    there = await stack.enter_async_context(Ztunnel(config))
                    self.ztunnels.append(there)
                await asyncio.to_thread(self._play, play)
                for there in self.ztunnels:
                    await tsi_guest.settled(there)

        asyncio.run(main())
        logs = {config.fastpath.access_log for config in self.configs}
        lines = [line for log in logs if log for line in log.read_text().splitlines()]
        return {said["direction"]: said for said in map(fields, lines)}

    def _play(self, play) -> None:
        sandboxes = [it for each in self.configs for it in each.fastpath.sandboxes]
        self.web = gate_world.Guest(sandboxes[1].socket)
        with tsi_guest.Guest(sandboxes[0]) as self.client:
            try:
                self.web.listen(8080)
                play(self)
            finally:
                self.web.close()

    def call(self, function, *args):
        async def called():
            return function(*args)

        future = asyncio.run_coroutine_threadsafe(called(), self.loop)
        return future.result(LIMIT_S)

    def connect(self, destination=None, *, first=True):
        """Connect the client to the program of `web`; return both ends."""
        here = self.client.request(destination or (self.ip, 8080))
        there = self.web.accept(first=first)
        here.expect(Op.RESPONSE)
        return here, there

    def set_policies(self, text: str) -> None:
        """Have these policies on all nodes."""
        file, _ = istio.parse(text.encode(), "mesh.yaml")
        for there in self.ztunnels:
            config = dataclasses.replace(there.config, policies=file.policies)
            self.call(there._set_mesh, Mesh.of(config))


@pytest.fixture(params=[False, True], ids=["one-node", "two-nodes"])
def nodes(request, tmp_path):
    with World(tmp_path) as world:
        yield Nodes(world, two=request.param)


def echoed(here, there):
    """Bytes go both ways."""
    here.send(b"ping")
    assert there.receive_bytes(4) == b"ping"
    there.send(b"pong!")
    assert here.receive_bytes(5) == b"pong!"


def test_a_program_reaches_one_in_another_sandbox(nodes):
    """Both logs have both identities, and the program sees who it is."""

    def play(nodes):
        here, there = nodes.connect()
        ip, port = nodes.web.peer(there)
        assert (ip, port) == ("127.0.0.1", here.guest_port & 0xFFFF)
        echoed(here, there)
        here.shutdown(Shutdown.SEND)
        there.expect(Op.SHUTDOWN)
        there.send(b"late")
        assert here.receive_bytes(4) == b"late"
        there.shutdown(Shutdown.BOTH)
        here.expect(Op.SHUTDOWN)

    said = nodes.run(play)
    for line in said.values():
        assert line["message"] == "connection complete"
        assert line["src.identity"] == str(CLIENT)
        assert line["dst.identity"] == str(WEB)
        assert line["dst.hbone_addr"] == f"{nodes.ip}:8080"
        assert line["dst.addr"] == f"{nodes.ip}:15008"
        assert "error" not in line
    assert set(said) == {"inbound", "outbound"}
    assert said["outbound"]["bytes_sent"] == "4"


def test_a_service_is_reached_so_too(nodes):
    def play(nodes):
        echoed(*nodes.connect(VIP))
        echoed(*nodes.connect(VIP, first=False))

    assert nodes.run(play)["inbound"]["dst.service"] == "web.default"


def test_many_bytes_arrive_as_they_were_sent(nodes):
    def play(nodes):
        here, there = nodes.connect()
        for at in range(0, len(DATA), 16384):
            piece = DATA[at : at + 16384]
            here.send(piece)
            assert there.receive_bytes(len(piece)) == piece
            there.send(piece)
            assert here.receive_bytes(len(piece)) == piece

    nodes.run(play)


def test_a_port_that_nobody_listens_on_is_refused(nodes):
    def play(nodes):
        assert nodes.client.refused((nodes.ip, 8081)) == errno.ECONNREFUSED

    said = nodes.run(play)
    assert said["outbound"]["error"].startswith("the peer answered CONNECT by 503: ")


def test_a_policy_at_the_destination_is_what_connect_fails_with(nodes):
    def play(nodes):
        here, _ = nodes.connect()
        nodes.set_policies(DENY_ALL)
        here.expect(Op.RST, Op.SHUTDOWN)
        assert nodes.client.refused((nodes.ip, 8080)) == errno.EACCES

    said = nodes.run(play)
    assert said["outbound"]["error"].startswith("the peer answered CONNECT by 401: ")


def test_connections_outlive_certificates_of_both_ends(tmp_path):
    """Each lives for eight seconds, half of which a slow machine has for the next."""
    with World(tmp_path, life_s=8) as world:
        nodes = Nodes(world, two=True)

        def serials():
            found = [each._certificates.dump() for each in nodes.ztunnels]
            return [own["certChain"][0]["serialNumber"] for (own,) in found]

        def play(nodes):
            here, there = nodes.connect()
            seen = [{serial} for serial in serials()]

            def rotated():
                for known, serial in zip(seen, serials(), strict=True):
                    known.add(serial)
                return all(len(known) > 2 for known in seen)

            wait_until(rotated)
            echoed(here, there)
            for each in nodes.ztunnels[0]._outbounds:
                nodes.call(each.drain_tunnels, 60)  # the next has a tunnel of its own
            other, more = nodes.connect(first=False)
            echoed(other, more)
            echoed(here, there)

        nodes.run(play)


def test_a_node_that_drains_lets_connections_end(nodes):
    def play(nodes):
        here, there = nodes.connect()
        hurry = asyncio.Event()
        ends = [
            asyncio.run_coroutine_threadsafe(each.drain(LIMIT_S, hurry), nodes.loop)
            for each in nodes.ztunnels
        ]
        wait_until(lambda: not any(each._ready for each in nodes.ztunnels))
        assert nodes.client.refused((nodes.ip, 8080)) == errno.ECONNREFUSED
        echoed(here, there)
        here.shutdown(Shutdown.BOTH)
        there.expect(Op.SHUTDOWN)
        there.shutdown(Shutdown.BOTH)
        for end in ends:
            end.result(LIMIT_S)

    assert "error" not in nodes.run(play)["inbound"]
