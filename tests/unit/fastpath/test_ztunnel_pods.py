"""Sandboxes in their pods' namespaces: what decides, with namespaces that are fakes."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import dns.message
import pytest

from fastpath.errors import FastpathError
from fastpath.handoff.namespace import NamespaceError
from fastpath.tsi.policy import Ports, SandboxPolicy
from fastpath.ztunnel import config as configuration
from fastpath.ztunnel import pods as module
from fastpath.ztunnel.dns import Dns
from fastpath.ztunnel.inbound import SandboxPublisher
from fastpath.ztunnel.model import Publication
from fastpath.ztunnel.pods import Pod, Pods
from fastpath.ztunnel.routing import Routes
from fastpath.ztunnel.workloads import LocalWorkloads
from tests.support.limits import LIMIT_S
from tests.unit.fastpath.dns_peers import Upstream, ask, records, texts
from tests.unit.fastpath.dns_peers import config as dns_config
from tests.unit.fastpath.pod_fakes import (
    PATH,
    WEB,
    FakeEngine,
    FakeNamespace,
    config,
    pod,
)
from vhost_user.engine import Dial, Reset


@pytest.fixture
def client():
    """The sandbox of `config()`, in a pod whose engine gave it number 77."""
    clients = LocalWorkloads(config())
    found = clients.sandbox("box")
    found.pod, _ = pod()
    found.pod.join(cast("Any", FakeEngine()))
    return clients, found


def test_a_pod_dials_from_its_ips():
    there, _ = pod("10.0.0.5", "fd00::5")
    engine = FakeEngine()
    there.join(cast("Any", engine))
    assert there.netns == 77
    assert engine.said == [("add", (ip_address("10.0.0.5"), ip_address("fd00::5")))]


def test_another_process_is_the_engines_maker_until_the_pod_is_gone():
    there, space = pod()
    engine = FakeEngine()
    there.join(cast("Any", engine))
    space.restarted[0]()
    there.leave()
    there.leave()
    space.restarted[0]()
    assert engine.said[1:] == ["renew", "close"]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize(
    ("family", "own"), [(socket.AF_INET, "127.0.0.5"), (socket.AF_INET6, "::1")]
)
def test_peers_of_a_pods_sockets_see_its_ip(family, kind, own):
    there, space = pod()
    with there.client(family, kind) as sock:
        assert sock.getsockname()[0] == own
    assert space.made == [(family, kind)]


def test_a_pod_without_an_ip_of_a_version_has_no_such_socket():
    there, space = pod("127.0.0.5")
    with pytest.raises(OSError, match="unreachable"):
        there.client(socket.AF_INET6, socket.SOCK_STREAM)
    assert not space.made


def test_an_ip_that_is_not_there_is_an_error_that_says_so():
    there, _ = pod("192.0.2.9")
    with pytest.raises(OSError, match="assign requested address"):
        there.client(socket.AF_INET, socket.SOCK_DGRAM)


def test_a_pod_that_is_gone_has_no_sockets():
    there, space = pod()
    there.leave()
    for make in (there.make, there.client):
        with pytest.raises(OSError, match="unreachable") as caught:
            make(socket.AF_INET, socket.SOCK_STREAM)
        assert caught.value.errno == errno.ENETUNREACH
    assert not space.made


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/run/netns/pod1", ("192.0.2.53",)),
        ("/var/run/netns/pod1", ("192.0.2.53",)),
        ("/run/netns/other", ()),
        ("/proc/1/ns/net", ()),
        ("/elsewhere/pod1", ()),
    ],
)
def test_a_named_namespace_has_resolvers_of_its_own(tmp_path, path, found):
    (tmp_path / "pod1").mkdir()
    (tmp_path / "pod1/resolv.conf").write_text("nameserver 192.0.2.53\n")
    there, _ = pod(etc=tmp_path, path=Path(path))
    assert there.nameservers() == found


def test_connections_are_dialled_where_the_pod_is(client):
    _, box = client
    decision = Routes(config()).decide(box, WEB)
    assert decision.target == Dial(WEB, 77)
    assert decision.cacheable


def test_the_policy_is_asked_first(client):
    _, box = client
    routes = Routes(config())
    for denied in (("169.254.169.254", 80), ("10.0.0.5", 15008), ("127.0.0.1", 80)):
        assert isinstance(routes.decide(box, denied).target, Reset)


@pytest.mark.parametrize("where", [WEB, ("127.0.0.1", 80), ("2001:db8::1", 443)])
def test_nothing_is_reached_once_the_namespace_is_gone(client, where):
    clients, box = client
    box.pod.leave()
    box.policy = clients.for_client(box, SandboxPolicy())
    decision = Routes(config()).decide(box, where)
    assert decision.target == Reset(errno.ENETUNREACH)
    assert decision.refusal
    assert decision.refusal.reason == "netns_gone"
    assert "/run/netns/pod1 is gone" in decision.refusal.text


def test_listeners_are_the_namespaces_and_end_with_it(client):
    _, box = client
    (sandbox,) = config(
        publish=(Publication.parse("127.0.0.1:8080:80"),)
    ).fastpath.sandboxes
    publisher = SandboxPublisher(sandbox, box, cast("Any", None), cast("Any", None))
    (place,) = publisher.addresses(80, 4, covered=False)
    there = replace(place, port=0)
    publisher.listen(there, 5).close()
    assert box.pod.namespace.made == [(socket.AF_INET, socket.SOCK_STREAM)]
    box.pod.leave()
    assert publisher.addresses(80, 4, covered=False) == []
    assert publisher.addresses(80, 6, covered=True) == []


def test_captured_connections_are_not_those_of_such_a_pod():
    assert LocalWorkloads(config()).at(ip_address("10.0.0.5")) is None


def test_a_gone_pods_policy_is_gone_with_it_whatever_is_reloaded(client):
    clients, box = client
    box.pod.leave()
    again = clients.for_client(box, SandboxPolicy(published=Ports.parse("80")))
    denial = again.egress.check(WEB)
    assert denial
    assert denial.error == errno.ENETUNREACH


@pytest.mark.parametrize("tcp", [False, True])
def test_resolvers_are_asked_from_the_pods_ip(tcp):
    async def work():
        async with asyncio.timeout(LIMIT_S), Upstream(records) as upstream:
            resolver = Dns(dns_config(upstream.address))
            there, space = pod()
            query = dns.message.make_query("there.example", "A")
            wire = await resolver.resolve(
                query.to_wire(), namespace="shop", tcp=tcp, sandbox="box", pod=there
            )
            assert wire is not None
            assert texts(dns.message.from_wire(wire)) == ["192.0.2.0"]
            kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
            assert space.made == [(socket.AF_INET, kind)]
            assert [peer[0] for peer in upstream.peers] == ["127.0.0.5"] * (not tcp)
            await ask(resolver, query, tcp=tcp)  # another sandbox's, and not there
            assert len(space.made) == 1
            await resolver.close()

    asyncio.run(work())


def test_a_namespaces_own_resolvers_come_before_those_of_the_file(tmp_path):
    (tmp_path / "pod1").mkdir()
    conf = tmp_path / "pod1/resolv.conf"
    conf.write_text("nameserver 192.0.2.53\n")
    there, _ = pod(etc=tmp_path)
    resolver = Dns(dns_config(), resolv_conf=conf)
    assert resolver.resolvers(there) == [("192.0.2.53", 53)]
    conf.write_text("# none\n")
    other = tmp_path / "resolv.conf"
    other.write_text("nameserver 192.0.2.54\n")
    assert Dns(dns_config(), resolv_conf=other).resolvers(there) == [("192.0.2.54", 53)]


class Spaces:
    """Opens fake namespaces; the paths in `bad` are none."""

    def __init__(self, *bad):
        self.bad = bad
        self.opened = []

    def __call__(self, path):
        if path in self.bad:
            raise NamespaceError(f"{path}: No such file or directory", "make it first")
        self.opened.append(FakeNamespace(path))
        return self.opened[-1]


def two(tmp_path, first, second):
    """A file with two sandboxes, and the error that it gives, if any."""
    file = tmp_path / "z.yaml"
    file.write_text(
        f"mesh: {tmp_path / 'mesh.yaml'}\n"
        "sandboxes:\n"
        "  - {name: a, workload: d/a, socket: /s/a, cid: 3, publish: ['8080:80'],\n"
        f"     netns: {first}}}\n"
        "  - {name: b, workload: d/b, socket: /s/b, cid: 4, publish: ['8080:80'],\n"
        f"     netns: {second}}}\n"
    )
    (tmp_path / "mesh.yaml").write_text(
        "workloads:\n"
        "  - {name: a, namespace: d, workloadIps: [10.0.0.5], services: {}}\n"
        "  - {name: b, namespace: d, workloadIps: [10.0.0.6], services: {}}\n"
    )
    loaded = configuration.load_with_lines(file)
    return loaded.config, loaded


def start_error(there, document):
    """What `start` raises; everything is closed then."""

    async def work():
        pods = Pods(there, document.error)
        with pytest.raises(FastpathError) as caught:
            await pods.start()
        pods.close()
        return caught.value

    return asyncio.run(work())


def test_a_path_that_is_none_names_its_line_and_all_is_closed(tmp_path, monkeypatch):
    spaces = Spaces(Path("/run/netns/b"))
    monkeypatch.setattr(module, "PodNamespace", spaces)
    error = start_error(*two(tmp_path, "/run/netns/a", "/run/netns/b"))
    assert error.what == f"{tmp_path / 'z.yaml'}:6:6: sandboxes[1].netns"
    assert error.why == "/run/netns/b: No such file or directory"
    assert error.hint == "make it first"
    assert [space.closed for space in spaces.opened] == [True]


def test_one_that_may_not_be_entered_names_its_line(tmp_path, monkeypatch):
    async def start(space):
        if space.path.name == "b":
            raise NamespaceError("can't be entered: not permitted", "run as root")

    spaces = Spaces()
    monkeypatch.setattr(module, "PodNamespace", spaces)
    monkeypatch.setattr(FakeNamespace, "start", start)
    error = start_error(*two(tmp_path, "/run/netns/a", "/run/netns/b"))
    assert error.what == f"{tmp_path / 'z.yaml'}:6:6: sandboxes[1].netns"
    assert error.why == "can't be entered: not permitted"
    assert [space.closed for space in spaces.opened] == [True, True]


def test_sandboxes_share_a_namespace_and_hear_of_its_end_once(
    tmp_path, monkeypatch, caplog
):
    spaces = Spaces()
    monkeypatch.setattr(module, "PodNamespace", spaces)
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    text = two(tmp_path, "/run/netns/a", "/run/netns/b")[0]
    own = text.fastpath
    shared = tuple(replace(it, netns=PATH, publish=()) for it in own.sandboxes)
    there = replace(text, fastpath=replace(own, sandboxes=shared))

    async def work():
        pods = Pods(there, configuration.error)
        await pods.start()
        (space,) = spaces.opened
        joined = [pods.join(it, cast("Any", FakeEngine())) for it in shared]
        told = []
        both = asyncio.Event()

        def on_gone(name):
            told.append(name)
            if len(told) == 2:
                both.set()

        pods.watch(on_gone)
        await asyncio.sleep(0)
        assert not told
        space.gone = True
        async with asyncio.timeout(LIMIT_S):
            await both.wait()
        assert told == ["a", "b"]
        assert all(it and it.gone for it in joined)
        assert space.closed
        pods.close()

    asyncio.run(work())
    (record,) = caplog.records
    assert record.getMessage() == (
        "/run/netns/pod1 is gone: connections of a, b end, and no more are made"
    )


def test_sandboxes_are_looked_at_again_when_there_is_another_process(monkeypatch):
    spaces = Spaces()
    monkeypatch.setattr(module, "PodNamespace", spaces)
    there = config()

    async def work():
        pods = Pods(there, configuration.error)
        await pods.start()
        (space,) = spaces.opened
        engine, told = FakeEngine(), []
        pods.join(there.fastpath.sandboxes[0], cast("Any", engine))
        pods.watch(lambda name: told.append((name, engine.said[-1])))
        for call in space.restarted:
            call()
        assert told == [("box", "renew")]  # and the engine is asked first
        pods.close()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("limit", "sandboxes", "count"),
    [
        (1 << 20, 1, 32),
        (1 << 20, 1023, 32),
        (20000, 99, 12),
        (4096, 99, 2),
        (1024, 1023, 2),
        (resource.RLIM_INFINITY, 1023, 32),
    ],
)
def test_fewer_sockets_are_kept_where_descriptors_are_few(
    monkeypatch, limit, sandboxes, count
):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert module.kept(sandboxes) == count


def own(pod, *destination):
    """What the policy of a sandbox in a pod says to a destination."""
    clients = LocalWorkloads(config())
    box = clients.sandbox("box")
    box.pod = pod
    return clients.for_client(box, SandboxPolicy()).egress.check(destination)


@pytest.mark.parametrize(
    "port", [15000, 15001, 15006, 15008, 15020, 15021, 15053, 15080]
)
def test_ztunnels_ports_are_denied_on_the_addresses_of_the_pod(port):
    class Elsewhere(FakeNamespace):
        """Has 192.0.2.1 and, unlike the host, no other address."""

        def make(self, family, kind):
            self.made.append((family, kind))
            return cast("Any", Probe())

    class Probe:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

        def bind(self, address):
            if address != ("192.0.2.1", 0):
                raise OSError(errno.EADDRNOTAVAIL, "not here")

    there = Pod("box", cast("Any", Elsewhere()), (ip_address("10.0.0.5"),))
    denial = own(there, "192.0.2.1", port)
    assert denial
    assert denial.reason == "ztunnel_port"
    assert denial.text == f"port {port} of {PATH} is ztunnel's own"
    assert own(there, "192.0.2.2", port) is None
    assert own(there, "192.0.2.1", 80) is None


def test_an_address_that_may_be_the_pods_own_is_taken_for_it():
    class Silent(FakeNamespace):
        def make(self, family, kind):
            raise OSError(errno.EAGAIN, "not now")

    there = Pod("box", cast("Any", Silent()), (ip_address("10.0.0.5"),))
    denial = own(there, "192.0.2.2", 15008)
    assert denial
    assert denial.reason == "ztunnel_port"


def test_two_namespaces_have_the_same_addresses(tmp_path):
    two(tmp_path, "/run/netns/a", "/run/netns/b")
    with pytest.raises(FastpathError, match=r"127.0.0.1:8080 in /run/netns/a is also"):
        two(tmp_path, "/run/netns/a", "/run/netns/a")


def test_a_name_is_no_path(tmp_path):
    with pytest.raises(FastpathError, match="must be a path as /run/netns/NAME"):
        two(tmp_path, "/run/netns/a", "pod1")
