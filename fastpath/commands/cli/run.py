"""`fastpath run`'s options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.commands.cli import shared
from fastpath.commands.cli.command import Command
from fastpath.errors import FastpathError
from vhost_user.options import seconds, whole

if TYPE_CHECKING:
    from vhost_user.options import Parser


def _declare(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "command",
        metavar="-- CMD...",
        nargs=argparse.REMAINDER,
        help="what to run, with its arguments",
    )
    add("--name", metavar="NAME", help="for exec, ps and stop (IMAGE-PID)")
    add("--image", metavar="NAME", default="base", help="see `fastpath image list`")
    for option, metavar, what in (
        ("--file", "SRC:DST", "add a host file or directory to the guest"),
        ("--env", "K=V", "set a variable; K alone takes ours"),
        ("--allow", "PREFIX[:PORTS]", "allow what is denied by default"),
        (
            "--publish",
            "[IP:]PORT:PORT",
            "make a port of CMD's, the second, reachable here; IP:*: each of them",
        ),
    ):
        add(option, metavar=metavar, action="append", default=[], help=what)
    add(
        "--policy",
        metavar="FILE",
        type=Path,
        help="what CMD may reach, published ports, limits (docs/tsi-policy.md)",
    )
    add(
        "--access-log",
        metavar="FILE",
        type=Path,
        help="append a line for each connection",
    )
    add(
        "--json",
        metavar="FILE",
        type=Path,
        help="write what ran, in what, how long, and how it ended",
    )
    add(
        "--timeout",
        metavar="S",
        type=seconds,
        help="seconds for all of it: image, boot and CMD",
    )
    vm = parser.add_argument_group("the microVM")
    vm.add_argument("--kernel", metavar="FILE", type=Path, help="not the image's")
    vm.add_argument(
        "--sockets",
        choices=("auto", "module", "agent"),
        default="auto",
        help="who has CMD's sockets; auto: the guest's kernel, if it can (auto)",
    )
    vm.add_argument(
        "--memory", metavar="MIB", type=whole(64), default=512, help="(512)"
    )
    vm.add_argument("--cpus", metavar="N", type=whole(1), default=1, help="(1)")
    shared.vm(vm)


def _call(options: argparse.Namespace) -> int:
    from fastpath.commands import run

    argv = tuple(options.command[options.command[:1] == ["--"] :])
    if not argv:
        raise FastpathError("-- CMD...", "no command to run", "fastpath run --help")
    if options.policy and options.allow:
        raise FastpathError(
            "--allow", "the policy file says it", "add the rule to its egress.allow"
        )
    return run.run(
        run.RunOptions(
            argv=argv,
            name=options.name,
            image=options.image,
            files=run.parse_files(options.file),
            env=run.parse_env(options.env),
            allow=run.parse_allow(options.allow),
            publish=run.parse_publish(options.publish),
            policy=options.policy,
            access_log=options.access_log,
            json=options.json,
            kernel=options.kernel,
            sockets=options.sockets,
            qemu=options.qemu,
            memory_mib=options.memory,
            cpus=options.cpus,
            timeout_s=options.timeout,
            boot_timeout_s=options.boot_timeout,
            accel=options.accel,
        )
    )


COMMAND: Final = Command(
    line="run CMD in a microVM; its connections take the fast path",
    declare=_declare,
    call=_call,
    status="CMD's own, 128 + n for a signal; 124 after --timeout; 2 if it didn't run",
    examples=(
        (
            "a client in the guest",
            "fastpath run --image apps -- curl -s http://example.org/",
        ),
        (
            "a server in the guest, at http://127.0.0.1:8080/",
            "fastpath run --publish 8080:80 -- httpd -f -p 80",
        ),
        (
            "a program of this host's, static, and a line for each of its connections",
            "fastpath run --file ./probe:/bin/probe --access-log log -- probe",
        ),
    ),
)
