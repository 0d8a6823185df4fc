"""`fastpath ca`'s options."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.commands.cli.command import Command
from vhost_user.options import whole

if TYPE_CHECKING:
    import argparse

    from vhost_user.options import Parser


def _declare(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--dir",
        metavar="DIR",
        type=Path,
        required=True,
        help="the root's; it is made there the first time",
    )
    add(
        "--listen",
        metavar="IP:PORT",
        default="127.0.0.1:15012",
        help="port 0 takes any (127.0.0.1:15012)",
    )
    add(
        "--name",
        metavar="NAME",
        action="append",
        default=[],
        help="another name that clients call this server by",
    )
    add(
        "--trust-domain",
        metavar="NAME",
        default="cluster.local",
        help="(cluster.local)",
    )
    add(
        "--ttl",
        metavar="S",
        type=whole(10, 315_360_000),
        default=86400,
        help="seconds that a workload's certificate is valid at most (86400)",
    )
    add(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="who may ask for what (DIR/tokens.yaml)",
    )


def _call(options: argparse.Namespace) -> int:
    from fastpath.commands import ca

    return ca.run(
        ca.CaOptions(
            directory=options.dir,
            listen=ca.parse_listen(options.listen),
            names=ca.parse_names(options.name),
            trust_domain=ca.parse_trust_domain(options.trust_domain),
            ttl=timedelta(seconds=options.ttl),
            token_file=options.token_file,
        )
    )


COMMAND: Final = Command(
    line="issue certificates to Istio's ztunnel, for development",
    more="docs/certificates.md says how a client finds it, and what a token file says.",
    declare=_declare,
    call=_call,
    level=logging.INFO,
    status="0 after SIGTERM; 2 if it could not serve",
    examples=(
        ("a root in ./ca, with tokens of ca/tokens.yaml", "fastpath ca --dir ca"),
    ),
)
