"""The certificate service over gRPC and TLS, with friendly and hostile clients."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc import aio

from fastpath.errors import FastpathError
from fastpath.mesh import tokens, wire
from fastpath.mesh.client import ServiceSource, parse_address
from fastpath.mesh.issuing import Issuer, Shares
from fastpath.mesh.material import pem
from fastpath.mesh.service import SERVER_LIFE, Limits, Server
from tests.support.limits import LIMIT_S, until
from tests.unit.fastpath.mesh_pki import (
    FOREIGN,
    HOUR,
    OTHER,
    WEB,
    authority,
    make_csr,
    root,
    uri,
)

TOKEN = "web-" + "0" * 28
NODE_TOKEN = "node-" + "1" * 27
FILE = f"""
tokens:
- token: {TOKEN}
  identity: default/web
- token: {NODE_TOKEN}
  identity: istio-system/ztunnel
  impersonate: ["*"]
"""
HEADERS = (("authorization", f"Bearer {TOKEN}"),)
GOOD = wire.Request(csr=make_csr(uri(WEB)).decode()).encode()


def wall_clock():
    return dt.datetime.now(dt.UTC)


class Served:
    """A server on loopback."""

    def __init__(self, folder, port):
        self.folder = folder
        self.port = port
        self.root = folder / "cluster.local" / "root-cert.pem"
        self.address = f"https://localhost:{port}"

    def channel(self, **options):
        roots = grpc.ssl_channel_credentials(self.root.read_bytes())
        given = [(f"grpc.{key}", value) for key, value in options.items()]
        return aio.secure_channel(f"localhost:{self.port}", roots, given)

    async def call(self, data=GOOD, headers=HEADERS, channel=None, **options):
        """Return the chain, or what it was refused with."""
        own = channel or self.channel(**options)
        try:
            call = own.unary_unary(wire.PATH)
            answer = await call(data, metadata=headers, timeout=LIMIT_S)
            return wire.Response.decode(answer).cert_chain
        except aio.AioRpcError as exc:
            return exc.code().name, exc.details()
        finally:
            if channel is None:
                await own.close()

    def source(self, identity=WEB, token=TOKEN, **other):
        path = self.folder / "token"
        path.write_text(f"{token}\n")
        fields = {
            "address": self.address,
            "roots": self.root,
            "token": path,
            "identity": identity,
            "impersonate": False,
            "life": HOUR,
            "call_s": LIMIT_S,
        } | other
        return ServiceSource(**fields)


def is_chain(found):
    """Whether a call was answered by a leaf and a root."""
    assert [each[:27] for each in found] == ["-----BEGIN CERTIFICATE-----"] * 2, found
    return True


@contextlib.asynccontextmanager
async def served(folder, *, now=wall_clock, shares=None, **limits):
    ca = authority(folder, now=now())
    known = tokens.parse(FILE.encode(), "t")
    issuer = Issuer(ca, lambda: known, HOUR, shares or Shares())
    server = Server(ca, issuer, ("localhost",), limits=Limits(**limits), now=now)
    port = await server.start("127.0.0.1", 0)
    try:
        yield Served(folder, port)
    finally:
        await server.close()


def run(folder, body, **options):
    async def main():
        async with served(folder, **options) as server:
            return await body(server)

    return asyncio.run(main())


def test_a_workload_gets_its_certificate(tmp_path):
    async def body(server):
        return await server.source().fetch(wall_clock())

    material = run(tmp_path, body)
    assert material.identity == WEB
    assert material.roots == (authority(tmp_path, now=wall_clock()).root,)


def test_a_node_gets_a_workloads_certificate_on_its_behalf(tmp_path):
    async def body(server):
        source = server.source(OTHER, NODE_TOKEN, impersonate=True)
        return await source.fetch(wall_clock())

    assert run(tmp_path, body).identity == OTHER


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": "x" * 32}, "UNAUTHENTICATED: the token is not known; hint: send"),
        ({"identity": OTHER}, "PERMISSION_DENIED: the CSR asks for URI:spiffe:"),
        (
            {"identity": OTHER, "impersonate": True},
            "PERMISSION_DENIED: default/web may not ask for spiffe://cluster.local/ns/",
        ),
        (
            {"identity": FOREIGN, "impersonate": True, "token": NODE_TOKEN},
            f"PERMISSION_DENIED: {FOREIGN} is not of trust domain cluster.local",
        ),
    ],
    ids=["wrong-token", "forged-san", "impersonates", "trust-domain"],
)
def test_a_client_is_told_why_it_is_refused(change, words, tmp_path):
    async def body(server):
        with pytest.raises(FastpathError) as caught:
            await server.source(**change).fetch(wall_clock())
        assert await server.source().fetch(wall_clock())
        return str(caught.value)

    text = run(tmp_path, body)
    assert text.startswith("CA https://localhost:")
    assert words in text


def test_no_token_is_told_so(tmp_path):
    async def body(server):
        return await server.call(headers=())

    code, words = run(tmp_path, body)
    assert code == "UNAUTHENTICATED"
    assert words.startswith("there are 0 authorization headers, not one; hint: send")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "INVALID_ARGUMENT"),
        (b"\xff" * 100, "INVALID_ARGUMENT"),
        (wire.Request(csr="x" * 60000).encode(), "INVALID_ARGUMENT"),
        (wire.Request(csr="x" * 70000).encode(), "RESOURCE_EXHAUSTED"),
        (wire.Request(csr="x" * (16 << 20)).encode(), "RESOURCE_EXHAUSTED"),
    ],
    ids=["empty", "garbage", "large", "too-large", "huge"],
)
def test_a_bad_message_harms_its_sender_only(data, code, tmp_path):
    async def body(server):
        async with server.channel(max_send_message_length=-1) as channel:
            found = await server.call(data, channel=channel)
            assert is_chain(await server.call(channel=channel))
            return found

    assert run(tmp_path, body)[0] == code


def test_huge_headers_are_refused(tmp_path):
    async def body(server):
        headers = (*HEADERS, ("x-more", "y" * (1 << 20)))
        found = await server.call(headers=headers)
        assert is_chain(await server.call())
        return found

    assert run(tmp_path, body)[0] == "RESOURCE_EXHAUSTED"


def test_another_method_is_none(tmp_path):
    async def body(server):
        async with server.channel() as channel:
            call = channel.unary_unary("/istio.v1.auth.IstioCertificateService/Other")
            with pytest.raises(aio.AioRpcError) as caught:
                await call(GOOD, metadata=HEADERS, timeout=LIMIT_S)
            return caught.value.code()

    assert run(tmp_path, body) is grpc.StatusCode.UNIMPLEMENTED


def test_a_client_whose_message_does_not_come_is_let_go(tmp_path):
    """And others are served meanwhile, over the same connection, too."""

    async def body(server):
        async with server.channel() as channel:
            slow = channel.stream_unary(wire.PATH)(metadata=HEADERS, timeout=LIMIT_S)
            await slow.wait_for_connection()
            assert is_chain(await server.call(channel=channel))
            assert is_chain(await server.call())
            with pytest.raises(aio.AioRpcError) as caught:
                await slow
            return caught.value

    error = run(tmp_path, body, receive_s=1.0)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert error.details() == "no message within 1 s"


def test_a_stranger_is_refused_before_its_message_is_there(tmp_path):
    async def body(server):
        async with server.channel() as channel:
            call = channel.stream_unary(wire.PATH)(timeout=LIMIT_S)
            with pytest.raises(aio.AioRpcError) as caught:
                await call
            return caught.value.code()

    code = run(tmp_path, body, receive_s=LIMIT_S)
    assert code is grpc.StatusCode.UNAUTHENTICATED


def test_slow_holders_of_one_token_leave_room_for_another(tmp_path):
    async def body(server):
        async with server.channel() as channel:
            call = channel.stream_unary(wire.PATH)
            slow = [call(metadata=HEADERS, timeout=LIMIT_S) for _ in range(2)]
            for each in slow:
                await each.wait_for_connection()
            while (found := await server.call(channel=channel))[0] != (
                "RESOURCE_EXHAUSTED"
            ):
                assert is_chain(found)  # the slow ones have not arrived
            node = (("authorization", f"Bearer {NODE_TOKEN}"),)
            data = wire.Request(csr=make_csr().decode()).encode()
            assert is_chain(await server.call(data, node))
            for each in slow:
                each.cancel()
            return found[1]

    shares = Shares(at_once=2, burst=1e9)
    words = run(tmp_path, body, shares=shares, receive_s=LIMIT_S)
    assert words.startswith("default/web asks too often, or too much at once")


def test_many_at_once_are_all_served(tmp_path):
    async def body(server):
        calls = (server.source().fetch(wall_clock()) for _ in range(60))
        return await asyncio.gather(*calls)

    found = run(tmp_path, body, connections=256)
    assert len({each.chain[0].serial_number for each in found}) == 60


def test_many_on_one_connection_are_all_served(tmp_path):
    async def body(server):
        async with server.channel() as channel:
            calls = (server.call(channel=channel) for _ in range(200))
            return await asyncio.gather(*calls)

    found = run(tmp_path, body)
    assert all(map(is_chain, found))


async def silent(server, number):
    """Connect and say nothing; return the connections and tasks that see their ends."""
    loop = asyncio.get_running_loop()

    async def end_of(sock):
        with contextlib.suppress(ConnectionResetError):
            assert await loop.sock_recv(sock, 1) == b""

    socks = [
        socket.create_connection(("127.0.0.1", server.port)) for _ in range(number)
    ]
    for sock in socks:
        sock.setblocking(False)
    return socks, [asyncio.create_task(end_of(sock)) for sock in socks]


def test_connections_beyond_the_bound_end_at_once(tmp_path):
    async def body(server):
        socks, ends = await silent(server, 12)
        await until(lambda: sum(each.done() for each in ends) == 8)
        for sock, end in zip(socks, ends, strict=True):
            end.cancel()
            sock.close()
        while (found := await server.call())[0] == "UNAVAILABLE":
            pass  # it has yet to see that they are closed
        return found

    assert is_chain(run(tmp_path, body, connections=4, handshake_s=2 * LIMIT_S))


def test_connections_that_say_nothing_end(tmp_path):
    async def body(server):
        socks, ends = await silent(server, 4)
        await asyncio.wait_for(asyncio.gather(*ends), LIMIT_S)
        for sock in socks:
            sock.close()
        return await server.call()

    assert is_chain(run(tmp_path, body, handshake_s=1.0))


def frame(kind, flags, stream, body=b""):
    """RFC 9113, section 4.1."""
    head = len(body).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + body


def literal(name, value):
    """A header without indexing, RFC 7541, section 6.2.2."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
REQUEST = b"".join(
    literal(*each)
    for each in (
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", wire.PATH.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
END_HEADERS = 4
FLOODS = {
    "ping": lambda n: frame(6, 0, 0, bytes(8)),
    "settings": lambda n: frame(4, 0, 0),
    "rapid-reset": lambda n: (
        frame(1, END_HEADERS, 2 * n + 1, REQUEST) + frame(3, 0, 2 * n + 1, bytes(4))
    ),
    "streams": lambda n: frame(1, END_HEADERS, 2 * n + 1, REQUEST),
    "continuation": lambda n: (
        frame(9, 0, 1, literal(b"x", b"y")) if n else frame(1, 0, 1, REQUEST)
    ),
    "empty-data": lambda n: frame(0, 0, 1) if n else frame(1, END_HEADERS, 1, REQUEST),
}


async def open_raw(server):
    context = ssl.create_default_context(cafile=server.root)
    context.set_alpn_protocols(["h2"])
    return await asyncio.open_connection(
        "127.0.0.1", server.port, ssl=context, server_hostname="localhost"
    )


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_harms_its_sender_only(flood, tmp_path):
    async def body(server):
        _, writer = await open_raw(server)
        writer.write(PREFACE)
        with contextlib.suppress(ConnectionError, TimeoutError):
            for n in range(5000):
                writer.write(flood(n))
                if n % 500 == 499:
                    assert is_chain(await server.call())
                    await asyncio.wait_for(writer.drain(), LIMIT_S)
        writer.transport.abort()
        return await server.call()

    assert is_chain(run(tmp_path, body))


def test_an_idle_connection_is_closed(tmp_path):
    async def body(server):
        reader, writer = await open_raw(server)
        writer.write(PREFACE)
        rest = await asyncio.wait_for(reader.read(), LIMIT_S)
        writer.close()
        return rest

    assert run(tmp_path, body, idle_s=1.0)


def test_a_client_without_tls_is_cut_off(tmp_path):
    async def body(server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        await asyncio.wait_for(reader.read(), LIMIT_S)
        writer.close()
        return await server.call()

    assert is_chain(run(tmp_path, body))


def test_a_server_with_another_root_is_not_believed(tmp_path):
    async def body(server):
        other = authority(tmp_path, "other", wall_clock()).root_path
        with pytest.raises(FastpathError) as caught:
            await server.source(roots=other, call_s=5.0).fetch(wall_clock())
        return str(caught.value)

    text = run(tmp_path, body)
    assert "do the roots hold its root?" in text


def test_a_server_by_another_name_is_not_believed(tmp_path):
    async def body(server):
        address = f"https://127.0.0.1:{server.port}"
        with pytest.raises(FastpathError) as caught:
            await server.source(address=address, call_s=5.0).fetch(wall_clock())
        return str(caught.value)

    assert "does its certificate name this host" in run(tmp_path, body)


def test_the_servers_own_certificate_is_renewed(tmp_path):
    """The clock is far behind at first: the first certificate is over."""
    clock = [wall_clock() - 2 * SERVER_LIFE]

    async def body(server):
        with pytest.raises(FastpathError):
            await server.source(call_s=5.0).fetch(wall_clock())
        clock[0] = wall_clock()
        return await server.source().fetch(wall_clock())

    assert run(tmp_path, body, now=lambda: clock[0]).identity == WEB


def test_a_port_that_another_has_is_said(tmp_path):
    async def body(server):
        ca = authority(tmp_path, now=wall_clock())
        issuer = Issuer(ca, lambda: tokens.parse(b"{}", "t"), HOUR, Shares())
        other = Server(ca, issuer, ("localhost",))
        with pytest.raises(FastpathError) as caught:
            await other.start("127.0.0.1", server.port)
        await other.close()
        return server.port, str(caught.value)

    port, text = run(tmp_path, body)
    assert text.startswith(
        f"cannot listen on 127.0.0.1:{port}: Address already in use; hint: name an"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": "  \n"}, "is no bearer token"),
        ({"token": "a\tb" * 9}, "is no bearer token"),
        ({"roots": "nothing"}, "No such file or directory; hint: put the file there"),
        ({"roots": "token"}, "can't be read"),
    ],
    ids=["empty", "tab", "no-roots", "bad-roots"],
)
def test_what_a_client_lacks_is_said(change, words, tmp_path):
    async def body(server):
        if "roots" in change:
            change["roots"] = tmp_path / change["roots"]
        with pytest.raises(FastpathError) as caught:
            await server.source(**change).fetch(wall_clock())
        return str(caught.value)

    assert words in run(tmp_path, body)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((), "answers with 0 certificates, without a root"),
        (("leaf",), "answers with 1 certificates, without a root"),
        (("other", "root"), "the key is not that of the first certificate"),
        (("nonsense", "root"), "the chain can't be read"),
        (("foreign", "root"), f"answers with a certificate of {FOREIGN}"),
        (("old", "root"), "the certificate was valid until"),
    ],
    ids=["nothing", "no-root", "other-key", "nonsense", "other-name", "expired"],
)
def test_what_a_service_answers_is_not_believed(answer, words, tmp_path):
    ca = authority(tmp_path, now=wall_clock())
    foreign = root(begin=wall_clock())

    def make(kind, csr):
        now = wall_clock()
        asked = x509.load_pem_x509_csr(csr)
        made = {
            "leaf": lambda: ca.issue(csr, WEB, HOUR, now),
            "root": lambda: ca.root_pem,
            "other": lambda: ca.issue(make_csr(), WEB, HOUR, now),
            "nonsense": lambda: b"nonsense",
            "foreign": lambda: pem([foreign.issue(FOREIGN, key=asked).cert]),
            "old": lambda: ca.issue(csr, WEB, HOUR, now - 2 * HOUR),
        }
        return made[kind]().decode()

    async def answering(data, _context):
        csr = wire.Request.decode(data).csr.encode()
        return wire.Response(tuple(make(kind, csr) for kind in answer)).encode()

    async def main():
        server = aio.server()
        method: Any = grpc.unary_unary_rpc_method_handler(answering)
        handler = grpc.method_handlers_generic_handler(
            wire.SERVICE, {wire.METHOD: method}
        )
        server.add_generic_rpc_handlers((handler,))
        pair = ca.server(("localhost",), HOUR, wall_clock())
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([pair])
        )
        await server.start()
        try:
            with pytest.raises(FastpathError) as caught:
                await Served(tmp_path, port).source().fetch(wall_clock())
        finally:
            await server.stop(None)
        return str(caught.value)

    assert words in asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("https://localhost:15012", "localhost:15012"),
        ("https://istiod.istio-system.svc", "istiod.istio-system.svc:15012"),
        ("https://[::1]:1/", "[::1]:1"),
        ("http://localhost:15012", None),
        ("localhost:15012", None),
        ("https://a:b", None),
        ("https://user@a:1", None),
        ("https://a:1/path", None),
        ("https://", None),
    ],
)
def test_an_address_is_https_with_a_host(text, target):
    if target is not None:
        assert parse_address(text) == target
        return
    with pytest.raises(FastpathError, match=r"is no https://HOST:PORT; hint: https:"):
        parse_address(text)
