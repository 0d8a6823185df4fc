"""`fastpath ca`: the embedded CA as Istio's certificate service, until SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.identity import TRUST_DOMAIN
from fastpath.ztunnel.model import ListenAddress
from vhost_user.schema import parse_ip

try:
    from fastpath.mesh import tokens as token_file
    from fastpath.mesh.authority import Authority
    from fastpath.mesh.issued import stamp
    from fastpath.mesh.issuing import Issuer, Shares
    from fastpath.mesh.service import Server
except ModuleNotFoundError as exc:
    raise FastpathError(
        "fastpath ca",
        f"the module {exc.name} is not installed",
        "pip install 'vsock-fastpath[mesh]'",
    ) from exc

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOKENS: Final = "tokens.yaml"
"""In --dir, without --token-file."""
LOCAL: Final = ("localhost", "127.0.0.1", "::1")
"""Clients on this host call the server so."""
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaOptions:
    """What the user asked for."""

    directory: Path
    listen: ListenAddress
    names: tuple[str, ...]
    """Clients call the server so, besides by `listen` and `LOCAL`."""
    trust_domain: str
    ttl: timedelta
    token_file: Path | None

    @property
    def hosts(self) -> tuple[str, ...]:
        """What the server's certificate names."""
        address = self.listen.host
        own = () if address.is_unspecified else (str(address),)
        return tuple(dict.fromkeys((*LOCAL, *own, *self.names)))


def parse_listen(text: str) -> ListenAddress:
    """Read `IP:PORT` or `[IPv6]:PORT`; port 0 takes any.

    Raises:
        FastpathError: it is neither.
    """
    try:
        return ListenAddress.parse(text)
    except ValueError as exc:
        hint = "write 127.0.0.1:15012 or [::1]:15012"
        raise FastpathError(f"--listen {text}", str(exc), hint) from exc


def parse_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Read host names and addresses.

    Raises:
        FastpathError: one is neither.
    """
    for text in texts:
        try:
            parse_ip(text)
        except ValueError:
            if not _NAME.fullmatch(text):
                hint = "write what stands in CA_ADDRESS, such as ca.example"
                raise FastpathError(f"--name {text}", "is no name", hint) from None
    return tuple(texts)


def parse_trust_domain(text: str) -> str:
    """Read a trust domain.

    Raises:
        FastpathError: it is none.
    """
    if not re.fullmatch(TRUST_DOMAIN, text, re.ASCII):
        raise FastpathError(
            f"--trust-domain {text}",
            "must be of a-z, 0-9, '.', '-' and '_'",
            "Istio's default is cluster.local",
        )
    return text


def run(options: CaOptions) -> int:
    """Serve, and return the exit status.

    Raises:
        FastpathError: before it is ready; nothing is left running.
    """
    return asyncio.run(serve(options))


async def serve(options: CaOptions) -> int:
    """Run until SIGTERM or SIGINT.

    Says `ready` in one line on stderr when it listens, with what a client needs.
    """
    now = datetime.now(UTC)
    authority = Authority.open(options.directory, options.trust_domain, now)
    tokens = token_file.follow(options.token_file or options.directory / TOKENS)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signo in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signo, stop.set)
    issuer = Issuer(authority, lambda: tokens.current, options.ttl, Shares())
    server = Server(authority, issuer, options.hosts)
    try:
        tokens.start()
        listen = options.listen
        port = await server.start(str(listen.host), listen.port)
        with contextlib.suppress(OSError):  # nobody may read it any more
            sys.stderr.write(f"{_ready(options, authority, port)}\n")
            sys.stderr.flush()
        await stop.wait()
    finally:
        await server.close()
        tokens.close()
        for signo in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signo)
    return 0


def _ready(options: CaOptions, authority: Authority, port: int) -> str:
    address = ListenAddress(options.listen.host, port)
    until = stamp(authority.root.not_valid_after_utc)
    return (
        f"fastpath ca: ready: https://{address} for trust domain"
        f" {authority.trust_domain}, root {authority.root_path} until {until}"
    )
