"""Istio's file, changed while the process runs: what it denies ends."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, cast

import pytest

from fastpath import files
from fastpath.tsi.clients import Client
from fastpath.ztunnel import config as configuration
from fastpath.ztunnel.authorization import Authorizer
from fastpath.ztunnel.istio.state import MeshState
from fastpath.ztunnel.process import Ztunnel
from fastpath.ztunnel.workloads import LocalWorkloads
from tests.support.limits import LIMIT_S, until, wait_until
from tests.support.ports import free_port
from tests.unit.fastpath.test_ztunnel_inbound import (
    HELLO,
    LISTEN,
    POD,
    TSI_PORT,
    listening,
    peers,
)
from tests.unit.fastpath.tsi_guest import settled
from vhost_user.vsock.driver import VsockGuest

if TYPE_CHECKING:
    from fastpath.ztunnel.pods import Pod

ALLOWED = "127.0.0.6"
OTHER = "127.0.0.7"
WORKLOAD = f"""
workloads:
- {{name: server, namespace: default, workloadIps: [{POD}], services: {{}}}}
"""


def policy(action, match, dry="false"):
    return (
        f"policies: [{{name: p, namespace: default, scope: Namespace, action: {action},"
        f" dryRun: {dry}, rules: [[[{{{match}}}]]]}}]\n"
    )


DENIES = policy("Deny", f"sourceIps: [{OTHER}/32]")


class World:
    """A process with one sandbox, whose guest listens, and its files."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port(POD)
        (folder / "policy.yaml").write_text(f'published: ["{self.port}"]\n')
        self.mesh = folder / "mesh.yaml"
        self.file = folder / "z.yaml"
        self.file.write_text(
            f"mesh: {self.mesh}\n"
            f"sandboxes: [{{name: box, workload: default/server, socket: {folder}/s,"
            f" cid: 3, policy: {folder}/policy.yaml}}]\n"
            f"accessLog: {folder}/access.log\n"
        )

    def write(self, text):
        """Whole at once: a file that is written in place is read half at times."""
        files.replace(self.mesh, WORKLOAD + text)

    def run(self, play):
        """Run `play(guest, control, ztunnel)` on a thread; return the metrics."""

        async def main():
            self.loop = asyncio.get_running_loop()
            loaded = configuration.load_with_lines(self.file)
            async with asyncio.timeout(LIMIT_S), Ztunnel(loaded.config) as ztunnel:
                await ztunnel.follow(loaded)
                await asyncio.to_thread(self._play, play, ztunnel)
                await settled(ztunnel)
                return ztunnel.metrics.text().decode()

        return asyncio.run(main())

    def _play(self, play, ztunnel):
        (sandbox,) = ztunnel.config.fastpath.sandboxes
        with VsockGuest(sandbox.socket) as guest:
            control = guest.connect_privileged(TSI_PORT)
            control.send(HELLO)
            control.receive()
            message = bytearray(LISTEN)
            struct.pack_into("<H", message, 12, self.port)
            control.send(bytes(message))
            assert listening(control) == (self.port, 0)
            play(guest, control, ztunnel)

    def connect(self, source):
        return socket.create_connection((POD, self.port), LIMIT_S, (source, 0))

    def refused(self, source):
        """Whether a client is reset at once."""
        try:
            with self.connect(source) as client:
                return client.recv(1) == b""
        except ConnectionResetError:
            return True

    def log(self):
        return (self.folder / "access.log").read_text()


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def greeted(guest, control, client):
    """The client, the first of its IP, reaches the program, which says `x`."""
    peers(control)
    guest.accept().send(b"x")
    assert client.recv(1) == b"x"


def test_a_policy_denies_clients_of_a_sandbox(world):
    world.write(DENIES)

    def play(guest, control, _ztunnel):
        assert world.refused(OTHER)
        with world.connect(ALLOWED) as client:
            greeted(guest, control, client)

    text = world.run(play)
    assert 'fastpath_denied_total{reason="authorization",sandbox="box"} 1.0' in text
    assert 'response_flags="DENY"' in text
    line = next(it for it in world.log().splitlines() if f"src.addr={OTHER}" in it)
    assert line.split("\t")[1:4] == ["error", "access", "connection complete"]
    assert (
        'error="connection closed due to policy rejection: explicitly denied by:'
        ' default/p"'
    ) in line


def test_what_wants_an_identity_denies_plain_text(world):
    world.write(policy("Allow", "principals: [!Presence []]"))
    world.run(lambda *_: world.refused(ALLOWED))
    assert "allow policies exist, but none allowed" in world.log()


def test_a_dry_run_is_logged_and_denies_nothing(world, caplog):
    caplog.set_level("INFO")
    world.write(policy("Deny", f"sourceIps: [{OTHER}/32]", dry="true"))

    def play(guest, control, _ztunnel):
        with world.connect(OTHER) as client:
            greeted(guest, control, client)

    world.run(play)
    said = [it for it in caplog.messages if "dry-run" in it]
    expected = (
        f"box: {OTHER} to port {world.port}: dry-run: deny policy match: default/p"
    )
    assert said == [expected]


def test_a_new_policy_ends_connections_and_lets_no_more_in(world):
    world.write("")

    def play(guest, control, _ztunnel):
        with world.connect(OTHER) as denied:
            greeted(guest, control, denied)
            with world.connect(ALLOWED) as client:
                greeted(guest, control, client)
                world.write(DENIES)
                with pytest.raises(ConnectionResetError):
                    denied.recv(1)
                assert world.refused(OTHER)
                client.sendall(b"still here")

    text = world.run(play)
    assert (
        'fastpath_policy_ended_total{reason="authorization",sandbox="box"} 1.0' in text
    )
    assert 'error="connection closed due to policy change"' in world.log()


def test_a_policy_that_goes_lets_clients_in(world):
    world.write(DENIES)

    def play(guest, control, ztunnel):
        assert world.refused(OTHER)
        world.write("")
        wait_until(lambda: not ztunnel.config.policies)
        with world.connect(OTHER) as client:
            greeted(guest, control, client)

    world.run(play)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "policies: [{nam: p}]\n",
            "mesh.yaml:4:13: policies[0].nam: unknown field; hint: did you mean name?",
        ),
        (
            "services: []\nworkloads: []\n",
            "mesh.yaml:5:1: workloads: is given twice",
        ),
    ],
)
def test_a_wrong_file_leaves_the_old_one_and_is_said_once(world, caplog, text, why):
    world.write(DENIES)

    def play(_guest, _control, ztunnel):
        world.write(text)
        wait_until(lambda: "stays as it was" in caplog.text)
        world.write(text)  # the same content again
        assert world.refused(OTHER)
        world.write(DENIES + "\n")
        wait_until(lambda: "new mesh from" in caplog.text)
        assert ztunnel.config.policies

    metrics = world.run(play)
    (said,) = [it for it in caplog.messages if "stays as it was" in it]
    assert said.startswith(f"the mesh stays as it was: {world.folder}/{why}")
    assert 'fastpath_mesh_reloads_total{result="error"} 1.0' in metrics
    assert 'fastpath_mesh_reloads_total{result="good"} 1.0' in metrics


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (POD, "127.0.0.8", "workloadIps: is not what sandbox box was started with"),
        ("services", "serviceAccount: other, services", "serviceAccount: is not what"),
        ("services", "trustDomain: other, services", "trustDomain: is not what"),
        (
            "services",
            "applicationTunnel: {protocol: NONE}, services",
            "applicationTunnel: is not what",
        ),
        ("name: server", "name: other", "names no workload of `mesh`: default/server"),
    ],
)
def test_a_sandboxs_workload_stays(world, caplog, old, new, why):
    world.write("")

    def play(_guest, _control, ztunnel):
        files.replace(world.mesh, WORKLOAD.replace(old, new))
        wait_until(lambda: why in caplog.text)
        assert ztunnel.config.workloads[0].name == "server"

    world.run(play)


def test_a_file_that_goes_away_and_comes_back(world, caplog):
    world.write("")

    def play(_guest, _control, _ztunnel):
        world.mesh.rename(world.folder / "old.yaml")
        wait_until(lambda: "No such file" in caplog.text)
        (world.folder / "new.yaml").write_text(WORKLOAD + DENIES)
        (world.folder / "new.yaml").rename(world.mesh)
        wait_until(lambda: "new mesh" in caplog.text)
        assert world.refused(OTHER)

    world.run(play)


def test_routes_and_names_are_those_of_the_new_file(world):
    world.write("")
    service = (
        "services: [{name: web, namespace: default, hostname: web.example,"
        " vips: [/10.96.0.1], ports: {80: 80}}]\n"
    )

    async def main():
        loaded = configuration.load_with_lines(world.file)
        async with asyncio.timeout(LIMIT_S), Ztunnel(loaded.config) as ztunnel:
            await ztunnel.follow(loaded)
            client = ztunnel._clients.sandbox("box")
            decide = ztunnel._routes.decide
            assert decide(client, ("10.96.0.1", 80)).refusal is None
            world.write(service)
            await until(lambda: ztunnel.config.services)
            refusal = decide(client, ("10.96.0.1", 80)).refusal
            assert refusal
            assert refusal.reason == "no_endpoint"
            assert ztunnel._dns._names.lists("web.example", "default")
            assert client.workload is ztunnel.config.workloads[0]

    asyncio.run(main())


def test_a_file_that_changed_before_it_was_followed_counts(world):
    world.write("")
    loaded = configuration.load_with_lines(world.file)

    async def main():
        async with asyncio.timeout(LIMIT_S), Ztunnel(loaded.config) as ztunnel:
            world.write(DENIES)
            await ztunnel.follow(loaded)
            await until(lambda: ztunnel.config.policies)

    asyncio.run(main())


def test_a_sandbox_in_its_pods_namespace_is_judged_there(world):
    """Istio's own proxy is there; here nobody's identity is known."""
    world.write(DENIES)
    loaded = configuration.load(world.file)
    authorizer = Authorizer(MeshState(loaded))
    server = LocalWorkloads(loaded).sandbox("box")
    client = Client((OTHER, 1), (POD, world.port), world.port)
    assert authorizer.denial(server, client)
    server.pod = cast("Pod", object())
    assert authorizer.denial(server, client) == ""


def test_it_is_read_again_when_that_is_asked_for(world, caplog):
    world.write("")

    def play(_guest, _control, ztunnel):
        world.loop.call_soon_threadsafe(ztunnel.reload)
        wait_until(lambda: "new mesh from" in caplog.text)

    world.run(play)


def test_a_drain_closes_the_doors_and_keeps_clients(world):
    world.write("")

    def play(guest, control, ztunnel):
        with world.connect(ALLOWED) as client:
            greeted(guest, control, client)
            world.loop.call_soon_threadsafe(ztunnel.sandboxes["box"].service.drain)
            wait_until(refused_by_tcp)
            client.sendall(b"still here")
            assert ztunnel.sandboxes["box"].service.clients == 1

    def refused_by_tcp():
        try:
            world.connect(OTHER).close()
        except ConnectionRefusedError:
            return True
        return False

    world.run(play)
