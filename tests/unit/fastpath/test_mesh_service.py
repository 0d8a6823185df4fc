"""The certificate service over gRPC and TLS, and our client of it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc import aio

from fastpath.errors import FastpathError
from fastpath.mesh import tokens, wire
from fastpath.mesh.address import parse_address
from fastpath.mesh.issuing import Issuer, Shares
from fastpath.mesh.material import pem
from fastpath.mesh.service import SERVER_LIFE, Server
from tests.support.limits import LIMIT_S
from tests.unit.fastpath.mesh_pki import (
    FOREIGN,
    HOUR,
    NODE_TOKEN,
    OTHER,
    WEB,
    Ca,
    authority,
    make_csr,
    root,
)
from tests.unit.fastpath.mesh_server import (
    GOOD,
    HEADERS,
    Served,
    run,
    wall_clock,
)


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


def test_another_method_is_none(tmp_path):
    async def body(server):
        async with server.channel() as channel:
            call = channel.unary_unary("/istio.v1.auth.IstioCertificateService/Other")
            with pytest.raises(aio.AioRpcError) as caught:
                await call(GOOD, metadata=HEADERS, timeout=LIMIT_S)
            return caught.value.code()

    assert run(tmp_path, body) is grpc.StatusCode.UNIMPLEMENTED


def test_a_server_with_another_root_is_not_believed(tmp_path):
    async def body(server):
        other = authority(tmp_path, "other", wall_clock()).root_path
        with pytest.raises(FastpathError) as caught:
            await server.source(roots=other).fetch(wall_clock())
        return str(caught.value)

    text = run(tmp_path, body)
    assert "do the roots hold its root?" in text


def test_a_server_by_another_name_is_not_believed(tmp_path):
    async def body(server):
        address = f"https://127.0.0.1:{server.port}"
        with pytest.raises(FastpathError) as caught:
            await server.source(address=address).fetch(wall_clock())
        return str(caught.value)

    assert "does its certificate name this host" in run(tmp_path, body)


def test_the_servers_own_certificate_is_renewed(tmp_path):
    """The clock is far behind at first: the first certificate is over."""
    clock = [wall_clock() - 2 * SERVER_LIFE]

    async def body(server):
        with pytest.raises(FastpathError):
            await server.source().fetch(wall_clock())
        clock[0] = wall_clock()
        return await server.source().fetch(wall_clock())

    assert run(tmp_path, body, now=lambda: clock[0]).identity == WEB


def test_the_servers_own_certificate_is_renewed_when_its_clock_was_ahead(tmp_path):
    clock = [wall_clock() + SERVER_LIFE / 4]

    async def body(server):
        with pytest.raises(FastpathError):
            await server.source().fetch(wall_clock())
        clock[0] = wall_clock()
        return await server.source().fetch(wall_clock())

    found = run(tmp_path, body, now=lambda: clock[0], root_now=wall_clock())
    assert found.identity == WEB


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
        ({"roots": "token"}, "token can't be read: Unable to load PEM file"),
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

    said = run(tmp_path, body)
    assert words in said
    assert "://" not in said.removeprefix("CA https://")


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

    async def ask(port):
        with pytest.raises(FastpathError) as caught:
            await Served(tmp_path, port).source().fetch(wall_clock())
        return str(caught.value)

    assert words in asyncio.run(answered_by(ca, answering, ask))


def test_what_began_while_it_was_asked_for_is_taken(tmp_path):
    """With the clocks being one; a certificate of seconds begins hardly before now."""
    ca = authority(tmp_path, now=wall_clock())
    signer = Ca(ca.root, ca.key)

    async def answering(data, _context):
        asked = x509.load_pem_x509_csr(wire.Request.decode(data).csr.encode())
        await asyncio.sleep(1.1)  # certificates know whole seconds
        leaf = signer.issue(WEB, key=asked, begin=wall_clock())
        return wire.Response((pem([leaf.cert]).decode(), ca.root_pem.decode())).encode()

    async def ask(port):
        return await Served(tmp_path, port).source().fetch(wall_clock())

    assert asyncio.run(answered_by(ca, answering, ask)).identity == WEB


async def answered_by(ca, answering, ask):
    """Call `ask(port)` while a function answers CreateCertificate there."""
    server = aio.server()
    method: Any = grpc.unary_unary_rpc_method_handler(answering)
    handler = grpc.method_handlers_generic_handler(wire.SERVICE, {wire.METHOD: method})
    server.add_generic_rpc_handlers((handler,))
    pair = ca.server(("localhost",), HOUR, wall_clock())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        return await ask(port)
    finally:
        await server.stop(None)


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
