"""A certificate service on loopback, for tests of it and of its clients."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt

import grpc
from grpc import aio

from fastpath.mesh import tokens, wire
from fastpath.mesh.client import ServiceSource
from fastpath.mesh.issuing import Issuer, Shares
from fastpath.mesh.service import Limits, Server
from tests.support.limits import LIMIT_S
from tests.unit.fastpath.mesh_pki import (
    HOUR,
    TOKENS,
    WEB,
    WEB_TOKEN,
    authority,
    make_csr,
    uri,
)

HEADERS = (("authorization", f"Bearer {WEB_TOKEN}"),)
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

    def source(self, identity=WEB, token=WEB_TOKEN, **other):
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
async def served(folder, *, now=wall_clock, root_now=None, shares=None, **limits):
    ca = authority(folder, now=root_now or now())
    known = tokens.parse(TOKENS.encode(), "t")
    issuer = Issuer(ca, lambda: known, HOUR, shares or Shares())
    patient = {"handshake_s", "settings_s", "receive_s"}  # machines are slow
    limits = dict.fromkeys(patient, LIMIT_S) | limits
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
