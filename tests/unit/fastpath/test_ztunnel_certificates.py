"""Certificates of `fastpath ztunnel`: one an identity, in each engine, always fresh."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import shutil
import sys
from pathlib import Path

import pytest

from fastpath.errors import FastpathError
from fastpath.mesh.authority import Authority
from fastpath.mesh.contexts import PemDirectory
from fastpath.ztunnel import config, model
from fastpath.ztunnel.certificates import Certificates
from fastpath.ztunnel.process import Ztunnel
from tests.support.limits import until
from tests.unit.fastpath.mesh_pki import (
    HOUR,
    NODE_TOKEN,
    OTHER,
    WEB,
    WEB_TOKEN,
    Ca,
)
from tests.unit.fastpath.mesh_server import served
from vhost_user.engine import Engine
from vhost_user.errors import StateError
from vhost_user.hbone import Pool


def now():
    return dt.datetime.now(dt.UTC)


@contextlib.asynccontextmanager
async def started(settings, *identities, engines=1):
    """Certificates, and the engines that have them."""
    certificates = Certificates(settings, config.error)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(certificates.close)
        await certificates.start(identities)
        made = [await stack.enter_async_context(Engine()) for _ in range(engines)]
        stack.callback(certificates.stop)
        yield certificates, *made


def embedded(folder, **other):
    return model.Certificates(embedded=folder / "ca", **other)


def issued(folder, identity, *, life=HOUR, at=None):
    """Have PEM files in a directory, of the CA that is in another one."""
    authority = Authority.open(folder / "ca", "cluster.local", now())
    pems = PemDirectory(folder / identity.service_account)
    pems.write(authority.workload(identity, life, at or now()))
    return pems.path


def files(folder, identity=WEB, *, of=None, **other):
    own = model.CertificateFiles(
        identity=identity, directory=issued(folder, of or identity)
    )
    return model.Certificates(files=(own,), **other)


def service(server, token=NODE_TOKEN, **other):
    path = server.folder / "token"
    path.write_text(token)
    ca = model.CertificateService(
        address=server.address, roots=server.root, token=path, **other
    )
    return model.Certificates(ca=ca)


def refused(settings, *identities):
    """Return what a start fails with."""

    async def main():
        with pytest.raises(FastpathError) as caught:
            async with started(settings, *(identities or (WEB,))):
                pass
        return caught.value

    return asyncio.run(main())


def test_without_settings_there_are_none():
    async def main():
        async with started(None) as (certificates, engine):
            assert not certificates
            assert not certificates.has(WEB)
            assert certificates.dump() == []
            with pytest.raises(StateError, match="no certificate of spiffe://"):
                certificates.tls(engine, WEB)

    asyncio.run(main())


def test_an_identity_has_one_in_each_engine(tmp_path):
    async def main():
        settings = embedded(tmp_path)
        async with started(settings, WEB, OTHER, WEB, engines=2) as (them, one, two):
            assert them
            assert them.tls(one, WEB) is them.tls(one, WEB)
            assert them.tls(one, WEB) is not them.tls(one, OTHER)
            assert them.tls(two, WEB) is not them.tls(one, WEB)
            assert [each["identity"] for each in them.dump()] == [f"{WEB}", f"{OTHER}"]

    asyncio.run(main())


def test_one_more_identity_is_asked_for_once(tmp_path):
    async def main():
        async with started(embedded(tmp_path)) as (certificates, engine):
            await asyncio.gather(*(certificates.add(WEB) for _ in range(3)))
            tls = certificates.tls(engine, WEB)
            await certificates.add(WEB)
            assert certificates.tls(engine, WEB) is tls

    asyncio.run(main())


def test_a_rotation_is_told_and_has_the_new_one(tmp_path):
    """The one before is forgotten once all were told."""

    async def main():
        async with started(embedded(tmp_path, life_s=2), WEB) as (them, engine):
            old, seen = them.tls(engine, WEB), []
            pool = Pool(
                engine, old, ("127.0.0.1", 9), [f"{WEB}"], on_event=lambda _: None
            )

            def renew():
                seen.append(them.tls(engine, WEB))
                pool.renew(seen[-1])

            stop = them.subscribe(WEB, renew)
            await until(lambda: seen)
            assert seen[0] is not old
            with pytest.raises(StateError):
                old.close()
            stop()
            count = len(seen)
            last = them.tls(engine, WEB)
            await until(lambda: them.tls(engine, WEB) is not last)
            assert len(seen) == count

    asyncio.run(main())


def test_files_that_change_are_taken(tmp_path):
    async def main():
        settings = files(tmp_path)
        async with started(settings, WEB) as (them, _):
            (before,) = them.dump()
            told = asyncio.Event()
            them.subscribe(WEB, told.set)
            issued(tmp_path, WEB)
            await told.wait()
            (after,) = them.dump()
            assert before["certChain"] != after["certChain"]
            assert before["rootCerts"] == after["rootCerts"]

    asyncio.run(main())


def test_files_of_another_identity_are_not_taken_later(tmp_path, caplog):
    async def main():
        async with started(files(tmp_path), WEB) as (them, engine):
            tls = them.tls(engine, WEB)
            authority = Authority.open(tmp_path / "ca", "cluster.local", now())
            pems = PemDirectory(tmp_path / WEB.service_account)
            pems.write(authority.workload(OTHER, HOUR, now()))
            await until(lambda: "is given the certificate of" in caplog.text)
            assert them.tls(engine, WEB) is tls

    asyncio.run(main())


def test_a_service_issues_what_the_nodes_token_may_ask_for(tmp_path):
    async def main():
        async with (
            served(tmp_path) as server,
            started(service(server), WEB, OTHER) as (them, engine),
        ):
            (web, other) = them.dump()
            assert web["state"] == other["state"] == "Available"
            root = web["rootCerts"][0]
            assert set(root) == {"pem", "serialNumber", "validFrom", "expirationTime"}
            them.tls(engine, OTHER)

    asyncio.run(main())


def test_a_service_issues_the_tokens_own_identity(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            settings = service(server, WEB_TOKEN, impersonate=False)
            async with started(settings, WEB) as (them, _):
                assert them.has(WEB)

    asyncio.run(main())


def test_what_a_service_refuses_stops_the_start(tmp_path):
    async def main():
        async with served(tmp_path) as server:
            certificates = Certificates(service(server, "x" * 32), config.error)
            with pytest.raises(FastpathError) as caught:
                await certificates.start([WEB])
            assert caught.value.what == "configuration: fastpath.certificates.ca"
            assert f"CA {server.address}: UNAUTHENTICATED" in caught.value.why
            assert caught.value.hint == "give it a token that it knows"

    asyncio.run(main())


def test_a_service_that_is_not_there_stops_the_start(tmp_path):
    Authority.open(tmp_path / "ca", "cluster.local", now())
    ca = model.CertificateService(
        address="https://127.0.0.1:1", roots=tmp_path / "ca" / "root-cert.pem"
    )
    error = refused(model.Certificates(ca=ca), *([WEB, OTHER] * 20))
    assert error.what == "configuration: fastpath.certificates.ca"
    assert "CA https://127.0.0.1:1: UNAVAILABLE" in error.why
    assert "is it running" in f"{error.hint}"


def test_an_address_that_is_none_stops_the_start(tmp_path):
    ca = model.CertificateService(address="localhost:15012", roots=Path("/r"))
    error = refused(model.Certificates(ca=ca))
    assert error.what == "configuration: fastpath.certificates.ca.address"
    assert error.why == "is no https://HOST:PORT"


def test_files_of_another_identity_stop_the_start(tmp_path):
    error = refused(files(tmp_path, WEB, of=OTHER))
    assert error.what == "configuration: fastpath.certificates.files[0]"
    assert f"is given the certificate of {OTHER}" in error.why


def test_files_that_are_missing_stop_the_start(tmp_path):
    settings = files(tmp_path)
    path = tmp_path / WEB.service_account
    shutil.rmtree(path)
    path.mkdir()
    error = refused(settings)
    assert f"{path / 'key.pem'}: No such file or directory" in error.why


def test_a_certificate_that_has_expired_stops_the_start(tmp_path):
    settings = files(tmp_path)
    issued(tmp_path, WEB, at=now() - 2 * HOUR)
    assert "the certificate was valid until" in refused(settings).why


def test_an_embedded_ca_of_another_trust_domain_stops_the_start(tmp_path):
    Authority.open(tmp_path / "ca", "evil.example", now())
    error = refused(embedded(tmp_path))
    assert error.what == "configuration: fastpath.certificates.embedded"
    assert "is the root of ['evil.example'], not of trust domain" in error.why


def test_an_embedded_ca_where_no_directory_can_be_stops_the_start(tmp_path):
    (tmp_path / "ca").write_text("")
    error = refused(embedded(tmp_path))
    assert error.what == "configuration: fastpath.certificates.embedded"
    assert error.why == f"{WEB}: {tmp_path / 'ca'}: File exists"
    assert (
        error.hint == "name a directory that can be made, or one of `fastpath ca --dir`"
    )


def test_an_identity_that_nobody_issues_is_refused(tmp_path):
    error = refused(files(tmp_path), OTHER)
    assert f"{OTHER}: nobody issues it" in error.why


def test_revocation_lists_that_cannot_be_read_stop_the_start(tmp_path):
    (tmp_path / "crl.pem").write_text("no list")
    error = refused(embedded(tmp_path, crls=tmp_path / "crl.pem"))
    assert error.what == "configuration: fastpath.certificates.crls"
    assert f"{tmp_path / 'crl.pem'}: list 1 can't be read" in error.why


def test_other_revocation_lists_are_told_to_all(tmp_path, caplog):
    """A file that is wrong leaves those that there were."""
    path = tmp_path / "crl.pem"

    async def main():
        settings = embedded(tmp_path, crls=path)
        async with started(settings, WEB, OTHER) as (them, engine):
            before = them.tls(engine, WEB)
            told: list[str] = []
            them.subscribe(WEB, lambda: told.append("web"))
            them.subscribe(OTHER, lambda: told.append("other"))
            path.write_text("no list")
            await until(lambda: "stay as they were" in caplog.text)
            assert them.tls(engine, WEB) is before
            ca = Authority.open(tmp_path / "ca", "cluster.local", now())
            path.write_bytes(Ca(ca.root, ca.key).crl(7, begin=now()))
            await until(lambda: len(told) == 2)
            assert them.tls(engine, WEB) is not before

    asyncio.run(main())


def test_what_the_engine_cannot_use_leaves_the_old_one(tmp_path, monkeypatch, caplog):
    async def main():
        async with started(files(tmp_path), WEB) as (them, engine):
            tls, told = them.tls(engine, WEB), []
            them.subscribe(WEB, lambda: told.append(1))

            def broken(*_, **__):
                raise StateError("no room")

            monkeypatch.setattr("fastpath.ztunnel.certificates.Tls", broken)
            issued(tmp_path, WEB)
            await until(lambda: "TLS can't use it: no room" in caplog.text)
            assert them.tls(engine, WEB) is tls
            assert not told

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())


def test_without_the_extra_the_error_says_which(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "fastpath.ztunnel.issuers", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    error = refused(embedded(tmp_path))
    assert error.what == "configuration: fastpath.certificates"
    assert error.hint == "pip install 'vsock-fastpath[mesh]'"


def test_a_process_without_its_certificates_does_not_start(tmp_path):
    """It says where that stands, and leaves no socket."""
    Authority.open(tmp_path / "ca", "cluster.local", now())
    (tmp_path / "mesh.yaml").write_text(
        "workloads:\n- {name: a, namespace: d, workloadIps: [10.0.0.5], services: {}}\n"
    )
    (tmp_path / "z.yaml").write_text(
        f"mesh: {tmp_path}/mesh.yaml\n"
        "sandboxes:\n"
        f"- {{name: a, workload: d/a, socket: {tmp_path}/s, cid: 3}}\n"
        "certificates:\n"
        "  ca:\n"
        "    address: https://127.0.0.1:1\n"
        f"    roots: {tmp_path}/ca/root-cert.pem\n"
    )
    loaded = config.load_with_lines(tmp_path / "z.yaml")

    async def main():
        with pytest.raises(FastpathError) as caught:
            async with Ztunnel(loaded.config, error=loaded.error):
                pass
        return caught.value

    error = asyncio.run(main())
    assert error.what == f"{tmp_path}/z.yaml:5:3: certificates.ca"
    assert "CA https://127.0.0.1:1: UNAVAILABLE" in error.why
    assert "spiffe://cluster.local/ns/d/sa/default" in error.why
    assert not (tmp_path / "s").exists()
