"""What the configuration says of certificates, as far as no file has to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastpath.ztunnel.istio.file import repeated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastpath.ztunnel import model
    from fastpath.ztunnel.istio.file import Problem
    from vhost_user.decode import KeyPath

HERE: Final[KeyPath] = ("fastpath", "certificates")


def problems(config: model.Config) -> Iterator[Problem]:
    """What is wrong with the settings, as far as no file tells."""
    settings = config.fastpath.certificates
    if settings is not None:
        yield from _of_sources(settings)
    for index, sandbox in enumerate(config.fastpath.sandboxes):
        here: KeyPath = ("fastpath", "sandboxes", index)
        if sandbox.hbone and settings is None:
            yield (*here, "hbone"), "is for a process that has `certificates`"
        if sandbox.hbone and sandbox.handoff:
            why = "another proxy has its connections; leave this or `handoff` out"
            yield (*here, "hbone"), why
        found = config.find_workload(sandbox.workload)
        if not config.meshed(sandbox) or not found or settings is None:
            continue
        identity = found[0].identity
        if settings.embedded or settings.ca:
            continue
        if all(each.identity != identity for each in settings.files):
            yield (*here, "workload"), f"certificates.files has none of {identity}"


def _of_sources(settings: model.Certificates) -> Iterator[Problem]:
    if settings.embedded and settings.ca:
        yield (*HERE, "embedded"), "is there beside `ca`; leave one of them out"
    if not (settings.embedded or settings.ca or settings.files):
        yield HERE, "names no source: embedded, ca or files"
    for index, files in enumerate(settings.files):
        parts = (files.key, files.chain, files.roots)
        if not all(parts) if files.directory is None else any(parts):
            yield (*HERE, "files", index), "needs directory, or key, chain and roots"
    yield from repeated(
        [
            ((*HERE, "files", index, "identity"), files.identity)
            for index, files in enumerate(settings.files)
        ]
    )
