"""`vhost-user-vsock`: the virtio-vsock back-end as a process of its own.

A drop-in for rust-vmm's vhost-device-vsock: the same options with the same meaning.
Light on purpose: argparse, and YAML only when a file is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vhost_user import entry, logs
from vhost_user.backend import Backend
from vhost_user.closing import stop_event
from vhost_user.engine import DEFAULT_MAX_CONNS, Echo, Engine, Unix, Vsock
from vhost_user.errors import VhostUserError
from vhost_user.options import MisuseError, Once, Parser, level
from vhost_user.vsock import config
from vhost_user.vsock.config import ConfigError, VmConfig
from vhost_user.vsock.device import VsockDevice
from vhost_user.vsock.forward import ForwardListener
from vhost_user.vsock.hybrid import HybridListener
from vhost_user.vsock.packet import PORT_ANY
from vhost_user.vsock.placement import place
from vhost_user.vsock.stats import JsonSocket, MetricsServer, process_stats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

log = logging.getLogger(__name__)

PROG: Final = "vhost-user-vsock"
DEFAULT_POLL_US: Final = 200
MAX_POLL_US: Final = 1_000_000

_VM_OPTIONS: Final = (
    "guest_cid",
    "socket",
    "uds_path",
    "forward_cid",
    "forward_listen",
    "tx_buffer_size",
    "queue_size",
    "groups",
    "max_conns",
    "max_queued_bytes",
    "accept_rate",
    "memory_files",
    "socket_mode",
    "socket_group",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line, checked."""

    vms: list[VmConfig]
    threads: int
    """Engines that were asked for."""
    placed: list[int]
    """The engine of each VM."""
    poll_us: int
    echo_port: int | None
    stats_socket: Path | None
    metrics: tuple[str, int] | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the back-end until a signal ends it; return the exit status."""
    entry.set_up_streams()
    logs.set_up()
    return entry.guarded(PROG, lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    try:
        options = parse(argv)
        _tell_of_unused(options)
        asyncio.run(_serve(_within_descriptors(options)))
    except (ConfigError, MisuseError, VhostUserError) as error:
        return entry.complain(PROG, str(error))
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return entry.complain(PROG, f"{path}{error.strerror or error}")
    return 0


def parse(argv: Sequence[str]) -> Options:
    """Parse and check the command line.

    Raises:
        MisuseError: it is not as the help text says.
        ConfigError: it contradicts itself or has a bad value.
    """
    args = parser().parse_args(argv)
    logs.show(level(args, logging.INFO))
    stats_socket, echo_port, metrics = args.stats_socket, args.echo_port, args.metrics
    single = {
        name: value
        for name in _VM_OPTIONS
        if (value := getattr(args, name)) is not None
    }
    sources = [bool(single), args.vm is not None, args.config is not None]
    if sum(sources) > 1:
        raise ConfigError("give one of: --socket and its like, --vm, --config")
    threads = (
        None
        if args.threads is None
        else _option("--threads", args.threads, config.threads)
    )
    if args.config is not None:
        file = config.load(Path(args.config))
        vms = list(file.vms)
        if threads is None:
            threads = file.threads
        elif file.threads is not None:
            raise ConfigError(f"threads is given twice: --threads, {args.config}")
    elif args.vm is not None:
        vms = [config.parse_vm(text) for text in args.vm]
    elif single:
        vms = [config.from_options(single)]
    else:
        vms = []
    threads = threads or 1
    options = Options(
        vms=vms,
        threads=threads,
        placed=place([vm.groups for vm in vms], threads),
        poll_us=(
            DEFAULT_POLL_US
            if args.poll_us is None
            else _number("--poll-us", args.poll_us, MAX_POLL_US)
        ),
        echo_port=(
            None
            if echo_port is None
            else _number("--echo-port", echo_port, PORT_ANY - 1)
        ),
        stats_socket=(
            None
            if stats_socket is None
            else _option("--stats-socket", stats_socket, config.socket_path)
        ),
        metrics=(
            None
            if metrics is None
            else _option("--metrics", metrics, config.tcp_address)
        ),
    )
    config.check(vms, options.stats_socket)
    return options


def _tell_of_unused(options: Options) -> None:
    """Say it if fewer engines run than were asked for."""
    used = max(options.placed) + 1
    if used < options.threads:
        log.warning(
            "threads is %d, but %s all %d VMs: VMs that share a group are on one "
            "engine; give them smaller groups (groups)",
            options.threads,
            "one engine has" if used == 1 else f"{used} engines have",
            len(options.vms),
        )


def _within_descriptors(options: Options) -> Options:
    """Raise the limit of open files as far as it goes, and keep VMs within it."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if limit == resource.RLIM_INFINITY:
        return options
    vms = config.share_descriptors(options.vms, limit)
    for asked, vm in zip(options.vms, vms, strict=True):
        if asked.max_conns not in {vm.max_conns, DEFAULT_MAX_CONNS}:
            log.warning(
                "CID %d: max_conns is %d: open files are limited to %d (ulimit -Hn)",
                vm.guest_cid,
                vm.max_conns,
                limit,
            )
    return dataclasses.replace(options, vms=vms)


def parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog=PROG,
        description="vhost-user back-end for virtio-vsock.",
        status="0 after SIGTERM; 2 if it could not serve",
        examples=(
            (
                "one VM",
                f"{PROG} --guest-cid 3 --socket /tmp/v.sock --uds-path /tmp/v.uds",
            ),
            (
                "streams to and from the host's own AF_VSOCK",
                f"{PROG} --socket /tmp/v.sock --forward-cid 1 --forward-listen 9001",
            ),
        ),
    )
    parser.register("action", None, Once)
    one = parser.add_argument_group("one VM")
    one.add_argument("--guest-cid", metavar="CID", help="the guest's CID (3)")
    one.add_argument("--socket", metavar="PATH", help="the VMM connects here")
    one.add_argument(
        "--uds-path",
        metavar="PATH",
        help="host clients connect here; guest connections go to PATH_PORT",
    )
    one.add_argument(
        "--forward-cid",
        metavar="CID",
        help="instead of --uds-path: guest connections go to this vsock CID (1: here)",
    )
    one.add_argument(
        "--forward-listen",
        metavar="PORT+...",
        help="connections to these vsock ports of the host go to the guest",
    )
    one.add_argument(
        "--tx-buffer-size",
        metavar="BYTES",
        help="window of a connection, guest to host (1048576)",
    )
    one.add_argument("--queue-size", metavar="N", help="largest ring (32768)")
    one.add_argument(
        "--groups",
        metavar="NAME+...",
        help="VMs that share a group reach each other by CID (default)",
    )
    one.add_argument("--max-conns", metavar="N", help="connections (65536)")
    one.add_argument(
        "--max-queued-bytes",
        metavar="BYTES",
        help="bytes from the guest that may wait for the host (268435456)",
    )
    one.add_argument(
        "--accept-rate",
        metavar="N",
        help="connection requests a second, each way; 0: any number (0)",
    )
    one.add_argument(
        "--memory-files",
        metavar="ram|any",
        help="guest memory may be in tmpfs, memfds and hugetlbfs, or any file (ram)",
    )
    one.add_argument(
        "--socket-mode",
        metavar="OCTAL",
        help="permission bits of --socket and --uds-path (0600)",
    )
    one.add_argument(
        "--socket-group", metavar="GROUP", help="their group, by name or number"
    )
    many = parser.add_argument_group("several VMs")
    many.add_argument(
        "--vm",
        action="append",
        metavar="KEY=VALUE,...",
        help="a VM, with the keys above; may be repeated",
    )
    many.add_argument("--config", metavar="FILE", help="YAML: a list vms of such keys")
    parser.add_argument(
        "--threads",
        metavar="N",
        help="engines, each a thread; VMs that share a group are on one (1)",
    )
    parser.add_argument(
        "--poll-us",
        metavar="US",
        help="longest time to spin for work before blocking; 0: never (200)",
    )
    parser.add_argument(
        "--echo-port", metavar="PORT", help="answer this port with an echo, in place"
    )
    parser.add_argument(
        "--stats-socket",
        metavar="PATH",
        help="a client gets the counters as JSON",
    )
    parser.add_argument(
        "--metrics",
        metavar="ADDR:PORT",
        help="answer GET /metrics with the counters, for Prometheus",
    )
    return parser


def _option(name: str, text: str, parse_value: Callable[[str], T]) -> T:
    try:
        return parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _number(name: str, text: str, high: int) -> int:
    return _option(name, text, lambda text: config.integer(text, 0, high))


def _say(text: str) -> None:
    """Write a line on stderr for whoever reads it; it may be nobody any more."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{PROG}: {text}\n")
        sys.stderr.flush()


@dataclasses.dataclass(frozen=True, slots=True)
class _Vm:
    """What runs for one VM."""

    engine: int
    device: VsockDevice
    backend: Backend
    host: HybridListener | ForwardListener | None

    def stats(self) -> dict[str, Any]:
        return {
            "guest_cid": self.device.guest_cid,
            "engine": self.engine,
            "connected": self.backend.connected.is_set(),
            "clients_refused": self.host.refused if self.host else 0,
            **dataclasses.asdict(self.device.handle.stats()),
        }


async def _serve(options: Options) -> None:
    stop = stop_event()
    async with contextlib.AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(
                Engine(
                    poll_us=options.poll_us,
                    # the sum: what one VM has can't be another's
                    max_conns=sum(vm.max_conns for vm in vms),
                )
            )
            for vms in _by_engine(options)
        ]
        vms = [
            await _start(stack, engines, at, vm, options.echo_port)
            for vm, at in zip(options.vms, options.placed, strict=True)
        ]
        await _start_stats(stack, options, engines, vms)
        for vm in options.vms:
            host = f", host side {vm.uds_path}" if vm.uds_path else ""
            if vm.forward_cid is not None:
                host = f", host side CID {vm.forward_cid}"
            _say(f"ready: CID {vm.guest_cid} on {vm.socket}{host}")
        await stop.wait()


def _by_engine(options: Options) -> list[list[VmConfig]]:
    """Return each engine's VMs."""
    engines: list[list[VmConfig]] = [[] for _ in range(max(options.placed) + 1)]
    for vm, at in zip(options.vms, options.placed, strict=True):
        engines[at].append(vm)
    return engines


async def _start_stats(
    stack: contextlib.AsyncExitStack,
    options: Options,
    engines: list[Engine],
    vms: list[_Vm],
) -> None:
    def snapshot() -> dict[str, Any]:
        each = [dataclasses.asdict(engine.stats()) for engine in engines]
        return {
            "process": process_stats(),
            "engine": {name: sum(of[name] for of in each) for name in each[0]},
            "engines": [
                {"engine": at, "vms": options.placed.count(at), **of}
                for at, of in enumerate(each)
            ],
            "vms": [vm.stats() for vm in vms],
        }

    if options.stats_socket is not None:
        stats = JsonSocket(options.stats_socket, snapshot)
        stack.callback(stats.close)
        await stats.start()
    if options.metrics is not None:
        metrics = MetricsServer(options.metrics, snapshot)
        stack.callback(metrics.close)
        metrics.start()


async def _start(
    stack: contextlib.AsyncExitStack,
    engines: list[Engine],
    at: int,
    vm: VmConfig,
    echo_port: int | None,
) -> _Vm:
    device = VsockDevice(
        engines[at],
        guest_cid=vm.guest_cid,
        buf_alloc=vm.tx_buffer_size,
        queue_size=vm.queue_size,
        groups=vm.groups,
        max_conns=vm.max_conns,
        max_queued_bytes=vm.max_queued_bytes,
        accept_rate=vm.accept_rate,
    )
    stack.callback(device.close)
    host: HybridListener | ForwardListener | None = None
    if vm.uds_path is not None:
        device.handle.route(None, Unix(str(vm.uds_path)))
        host = HybridListener(device, vm.uds_path, access=vm.access)
    elif vm.forward_cid is not None:
        device.handle.route(None, Vsock(vm.forward_cid))
        host = ForwardListener(device, vm.forward_listen)
    if host is not None:
        stack.push_async_callback(host.close)
        await host.start()
    if echo_port is not None:
        device.handle.route(echo_port, Echo())
    backend = Backend(
        vm.socket,
        device,
        name=f"CID {vm.guest_cid}",
        memory_files=vm.memory_files,
        access=vm.access,
    )
    stack.push_async_callback(backend.close)
    await backend.start()
    return _Vm(at, device, backend, host)


if __name__ == "__main__":
    sys.exit(main())
