"""The process with the real engine: sockets, capture, admin pages, its end.

A plain listener on loopback stands in for TPROXY's: a connection's destination
is then the listener's own address, which the tests make a service's VIP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import signal
import socket
import urllib.error
import urllib.request
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from fastpath.errors import FastpathError
from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel import config as configuration
from fastpath.ztunnel import listener
from fastpath.ztunnel.model import (
    Config,
    Fastpath,
    ListenAddress,
    NamespacedHostname,
    NetworkAddress,
    Sandbox,
    Service,
    Workload,
)
from fastpath.ztunnel.process import Ztunnel
from fastpath.ztunnel.serving import serve
from tests.support.descriptors import check_closed, descriptors
from tests.support.limits import LIMIT_S as TIMEOUT_S
from tests.support.limits import until
from tests.support.ports import free_port

LOOPBACK = ip_address("127.0.0.1")
WEB = NamespacedHostname("default", "web")
FREE = ListenAddress(LOOPBACK, 0)


def config(tmp_path, port, upstream, *, allow="127.0.0.0/8", **own):
    """127.0.0.1 is the client; the listener's own address is the VIP."""
    workload = Workload(
        workload_ips=(ip_address("127.0.0.2"),),
        namespace="default",
        name="client",
        service_account="client",
    )
    web = Workload(
        workload_ips=(LOOPBACK,),
        namespace="default",
        name="web-1",
        services={WEB: {port: upstream}},
    )
    service = Service(
        name="web",
        namespace="default",
        hostname="web",
        vips=(NetworkAddress("", ip_address("127.0.0.3")),),
        ports={port: 0},
    )
    sandbox = Sandbox(
        name="box",
        workload="default/client",
        socket=tmp_path / "box.sock",
        cid=3,
        uds_path=tmp_path / "box.vsock",
        egress=Egress(allow=(Rule.parse(allow),)),
    )
    fields = {"sandboxes": (sandbox,), "access_log": tmp_path / "access.log"} | own
    return Config(
        workloads=(workload, web), services=(service,), fastpath=Fastpath(**fields)
    )


def listen(host="127.0.0.3"):
    return socket.create_server((host, 0))


async def connect(address, source="127.0.0.2"):
    """Connect from the client's IP."""
    return await asyncio.open_connection(*address, local_addr=(source, 0))


async def expect_reset(address, source="127.0.0.2"):
    """Connect and see a reset, which may come before connect() has returned."""

    async def connect_and_read():
        reader, writer = await connect(address, source)
        with contextlib.closing(writer):
            await reader.readexactly(1)

    with pytest.raises(ConnectionResetError):
        await connect_and_read()


async def counted(ztunnel, name):
    """Wait until a counter of that name has a sample."""
    await until(lambda: f"{name}{{".encode() in ztunnel.metrics.text(), what=name)


@contextlib.asynccontextmanager
async def upper_server():
    """Answer what it gets in upper case, after the end of it."""

    async def answer(reader, writer):
        writer.write((await reader.read()).upper())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def run(main):
    async def bounded():
        async with asyncio.timeout(TIMEOUT_S):
            return await main

    return asyncio.run(bounded())


def fetch(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def test_a_captured_connection_reaches_the_service(tmp_path):
    async def main():
        capture = listen()
        address = capture.getsockname()
        async with (
            upper_server() as upstream,
            Ztunnel(
                config(tmp_path, address[1], upstream, metrics=FREE), capture=capture
            ) as ztunnel,
        ):
            reader, writer = await connect(address)
            local = writer.get_extra_info("sockname")
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"HELLO"
            writer.close()
            await counted(ztunnel, "istio_tcp_connections_closed_total")
            page = await asyncio.to_thread(fetch, ztunnel.admin[0].port, "/metrics")
            ready = await asyncio.to_thread(
                fetch, ztunnel.admin[0].port, "/healthz/ready"
            )
            other = await asyncio.to_thread(fetch, ztunnel.admin[0].port, "/")
        return local, upstream, page, ready, other

    local, upstream, page, ready, other = run(main())
    assert page[0] == 200
    assert 'destination_service="web"' in page[1]
    assert "istio_tcp_received_bytes_total" in page[1]
    assert 'fastpath_device_opened_total{sandbox="box"} 0.0' in page[1]
    assert "fastpath_engine_wakeups_total" in page[1]
    assert 'fastpath_tsi_unknown_total{sandbox="box"} 0.0' in page[1]
    assert 'fastpath_tsi_tokens{sandbox="box"} 0.0' in page[1]
    assert ready == (200, "ready\n")
    assert other[0] == 404
    (line,) = (tmp_path / "access.log").read_text().splitlines()
    assert line.split("\t")[1:4] == ["info", "access", "connection complete"]
    fields = line.split("\t")[4].rsplit(" ", 1)
    assert fields[0] == (
        f'src.addr=127.0.0.2:{local[1]} src.workload="client" '
        'src.namespace="default" '
        'src.identity="spiffe://cluster.local/ns/default/sa/client" '
        'src.cluster="Kubernetes" '
        f'dst.addr=127.0.0.1:{upstream} dst.service="web" dst.workload="web-1" '
        'dst.namespace="default" dst.cluster="Kubernetes" direction="outbound" '
        "bytes_sent=5 bytes_recv=5"
    )
    assert fields[1].startswith('duration="')


def reasons(ztunnel, *destinations):
    """Why the sandbox's policy denies each, as it is now."""
    egress = ztunnel.sandboxes["box"].service.policy.egress
    return [denial and denial.reason for denial in map(egress.check, destinations)]


def test_the_ports_that_ztunnel_is_given_are_no_sandboxs(tmp_path):
    port = free_port()
    fixed = ListenAddress(LOOPBACK, port)
    any_port = ListenAddress(LOOPBACK, 0)
    there = config(tmp_path, 80, 80, metrics=any_port, readiness=fixed)

    async def main():
        async with Ztunnel(there) as ztunnel:
            ports = [admin.port for admin in ztunnel.admin]
            assert port in ports
            own = [("127.0.0.1", each) for each in (*ports, 15008)]
            assert reasons(ztunnel, *own) == ["ztunnel_port"] * 3
            assert reasons(ztunnel, ("127.0.0.1", 80)) == [None]

    run(main())


def test_a_sandboxs_own_addresses_are_denied_by_each_policy_it_gets(tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text("egress: {allow: [127.0.0.0/8]}")
    there = config(tmp_path, 80, 80)
    (box,) = there.fastpath.sandboxes
    box = replace(box, policy=file, egress=None)
    there = replace(there, fastpath=replace(there.fastpath, sandboxes=(box,)))

    async def main():
        async with Ztunnel(there) as ztunnel:
            own, other = ("127.0.0.2", 80), ("127.0.0.1", 80)
            assert reasons(ztunnel, own, other) == ["own_address", None]
            file.write_text("egress: {allow: [127.0.0.0/8], deny: ['127.0.0.1:80']}")
            ztunnel.reload()
            assert reasons(ztunnel, other) == ["deny_rule"]
            assert reasons(ztunnel, own) == ["own_address"]

    run(main())


@pytest.mark.parametrize(
    ("allow", "reason"),
    [
        pytest.param("192.0.2.0/24", "127.0.0.3", id="before-the-vip"),
        pytest.param("127.0.0.3/32", "127.0.0.1", id="after-the-vip"),
    ],
)
def test_a_denied_connection_is_reset_and_logged(tmp_path, allow, reason):
    async def main():
        capture = listen()
        address = capture.getsockname()
        async with (
            upper_server() as upstream,
            Ztunnel(
                config(tmp_path, address[1], upstream, allow=allow), capture=capture
            ) as ztunnel,
        ):
            await expect_reset(address)
            await counted(ztunnel, "fastpath_denied_total")
            return ztunnel.metrics.text().decode()

    assert 'fastpath_denied_total{reason="' in run(main())
    (line,) = (tmp_path / "access.log").read_text().splitlines()
    assert "\twarn\taccess\tconnection failed\t" in line
    assert "sa/client" in line
    assert reason in line.partition("error=")[2]


def test_a_new_policy_ends_captured_connections_of_a_sandbox_on_another_engine(
    tmp_path,
):
    file = tmp_path / "policy.yaml"
    file.write_text("egress: {allow: [127.0.0.0/8]}")

    async def main():
        capture = listen()
        address = capture.getsockname()
        async with upper_server() as upstream:
            there = config(tmp_path, address[1], upstream, threads=2)
            (box,) = there.fastpath.sandboxes
            box = replace(box, policy=file, egress=None)
            first = replace(
                box,
                name="first",
                workload="default/web-1",
                socket=tmp_path / "first.sock",
                uds_path=None,
                cid=4,
            )
            own = replace(there.fastpath, sandboxes=(first, box))
            async with Ztunnel(
                replace(there, fastpath=own), capture=capture
            ) as ztunnel:
                reader, writer = await connect(address)
                await counted(ztunnel, "istio_tcp_connections_opened_total")
                file.write_text("egress: {deny: ['127.0.0.3/32', '127.0.0.1/32']}")
                ztunnel.reload()
                with pytest.raises(ConnectionResetError):
                    await reader.readexactly(1)
                writer.close()

    run(main())


def test_an_unknown_source_is_refused(tmp_path):
    async def main():
        capture = listen()
        address = capture.getsockname()
        async with Ztunnel(config(tmp_path, address[1], 9), capture=capture):
            await expect_reset(address, "127.0.0.9")

    run(main())
    assert "unknown source: 127.0.0.9" in (tmp_path / "access.log").read_text()


def test_the_echo_address_is_answered_by_the_engine(tmp_path):
    """The echo ports themselves are privileged: the listener takes one of them."""

    async def main():
        try:
            capture = socket.create_server(("127.0.0.3", 7))
        except PermissionError:
            pytest.skip("port 7 needs a right")
        there = config(tmp_path, 80, 80, echo=ip_address("127.0.0.3"))
        there = dataclasses.replace(there, services=(), workloads=there.workloads[:1])
        async with Ztunnel(there, capture=capture):
            reader, writer = await connect(("127.0.0.3", 7))
            writer.write(b"x" * 100_000)
            assert await reader.readexactly(100_000) == b"x" * 100_000
            writer.close()

    run(main())


def test_the_sockets_are_there_and_go_away(tmp_path):
    async def main():
        async with Ztunnel(config(tmp_path, 80, 80)) as ztunnel:
            assert not ztunnel.sandboxes["box"].backend.connected.is_set()
            assert (tmp_path / "box.sock").is_socket()
            assert (tmp_path / "box.vsock").is_socket()
            modes = {path.stat().st_mode & 0o777 for path in tmp_path.glob("box.*")}
            assert modes == {0o600}
            assert [engine.conns for engine in ztunnel.stats()] == [0]
            assert ztunnel.device_stats()["box"].conns == 0

    before = descriptors()
    run(main())
    assert not (tmp_path / "box.sock").exists()
    assert not (tmp_path / "box.vsock").exists()
    check_closed(before)


def test_open_connections_are_logged_when_the_process_ends(tmp_path):
    async def main():
        capture = listen()
        address = capture.getsockname()
        async with upper_server() as upstream:
            async with Ztunnel(
                config(tmp_path, address[1], upstream), capture=capture
            ) as ztunnel:
                reader, writer = await connect(address)
                await counted(ztunnel, "istio_tcp_connections_opened_total")
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            writer.close()

    run(main())
    (line,) = (tmp_path / "access.log").read_text().splitlines()
    assert f"(os error {errno.ECANCELED})" in line


def test_a_socket_in_use_leaves_nothing_behind(tmp_path):
    there = config(tmp_path, 80, 80)
    (tmp_path / "box.sock").write_text("not a socket")

    async def main():
        async with Ztunnel(there):
            pass

    with pytest.raises(FastpathError, match=r"cannot listen on .*box\.sock"):
        run(main())
    assert not (tmp_path / "box.vsock").exists()


def test_a_metrics_port_in_use_is_named(tmp_path):
    with listen("127.0.0.1") as taken:
        address = ListenAddress(LOOPBACK, taken.getsockname()[1])

        async def main():
            async with Ztunnel(config(tmp_path, 80, 80, metrics=address)):
                pass

        with pytest.raises(FastpathError, match=rf"cannot listen on {address}: "):
            run(main())


def test_the_transparent_listener_says_which_right_it_lacks(monkeypatch):
    class Denied(socket.socket):
        def setsockopt(self, *args: Any) -> None:
            if args[1] == listener.IP_TRANSPARENT:
                raise PermissionError(errno.EPERM, "Operation not permitted")
            super().setsockopt(*args)

    monkeypatch.setattr(socket, "socket", Denied)
    with pytest.raises(FastpathError, match=r"127\.0\.0\.1:0: Oper.*CAP_NET_ADMIN"):
        listener.captured(FREE, tproxy=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_transparent_listener_accepts(host):
    try:
        sock = listener.captured(ListenAddress(ip_address(host), 0), tproxy=True)
    except FastpathError as exc:
        pytest.skip(str(exc))
    with sock, socket.create_connection(sock.getsockname()[:2]):
        accepted, _ = sock.accept()
        accepted.close()


def test_policies_are_announced_once(tmp_path, caplog):
    document = tmp_path / "z.yaml"
    document.write_text(f"mesh: {tmp_path}/mesh.yaml")
    more = "namespace: a, scope: Namespace, dryRun: false, rules: []"
    (tmp_path / "mesh.yaml").write_text(
        "policies:\n"
        f"  - {{name: p, action: Deny, {more}}}\n"
        f"  - {{name: q, action: Allow, {more}}}\n"
    )

    async def main():
        async with Ztunnel(configuration.load(document)):
            pass

    run(main())
    (message,) = [r.message for r in caplog.records if "authorization" in r.message]
    assert message.endswith("not here: a/p, a/q")


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_ready_and_ends_on_a_signal(tmp_path, signo, capfd):
    document = tmp_path / "z.yaml"
    (tmp_path / "mesh.yaml").write_text(
        "workloads:\n"
        "- {name: a, namespace: default, workloadIps: [10.0.0.2], services: {}}\n"
    )
    document.write_text(
        f"mesh: {tmp_path}/mesh.yaml\n"
        "sandboxes:\n"
        f"  - {{name: a, workload: default/a, socket: {tmp_path}/s, cid: 3}}\n"
        f"accessLog: {tmp_path}/log\n"
    )
    reader, writer = os.pipe()

    async def main():
        process = asyncio.create_task(serve(document, ready_fd=writer))
        await asyncio.to_thread(os.read, reader, 1)
        assert (tmp_path / "s").is_socket()
        os.kill(os.getpid(), signo)
        return await process

    assert run(main()) == 0
    os.close(reader)
    assert not (tmp_path / "s").exists()
    ready = f"fastpath ztunnel: ready: sandbox a on {tmp_path}/s\n"
    assert ready in capfd.readouterr().err


def test_serve_with_a_bad_file_starts_nothing(tmp_path):
    with pytest.raises(FastpathError, match="No such file"):
        run(serve(tmp_path / "none.yaml"))
