"""`fastpath policy check`: is a policy file good, and what does it decide?

The decision is the one that a sandbox would get from a process that runs here and now:
whether ztunnel's ports are denied hangs on the addresses that this host has. Two things
are in no policy file, so they are not told here: the sandbox's own addresses, and the
ports that a configuration gives ztunnel besides Istio's.

    web.yaml: good: 2 allow rules, 1 deny rule
    10.0.0.99:22 is denied: denied by 10.0.0.99/32:22
      by web.yaml:4: egress.deny[0]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.tsi.datagram_stream import DNS_PORT
from fastpath.tsi.policyfile import HINTS, read
from fastpath.ztunnel.model import ListenAddress
from fastpath.ztunnel.routing import format_address
from vhost_user import decode
from vhost_user.schema import Between

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastpath.tsi.policy import Judgement
    from fastpath.tsi.policyfile import PolicyFile
    from vhost_user.decode import KeyPath
    from vhost_user.engine import SocketAddress

EXIT_DENIED: Final = 1


def run(path: Path, would: str | None) -> int:
    """Check a file, and print what it decides on `would`.

    Returns:
        The exit status.

    Raises:
        FastpathError: the file is not there or not good, or `would` is no destination.
    """
    destination = None if would is None else parse_destination(would)
    document = decode.Document(str(path), FastpathError, hints=HINTS)
    try:
        file = read(path.read_bytes(), document)
    except OSError as exc:
        raise FastpathError(f"{path}", exc.strerror or str(exc)) from exc
    allow, deny = len(file.egress.allow), len(file.egress.deny)
    print(f"{path}: good: {_rules(allow, 'allow')}, {_rules(deny, 'deny')}")  # noqa: T201
    if destination is None:
        return 0
    judgement = file.egress.policy().judge(destination)
    for line in explain(file, document, destination, judgement):
        print(line)  # noqa: T201
    return EXIT_DENIED if judgement.denial else 0


def parse_destination(text: str) -> SocketAddress:
    """Read `IP:PORT` or `[IPv6]:PORT`.

    Raises:
        FastpathError: it is neither.
    """
    try:
        parsed = ListenAddress.parse(text)
        port = Between(1, 65535).parse(f"{parsed.port}")
    except ValueError as exc:
        hint = "policies know addresses, not names: 192.0.2.1:80 or [2001:db8::1]:80"
        raise FastpathError(f"--would {text}", str(exc), hint) from exc
    return str(parsed.host), port


def explain(
    file: PolicyFile,
    document: decode.Document,
    destination: SocketAddress,
    judgement: Judgement,
) -> Iterator[str]:
    """The decision and what it comes from, in lines."""
    name = format_address(destination)
    if judgement.denial is None:
        why = f"covered by {judgement.rule}" if judgement.rule else "nothing denies it"
        yield f"{name} is allowed: {why}{judgement.reading.how}"
    else:
        yield f"{name} is denied: {judgement.denial.text}"
    yield f"  by {_origin(file, document, judgement)}"
    if destination[1] == DNS_PORT:
        yield "  but of a sandbox: ztunnel answers port 53 itself, at any address"


def _origin(file: PolicyFile, document: decode.Document, judgement: Judgement) -> str:
    """What decided: a rule with its line, or a default."""
    if judgement.rule is not None:
        kind = "deny" if judgement.denial else "allow"
        index = getattr(file.egress, kind).index(judgement.rule)
        path: KeyPath = ("egress", kind, index)
        return f"{document.where(path)}: {decode.format_path(path)}"
    if judgement.denial is None:
        return "default: without allow rules, what nothing denies is allowed"
    if judgement.denial.reason == "not_allowed":
        where = document.where(("egress", "allow"))
        return (
            f"{where}: egress.allow: where there are allow rules, one has to cover it"
        )
    return "default: no allow rule names it in particular"


def _rules(count: int, kind: str) -> str:
    return f"{count} {kind} rule{'' if count == 1 else 's'}"
