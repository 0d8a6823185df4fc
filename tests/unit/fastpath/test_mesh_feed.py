"""PEM material for a TLS stack that is not Python's: certificates and lists, joined."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess

import pytest
from cryptography import x509

from fastpath.errors import FastpathError
from fastpath.mesh.contexts import PemDirectory
from fastpath.mesh.feed import PemFeed, Pems
from fastpath.mesh.rotation import Phase
from fastpath.mesh.sources import EmbeddedSource, FileSource
from tests.support import clock
from tests.unit.fastpath.mesh_pki import HOUR, SECOND, T0, WEB, Ca, authority


def now():
    return T0 + asyncio.get_running_loop().time() * SECOND


def feeding(source, body, changed=None, crls=None):
    """Run `body(feed, seen)` while a feed runs, by a clock of its own."""

    async def main():
        seen: list[Pems] = []
        feed = PemFeed(
            source, name="web", changed=changed or seen.append, crls=crls, now=now
        )
        first = await feed.start()
        assert first is feed.current
        task = asyncio.create_task(feed.run())
        try:
            return await body(feed, seen)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await feed.close()

    return clock.run(main())


def embedded(folder):
    return EmbeddedSource(authority(folder), WEB, HOUR)


def revoke(folder, path, *serials):
    """Write a list of the CA's."""
    ca = authority(folder)
    path.write_bytes(Ca(ca.root, ca.key).crl(*serials))


def test_the_first_is_returned_and_each_new_one_given(tmp_path):
    async def body(feed, seen):
        first = feed.current
        assert (first.identity, first.crls, seen) == (WEB, b"", [])
        await asyncio.sleep(40 * 60)
        assert seen == [feed.current]
        assert feed.current.key != first.key
        assert feed.current.chain != first.chain
        assert feed.current.roots == first.roots
        assert feed.phase is Phase.FRESH

    feeding(embedded(tmp_path), body)


def test_new_lists_are_given_with_the_same_certificate(tmp_path):
    path = tmp_path / "crl"

    async def body(feed, seen):
        first = feed.current
        revoke(tmp_path, path, 4711)
        await asyncio.sleep(1)
        (second,) = seen
        assert second is feed.current
        assert second.crls == path.read_bytes()
        assert (second.key, second.chain) == (first.key, first.chain)
        await asyncio.sleep(40 * 60)
        assert seen[-1].crls == second.crls  # and they stay
        assert seen[-1].key != first.key

    feeding(embedded(tmp_path), body, crls=path)


def test_lists_in_a_directory_in_the_place_of_another_are_seen(tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    path = folder / "crl"
    revoke(tmp_path, path, 1)

    async def body(feed, seen):
        (tmp_path / "new").mkdir()
        revoke(tmp_path, tmp_path / "new" / "crl", 1, 2)
        folder.rename(tmp_path / "old")
        (tmp_path / "new").rename(folder)
        await asyncio.sleep(70)
        assert feed.current.crls == path.read_bytes()

    feeding(embedded(tmp_path), body, crls=path)


def test_what_is_refused_leaves_what_there_was(tmp_path, caplog):
    path = tmp_path / "crl"

    def changed(pems):
        raise FastpathError("TLS", "takes no such list")

    async def body(feed, seen):
        first = feed.current
        revoke(tmp_path, path, 1)
        await asyncio.sleep(1)
        assert feed.current is first
        await asyncio.sleep(40 * 60)
        assert feed.current is first
        assert feed.phase is Phase.STALE

    feeding(embedded(tmp_path), body, changed=changed, crls=path)
    lists, certificate = [r.getMessage() for r in caplog.records if r.levelno > 30]
    assert lists == "web: the lists stay as they were: TLS: takes no such list"
    assert "keeps the certificate" in certificate


def test_bad_lists_at_the_start_leave_nothing_running(tmp_path):
    path = tmp_path / "crl"
    path.write_text("-----BEGIN X509 CRL-----\nnone")

    async def main():
        feed = PemFeed(embedded(tmp_path), name="web", changed=print, crls=path)
        with pytest.raises(FastpathError, match="list 1 can't be read"):
            await feed.start()
        source = FileSource(*(tmp_path / name for name in "kcr"))
        path.unlink()
        feed = PemFeed(source, name="web", changed=print, crls=path)
        with pytest.raises(FastpathError, match="No such file"):
            await feed.start()

    clock.run(main())


def test_openssl_takes_each_part(tmp_path):
    """And its checks of lists see what the list says."""
    path = tmp_path / "crl"

    async def body(feed, seen):
        first = feed.current
        files = {name: tmp_path / f"{name}.pem" for name in ("chain", "roots", "crls")}

        def verify():
            for name, file in files.items():
                file.write_bytes(getattr(feed.current, name))
            when = str(int(now().timestamp()))
            argv = ["openssl", "verify", "-attime", when, "-crl_check"]
            argv += ["-CAfile", files["roots"], "-CRLfile", files["crls"]]
            done = subprocess.run(
                [*argv, files["chain"]], capture_output=True, text=True, check=False
            )
            return done.returncode, done.stderr

        revoke(tmp_path, path, 1)
        await asyncio.sleep(1)
        assert verify() == (0, "")
        leaf, *_ = x509.load_pem_x509_certificates(first.chain)
        revoke(tmp_path, path, leaf.serial_number)
        await asyncio.sleep(1)
        status, words = verify()
        assert (status, "certificate revoked" in words) == (2, True)

    feeding(embedded(tmp_path), body, crls=path)


def test_files_feed_as_they_are_written(tmp_path):
    ca = authority(tmp_path)
    pems = PemDirectory(tmp_path / "pems")
    pems.write(ca.workload(WEB, HOUR, T0))

    async def body(feed, seen):
        second = ca.workload(WEB, HOUR, now())
        pems.write(second)
        await asyncio.sleep(10)
        (found,) = seen
        assert (found.key, found.chain) == (second.key_pem, second.chain_pem)

    feeding(FileSource(pems.key, pems.chain, pems.roots), body)
