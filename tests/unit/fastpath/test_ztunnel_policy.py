"""A policy file under a running process: what a change does, and to whom."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket

import pytest

from fastpath.errors import FastpathError
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel.process import Ztunnel
from fastpath.ztunnel.serving import serve
from tests.support.limits import until, wait_until
from vhost_user.vsock.packet import Op

from .tsi_guest import ECHO, TIMEOUT_S, Guest, config, run, sample

OPEN = "egress: {allow: ['127.0.0.0/8', '0.0.0.0/0']}"
CLOSED = "egress: {allow: ['127.0.0.0/8', '0.0.0.0/0'], deny: ['%s:%d'], errno: EACCES}"


class World:
    """Sandbox `a` follows a policy file, `b` does not."""

    def __init__(self, tmp_path, text=OPEN):
        self.path = tmp_path / "policy.yaml"
        self.path.write_text(text)
        self.config = config(tmp_path, policy=self.path)
        self.a, self.b = self.config.fastpath.sandboxes

    def play(self, work):
        """Run `work(guest of a, guest of b)`; return the access log."""

        def both(ztunnel):
            self.ztunnel = ztunnel
            with Guest(self.a) as a, Guest(self.b) as b:
                work(a, b)

        return run(self.config, both)

    def change(self, text):
        """Put another policy into the file, and wait until it was read."""
        before = self.reloads("good"), self.reloads("error")
        self.path.write_text(text)
        wait_until(lambda: (self.reloads("good"), self.reloads("error")) != before)

    def reloads(self, result):
        name = "fastpath_policy_reloads_total"
        return sample(self.ztunnel, name, sandbox="a", result=result)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(TIMEOUT_S)
        yield sock


def test_a_cached_route_follows_the_new_policy_at_once(world, server):
    there = server.getsockname()

    def work(a, b):
        for _ in range(3):
            a.connect(there)
            server.accept()[0].close()
        world.change(CLOSED % there)
        assert a.refused(there) == errno.EACCES
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        world.change(OPEN)
        a.connect(there)

    *_, denied, again = world.play(work)
    assert "\twarn\taccess\tconnection failed\t" in denied
    assert 'src.identity="spiffe://cluster.local/ns/default/sa/a"' in denied
    assert f'error="127.0.0.1:{there[1]}: denied by 127.0.0.1/32:{there[1]}"' in denied
    assert "connection complete" in again


def test_established_connections_that_it_denies_end_and_others_go_on(world, server):
    there = server.getsockname()

    def work(a, b):
        live = a.echoes()
        conns = [a.connect(there) for _ in range(3)]
        clients = [server.accept()[0] for _ in conns]
        world.change(CLOSED % there)
        for conn in conns:
            conn.expect(Op.RST)
        for client in clients:
            with contextlib.closing(client):
                client.settimeout(TIMEOUT_S)
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
        a.echoes(live)

    lines = world.play(work)
    name = "fastpath_policy_ended_total"
    assert sample(world.ztunnel, name, sandbox="a", reason="deny_rule") == 3
    ended = [line for line in lines if "ended by a new policy" in line]
    assert len(ended) == 3
    assert all("connection complete" in line for line in ended)
    assert all("sa/a" in line for line in ended)


def test_a_dial_under_way_that_it_denies_ends_with_the_policys_errno(world):
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        there = server.getsockname()
        for _ in range(3):  # its backlog is full: the SYN gets no answer
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(there)

        def work(a, b):
            conn = a.request(there)
            a.echoes()  # the request was handled
            world.change(CLOSED % there)
            conn.expect(Op.RST)
            assert a.failed() == errno.EACCES

        world.play(work)


def test_it_touches_no_other_sandbox(world):
    def work(a, b):
        live = b.echoes()
        world.change(f"egress: {{deny: ['{ECHO[0]}']}}")
        assert a.refused(ECHO) == errno.ECONNREFUSED
        b.echoes(live)
        b.echoes()

    world.play(work)


def test_an_error_keeps_the_last_good_policy(world, caplog):
    def work(a, b):
        world.change("egress: {allow: [nonsense]}")
        assert (world.reloads("good"), world.reloads("error")) == (0, 1)
        a.echoes()
        world.change(f"egress: {{deny: ['{ECHO[0]}']}}")
        assert a.refused(ECHO) == errno.ECONNREFUSED

    world.play(work)
    assert f"a: the policy stays as it was: {world.path}:1: egress.allow[0]" in (
        caplog.text
    )


def test_a_lower_limit_ends_nothing_and_holds_for_what_comes(world):
    def work(a, b):
        live = [a.echoes() for _ in range(3)]
        world.change(f"{OPEN}\nlimits: {{maxConns: 2, maxQueuedBytes: 4096}}")
        for conn in live:
            a.echoes(conn)
        a.request(ECHO).expect(Op.RST)
        stats = world.ztunnel.device_stats()
        assert (stats["a"].limit_conns, stats["b"].limit_conns) == (1, 0)
        b.echoes()
        world.change(OPEN)
        a.echoes()

    world.play(work)


def test_an_accept_rate_can_be_set_while_it_runs(world):
    def work(a, b):
        world.change(f"{OPEN}\nlimits: {{acceptRate: 1}}")
        answers = [a.request(ECHO).receive().op for _ in range(20)]
        assert answers.count(Op.RST) >= 15
        b.echoes()

    world.play(work)


def test_no_sandbox_can_have_the_descriptors_of_all(world, caplog):
    world.path.write_text("limits: {maxConns: 16777216, maxQueuedBytes: 1099511627776}")

    def work(a, b):
        share = world.ztunnel.sandboxes["a"].service.policy.limits.max_conns
        assert share == world.ztunnel.sandboxes["b"].service.policy.limits.max_conns
        assert 16 <= share < 16777216

    world.play(work)
    assert "a: maxConns is" in caplog.text


def test_udp_sockets_are_within_a_sandboxs_share_too(world):
    most = "limits: {maxConns: 16777216, maxQueuedBytes: 1099511627776}"
    world.path.write_text(most)

    def work(a, b):
        service = world.ztunnel.sandboxes["a"].service
        share = service.policy.limits.max_conns
        world.change(most[:-1] + ", maxUdpSockets: 65535}\nudp: true")
        limits = service.policy.limits
        assert limits.max_udp_sockets == min(share // 4, 65535)
        assert limits.max_conns + limits.max_udp_sockets == share

    world.play(work)


def test_listeners_are_within_a_sandboxs_share_too(world):
    most = "limits: {maxConns: 16777216, maxQueuedBytes: 1099511627776}"
    world.path.write_text(most)

    def work(a, b):
        ztunnel = world.ztunnel
        service = ztunnel.sandboxes["a"].service
        share = service.policy.limits.max_conns
        own = next(it for it in ztunnel.config.fastpath.sandboxes if it.name == "a")
        places = len(ztunnel.config.workload(own.workload).workload_ips)
        world.change(most[:-1] + ", maxListeners: 65535}\npublished: [80]")
        limits = service.policy.limits
        assert limits.max_listeners == min(share // 4 // places, 65535)
        assert limits.max_conns + limits.max_listeners * places == share

    world.play(work)


def test_a_policy_file_with_an_error_starts_nothing(world):
    world.path.write_text("udp: maybe")

    async def main():
        async with Ztunnel(world.config):
            pass

    with pytest.raises(FastpathError, match=r"policy\.yaml:1: udp: must be true or"):
        asyncio.run(main())
    assert not world.a.socket.exists()


def test_a_policy_file_and_rules_contradict_each_other(tmp_path):
    there = config(tmp_path, policy=tmp_path / "p", egress=Egress())
    with pytest.raises(FastpathError, match="leave one of them out"):
        Ztunnel(there)


def test_sighup_reads_all_policy_files_again(tmp_path, caplog):
    document, policy = tmp_path / "z.yaml", tmp_path / "p.yaml"
    (tmp_path / "mesh.yaml").write_text(
        "workloads:\n"
        "- {name: a, namespace: default, workloadIps: [10.0.0.2], services: {}}\n"
    )
    document.write_text(
        f"mesh: {tmp_path}/mesh.yaml\n"
        f"sandboxes: [{{name: a, workload: default/a, socket: {tmp_path}/s, cid: 3,"
        f" policy: {policy}}}]\n"
        f"accessLog: {tmp_path}/log\n"
    )
    policy.write_text("{}")
    reader, writer = os.pipe()

    async def main():
        process = asyncio.create_task(serve(document, ready_fd=writer))
        await asyncio.to_thread(os.read, reader, 1)
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: f"a: new policy from {policy}" in caplog.text)
        os.kill(os.getpid(), signal.SIGTERM)
        return await process

    assert asyncio.run(main()) == 0
    os.close(reader)
    assert f"a: new policy from {policy}" in caplog.text
