"""The command line: options in, one of the commands called, an exit status out.

Each command imports what it needs when it runs, so that `fastpath run` does not
wait for the parts that only `fastpath compare` uses. `body` says what becomes of an
error. A command that stays has its own parser (`fastpath.entry`); here it has its line
in the list.
"""

# ruff: noqa: TC003 - typer reads the annotations when it runs

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, cast

import typer

from fastpath.commands import body, comparing
from fastpath.commands.body import PROG
from fastpath.commands.options import Accel, BootTimeout, Qemu, seconds
from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(
    name=PROG,
    help="A shared-memory fast path between microVMs and a service mesh.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
image_app = typer.Typer(help="MicroVM images.", no_args_is_help=True)
app.add_typer(image_app, name="image")
policy_app = typer.Typer(help="A sandbox's policy.", no_args_is_help=True)
app.add_typer(policy_app, name="policy")
path_app = typer.Typer(
    help="The standard paths: to read, to look around in, to try.",
    no_args_is_help=True,
)
app.add_typer(path_app, name="path")

# typer exports one kind of usage error; its base is that of all of them.
_UsageError: Final = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


def main() -> int:
    """Run the program and return its exit status."""
    body.set_up()
    return invoke(sys.argv[1:])


def invoke(args: Sequence[str]) -> int:
    """Run one command and return its exit status; errors go to stderr."""
    return body.guarded(lambda: _invoke(args))


def _invoke(args: Sequence[str]) -> int:
    try:
        status = app(list(args), prog_name=PROG, standalone_mode=False)
    except _UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else PROG
        return body.misused(command, exc.format_message())
    except typer.Abort:
        raise KeyboardInterrupt from None
    return int(status or 0)


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Exit status: CMD's own; 124 after --timeout; 2 when it could not run.",
)
def run(
    command: Annotated[
        list[str], typer.Argument(metavar="-- CMD...", help="What to run.")
    ],
    *,
    image: Annotated[str, typer.Option(help="See `fastpath image list`.")] = "base",
    file: Annotated[
        list[str] | None,
        typer.Option(metavar="SRC:DST", help="Add a host file to the guest."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="K=V", help="Set a variable; K alone takes ours."),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX[:PORTS]", help="Allow what is denied by default."),
    ] = None,
    publish: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[IP:]HOST_PORT:PORT",
            help="Make a port of CMD's reachable here; IP is 127.0.0.1 by default.",
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A policy: egress, published ports, limits."),
    ] = None,
    access_log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Append a line for each connection."),
    ] = None,
    kernel: Annotated[
        Path | None, typer.Option(help="A kernel other than the image's.")
    ] = None,
    sockets: Annotated[
        Literal["auto", "module", "agent"],
        typer.Option(
            help="Who has CMD's sockets; auto: the guest's kernel, if it can."
        ),
    ] = "auto",
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say what the guest is.")
    ] = False,
    qemu: Qemu = "qemu-system-x86_64",
    memory: Annotated[int, typer.Option(metavar="M", help="MiB.", min=64)] = 512,
    cpus: Annotated[int, typer.Option(metavar="N", min=1)] = 1,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            callback=seconds,
            help="Seconds for all of it: image, boot and CMD.",
        ),
    ] = None,
    boot_timeout: BootTimeout = None,
    accel: Accel = "auto",
) -> int:
    """Boot a microVM and run CMD in it; its connections take the fast path."""
    from fastpath.commands import run as runner

    if policy and allow:
        raise FastpathError(
            "--allow", "the policy file says it", "add the rule to its egress.allow"
        )
    options = runner.RunOptions(
        argv=tuple(command),
        image=image,
        files=runner.parse_files(file or ()),
        env=runner.parse_env(env or ()),
        allow=runner.parse_allow(allow or ()),
        publish=runner.parse_publish(publish or ()),
        policy=policy,
        access_log=access_log,
        kernel=kernel,
        sockets=sockets,
        verbose=verbose,
        qemu=qemu,
        memory_mib=memory,
        cpus=cpus,
        timeout_s=timeout,
        boot_timeout_s=boot_timeout,
        accel=accel,
    )
    return runner.run(options)


app.command()(comparing.compare)
app.add_typer(comparing.report_app, name="report")


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def ztunnel(ctx: typer.Context) -> int:
    """Serve sandboxes and the captured traffic until SIGTERM."""
    from fastpath.commands import ztunnel as server

    return server.invoke(ctx.args)


@app.command()
def ca(
    *,
    directory: Annotated[
        Path, typer.Option("--dir", help="The root; it is made there the first time.")
    ],
    listen: Annotated[
        str, typer.Option(metavar="IP:PORT", help="Port 0 takes any.")
    ] = "127.0.0.1:15012",
    name: Annotated[
        list[str] | None,
        typer.Option(help="Another name that clients call this server by."),
    ] = None,
    trust_domain: Annotated[str, typer.Option(metavar="NAME")] = "cluster.local",
    ttl: Annotated[
        int,
        typer.Option(
            metavar="S",
            min=10,
            max=315_360_000,
            help="Seconds that a workload's certificate is valid at most.",
        ),
    ] = 86400,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Who may ask for what (default: DIR/tokens.yaml)."
        ),
    ] = None,
) -> int:
    """Issue workload certificates to Istio's ztunnel, for development.

    docs/certificates.md says how a client finds it and what a token file says.
    """
    from datetime import timedelta

    from fastpath.commands import ca as server

    options = server.CaOptions(
        directory=directory,
        listen=server.parse_listen(listen),
        names=server.parse_names(name or ()),
        trust_domain=server.parse_trust_domain(trust_domain),
        ttl=timedelta(seconds=ttl),
        token_file=token_file,
    )
    return server.run(options)


@app.command()
def doctor() -> int:
    """Say what this host can do, and for each "no" the command that fixes it.

    The exit status is 1 when something is missing that a command needs.
    """
    from fastpath.commands import doctor as checker

    return checker.run()


@policy_app.command("check")
def policy_check(
    file: Annotated[Path, typer.Argument(help="See docs/tsi-policy.md.")],
    would: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS:PORT", help="Explain what it says of this one."),
    ] = None,
) -> int:
    """Check a policy file, and explain what it decides on a destination.

    The exit status is 1 when the destination is denied, 2 when the file is wrong.
    """
    from fastpath.commands import policy_check as checker

    return checker.run(file, would)


@image_app.command("build")
def image_build(
    name: Annotated[str | None, typer.Argument(help="Default: all of them.")] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask for newer packages first.")
    ] = False,
    own_kernel: Annotated[
        bool,
        typer.Option(
            "--own-kernel", help="Compile its kernel, without modules and with TSI."
        ),
    ] = False,
    kernel_config: Annotated[
        list[Path] | None,
        typer.Option(metavar="FRAGMENT", help="CONFIG_ lines for --own-kernel."),
    ] = None,
) -> int:
    """Build an image, or all; what did not change is not built again."""
    from fastpath.commands import image

    return image.build(
        name,
        refresh=refresh,
        own_kernel=own_kernel,
        fragments=tuple(kernel_config or ()),
    )


@image_app.command("list")
def image_list(
    name: Annotated[str | None, typer.Argument(help="Default: all.")] = None,
) -> int:
    """List the images that can be built."""
    from fastpath.commands import image

    return image.show(name)


PathName = Annotated[str, typer.Argument(help="See `fastpath path list`.")]
Geneve = Annotated[
    Literal["auto", "kernel", "bpf"], typer.Option(help="Which Geneve device.")
]


@path_app.command("list")
def path_list() -> int:
    """List the paths."""
    from fastpath.commands import path

    return path.show_all()


@path_app.command("show")
def path_show(name: PathName) -> int:
    """Show a path: a picture of its hops, and the commands that build it."""
    from fastpath.commands import path

    return path.show_one(name)


@path_app.command("up")
def path_up(name: PathName, *, geneve: Geneve = "auto") -> int:
    """Build a path in named network namespaces and leave it; as root."""
    from fastpath.commands import path

    return path.up(name, geneve)


@path_app.command("down")
def path_down(name: PathName) -> int:
    """Take a path down again; as root."""
    from fastpath.commands import path

    return path.down(name)


@path_app.command("check")
def path_check(name: PathName, *, geneve: Geneve = "auto") -> int:
    """Send one connection over a path and say at which hop it was seen.

    The exit status is 1 when it did not arrive as it should.
    """
    from fastpath.commands import path

    return path.check(name, geneve)


if __name__ == "__main__":
    sys.exit(main())
