"""Who issues a workload's certificate, by the configuration. Needs the extra `mesh`.

    files       an identity's own PEM files come first
    ca          Istio's CreateCertificate
    embedded    a CA of ours, in a directory

Another process does all that takes the extra (`fetcher`), but for revocation lists and
`/config_dump`: few have them.

What is wrong at the start is said with the key of the configuration, and with the file
or the address that it is about.
"""

from __future__ import annotations

import base64
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastpath.errors import FastpathError
from fastpath.mesh.address import parse_address
from fastpath.mesh.feed import PemFeed
from fastpath.mesh.fetcher import Elsewhere, Fetcher
from fastpath.mesh.issued import stamp
from fastpath.mesh.sources import CallSource, FileSource, RootSource
from fastpath.ztunnel.certificate_settings import HERE

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography import x509

    from fastpath.identity import Identity
    from fastpath.mesh.feed import Pems
    from fastpath.mesh.revocation import Revocations
    from fastpath.mesh.sources import Source
    from fastpath.watch import Followed
    from fastpath.ztunnel import model
    from fastpath.ztunnel.config import MakeError
    from vhost_user.decode import KeyPath


class Issuers:
    """The sources, and the revocation lists that all certificates share.

    Args:
        settings: checked.
        error: makes the errors.
        revoked: called in the event loop when there are other lists.

    Raises:
        FastpathError: the lists or an address are not good.
        ModuleNotFoundError: a part of the extra is not installed.
    """

    def __init__(
        self,
        settings: model.Certificates,
        error: MakeError,
        revoked: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._error = error
        self._files = {each.identity: each for each in settings.files}
        self._fetcher = Fetcher()
        self._lists: Followed[Revocations] | None = None
        self._closed = False
        for name in ("cryptography", *(("grpc",) if settings.ca else ())):
            if find_spec(name) is None:
                raise ModuleNotFoundError(name=name)
        try:
            if settings.ca:
                parse_address(settings.ca.address)
        except FastpathError as exc:
            raise error((*HERE, "ca", "address"), exc.why, exc.hint) from exc
        try:
            if settings.crls:
                from fastpath.mesh import revocation

                self._lists = revocation.follow(settings.crls, changed=revoked)
        except FastpathError as exc:
            raise self._wrong((*HERE, "crls"), exc) from exc

    def start(self) -> None:
        """Follow the lists from now on."""
        if self._lists is not None:
            self._lists.start()

    def close(self) -> None:
        """Follow them no more; again: nothing."""
        if self._lists is not None and not self._closed:
            self._lists.close()
        self._closed = True

    async def leave(self) -> None:
        """Fetch no more; the feeds are closed."""
        await self._fetcher.close()

    def feed(self, identity: Identity, changed: Callable[[Pems], None]) -> PemFeed:
        """What keeps an identity's certificate fresh.

        Raises:
            FastpathError: nobody issues it.
        """
        try:
            source = Elsewhere(self._fetcher, self._source(identity))
        except FastpathError as exc:
            raise self._wrong(self._key(identity), exc) from exc

        def checked(pems: Pems) -> None:
            _check(identity, pems)
            changed(pems)

        name = f"{identity}"
        return PemFeed(source, name=name, changed=checked, lists=self._lists)

    async def first(self, identity: Identity, feed: PemFeed) -> Pems:
        """Start a feed.

        Raises:
            FastpathError: there is no certificate to be had, or it is another one's.
        """
        try:
            pems = await feed.start()
            try:
                _check(identity, pems)
            except FastpathError:
                await feed.close()
                raise
        except FastpathError as exc:
            why = f"{exc.what}: {exc.why}"
            if exc.what != f"{identity}":
                why = f"{identity}: {why}"
            raise self._error(self._key(identity), why, exc.hint) from exc
        return pems

    def dump(self, pems: Pems) -> dict[str, Any]:
        """A certificate as `/config_dump` of Istio's ztunnel has it."""
        from fastpath.mesh.material import certificates

        return {
            "identity": f"{pems.identity}",
            "state": "Available",
            "certChain": [_dumped(each) for each in certificates("", pems.chain)],
            "rootCerts": [_dumped(each) for each in certificates("", pems.roots)],
        }

    def _source(self, identity: Identity) -> Source:
        life = timedelta(seconds=self._settings.life_s)
        ca = self._settings.ca
        if files := self._files.get(identity):
            return _file_source(files)
        if ca:
            fields = {
                "address": ca.address,
                "roots": ca.roots,
                "token": ca.token,
                "identity": identity,
                "impersonate": ca.impersonate,
                "life": life,
            }
            return CallSource(fields)
        if self._settings.embedded is None:
            raise FastpathError(f"{identity}", "nobody issues it", "add it to `files`")
        return RootSource(self._settings.embedded, identity, life)

    def _key(self, identity: Identity) -> KeyPath:
        """Where in the configuration it stands."""
        if identity in self._files:
            index = self._settings.files.index(self._files[identity])
            return (*HERE, "files", index)
        return (*HERE, "ca" if self._settings.ca else "embedded")

    def _wrong(self, key: KeyPath, exc: FastpathError) -> Exception:
        return self._error(key, f"{exc.what}: {exc.why}", exc.hint)


def _file_source(files: model.CertificateFiles) -> FileSource:
    if files.directory:
        from fastpath.mesh.contexts import PemDirectory

        found = PemDirectory(files.directory)
        return FileSource(found.key, found.chain, found.roots)
    assert files.key
    assert files.chain
    assert files.roots
    return FileSource(files.key, files.chain, files.roots)


def _check(identity: Identity, pems: Pems) -> None:
    """Refuse what is not the identity's.

    Raises:
        FastpathError: it isn't.
    """
    if pems.identity != identity:
        why = f"is given the certificate of {pems.identity}"
        hint = "name the files of this identity"
        raise FastpathError(f"{identity}", why, hint)


def _dumped(cert: x509.Certificate) -> dict[str, str]:
    from fastpath.mesh.material import pem

    return {
        "pem": base64.b64encode(pem((cert,))).decode(),
        "serialNumber": f"{cert.serial_number}",
        "validFrom": stamp(cert.not_valid_before_utc),
        "expirationTime": stamp(cert.not_valid_after_utc),
    }
