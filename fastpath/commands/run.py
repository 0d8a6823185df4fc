"""`fastpath run`: boot a microVM and run one program in it, over the fast path.

Everything is in this process but QEMU: the ztunnel with one sandbox, and the
host's side of init's exec protocol. So destinations are dialled from the
network namespace that the command was started in, and no right is needed.

    our stdin, signals --> Guest === vsock === init --> program
    our stdout, stderr <--   "                            | connect()
    the network <-- Ztunnel <== vhost-user, TSI ==========+
    clients --> --publish'ed ports of this host ==========+ listen()

What a user sees is the program's output and exit status, 128 + n for a signal;
124 when `--timeout` ran out, whatever it was busy with; 128 + n also when a signal
ended us before the program ran. A guest that does not boot, panics or loses agent
after agent is an error that says what its console said last, and the console log is
kept for a day; in every other case nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import signal
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from fastpath import control, files, resolvconf
from fastpath.commands.attached import FORWARDED, Attached
from fastpath.commands.progress import build_image
from fastpath.commands.summary import Recorder, Summary
from fastpath.deadline import Deadline, TimedOut
from fastpath.errors import FastpathError
from fastpath.image import images
from fastpath.scratch import CONSOLE, scratch
from fastpath.tsi import keys
from fastpath.tsi.policy import Rule
from fastpath.tsi.policyfile import Egress
from fastpath.vm import accel
from fastpath.vm.console import last_words
from fastpath.vm.guest import Guest, GuestGoneError
from fastpath.vm.machine import SETTLE_S, Machine
from fastpath.vm.spec import VmSpec
from fastpath.ztunnel.config import for_sandbox
from fastpath.ztunnel.model import Publication
from fastpath.ztunnel.process import Ztunnel
from vhost_user.closing import hangup_is_ignored
from vhost_user.entry import complain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fastpath.ztunnel.model import Config

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

Sockets = Literal["auto", "module", "agent"]

EXIT_TIMEOUT: Final = 124
"""As timeout(1) has it."""

ENDING: Final = FORWARDED[:4]
"""Those of them that end us before it runs."""

EVERYWHERE: Final = (Rule.parse("0.0.0.0/0"), Rule.parse("::/0"))
"""Opens nothing that is denied by default: only a rule for that in particular does."""

GUEST_CID: Final = 3

SANDBOX: Final = "run"
"""ztunnel's name of it."""

SOCKET: Final = "vhost.sock"
"""Between QEMU and ztunnel, in the run's folder."""

NAME: Final = "fastpath"
"""The guest's, which is its own addresses there."""

POD_IP: Final = ipaddress.ip_address("10.200.1.2")
"""What the program sees as its own address; it is never on a wire."""
POD_IPV6: Final = ipaddress.ip_address("fd6f:5c1e:9b2a::2")
"""The same, where this host reaches IPv6: else look-ups with AI_ADDRCONFIG would find
addresses that nothing leads to, and where it does, none that it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What to run, and in what."""

    argv: tuple[str, ...]
    name: str | None = None
    """For `fastpath exec`, `ps` and `stop`; None: the image's and our process id."""
    image: str = "base"
    files: Mapping[str, Path]
    """Absolute guest path -> host file or directory."""
    env: Mapping[str, str]
    allow: tuple[Rule, ...] = ()
    """Besides what is not denied by default; not with `policy`."""
    publish: tuple[Publication, ...] = ()
    """With `policy`, it has to publish these ports."""
    policy: Path | None = None
    """A policy file, followed while the program runs."""
    access_log: Path | None = None
    json: Path | None = None
    """Where a summary goes; it is written whatever becomes of the run."""
    kernel: Path | None = None
    sockets: Sockets = "auto"
    """Who has the program's sockets: guest/kernel/inet, or tsi-agent where it isn't."""
    verbose: bool = False
    qemu: str = "qemu-system-x86_64"
    memory_mib: int = 512
    cpus: int = 1
    timeout_s: float | None = None
    """For all of it: image, boot and program."""
    boot_timeout_s: float | None = None
    """For the boot; None: what the accelerator takes at most."""
    accel: str = "auto"


def parse_files(values: Sequence[str]) -> dict[str, Path]:
    """Read `SRC:DST` values: host path, absolute guest path.

    Raises:
        FastpathError: no such file, or DST is not an absolute path.
    """
    files = {}
    for value in values:
        source, _, target = value.rpartition(":")
        if not source or not target.startswith("/"):
            raise FastpathError(f"--file {value}", "must be SRC:/ABSOLUTE/DST")
        if not Path(source).exists():
            raise FastpathError(f"--file {value}", f"no file or directory {source}")
        files[target] = Path(source)
    return files


def parse_env(values: Sequence[str]) -> dict[str, str]:
    """Read `K=V` values; `K` alone takes our own value, if there is one.

    Raises:
        FastpathError: a name is empty.
    """
    env = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name:
            raise FastpathError(f"--env {value}", "must be NAME=VALUE or NAME")
        if equals:
            env[name] = text
        elif name in os.environ:
            env[name] = os.environ[name]
    return env


def parse_allow(values: Sequence[str]) -> tuple[Rule, ...]:
    """Read `PREFIX[:PORTS]` values; see `fastpath.tsi.policy.Rule`.

    Raises:
        FastpathError: one cannot be read.
    """
    return _parse_each("--allow", Rule.parse, values)


def parse_publish(values: Sequence[str]) -> tuple[Publication, ...]:
    """Read `[IP:]HOST_PORT:PORT` and `IP:*` values.

    Raises:
        FastpathError: one cannot be read.
    """
    return _parse_each("--publish", Publication.parse, values)


def _parse_each(
    option: str, parse: Callable[[str], _T], values: Sequence[str]
) -> tuple[_T, ...]:
    found = []
    for value in values:
        try:
            found.append(parse(value))
        except ValueError as exc:
            raise FastpathError(f"{option} {value}", str(exc)) from exc
    return tuple(found)


def run(options: RunOptions) -> int:
    """Boot, run the program, and return the exit status.

    Raises:
        FastpathError: it could not run, or the guest or its agent died.
    """
    _check_inputs(options)
    if options.json:
        files.check_replaceable(options.json)
    recorder = Recorder(Summary(argv=options.argv, image=options.image))
    try:
        recorder.summary.status = _run_in_time(options, recorder)
    except FastpathError as exc:
        recorder.summary.error = str(exc)
        raise
    finally:
        if options.json:
            recorder.write(options.json)
    return recorder.summary.status


def _run_in_time(options: RunOptions, recorder: Recorder) -> int:
    try:
        with Deadline(options.timeout_s) as deadline:
            return _prepare_and_run(options, deadline, recorder)
    except TimedOut as exc:
        complain("fastpath", f"timed out: {exc}")
        return EXIT_TIMEOUT


def _check_inputs(options: RunOptions) -> None:
    """Refuse to read for ourselves what the program is to read: our stdin."""
    named = {f"--policy {options.policy}": options.policy} if options.policy else {}
    named |= {f"--file {path}:{to}": path for to, path in options.files.items()}
    stdin = os.fstat(0)
    is_stream = stat.S_ISFIFO(stdin.st_mode) or stat.S_ISSOCK(stdin.st_mode)
    if not (is_stream or os.isatty(0)):
        return  # a file is read from its beginning by whoever opens it
    for option, path in named.items():
        with contextlib.suppress(OSError):  # reading it will say so
            if os.path.samestat(path.stat(), stdin):
                raise FastpathError(
                    option, "that is CMD's input", "write it to a file, and name that"
                )


def _prepare_and_run(
    options: RunOptions, deadline: Deadline, recorder: Recorder
) -> int:
    image = build_image(options.image)
    chosen = accel.choose(options.accel, qemu=options.qemu)
    with scratch() as folder:
        if options.files:
            image = images.with_files(image, options.files, folder / "initramfs")
        spec = VmSpec(
            image=image,
            accel=chosen,
            vsock_socket=folder / SOCKET,
            console=folder / CONSOLE,
            qmp=folder / "qmp.sock",
            memory_mib=options.memory_mib,
            cpus=options.cpus,
            qemu=options.qemu,
            kernel=options.kernel,
            append=" ".join(
                [
                    f"tsi={options.sockets}",
                    f"guest_name={','.join((NAME, *map(str, pod_ips())))}",
                    resolvconf.kernel_parameters(resolvconf.read()),
                ]
            ),
        )
        return asyncio.run(_Run(options, spec, folder, deadline, recorder).main())


def reaches_ipv6() -> bool:
    """Whether this host has a route to the IPv6 internet; nothing is sent."""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe,
    ):
        probe.connect(("2001:4860::", 9))  # any address of 2000::/3
        return not ipaddress.ip_address(probe.getsockname()[0]).is_link_local
    return False


def pod_ips() -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """What the program sees as its own addresses."""
    return (POD_IP, POD_IPV6) if reaches_ipv6() else (POD_IP,)


class _Run:
    """One run: a ztunnel, a machine, a guest, and the signals between them."""

    def __init__(
        self,
        options: RunOptions,
        spec: VmSpec,
        folder: Path,
        deadline: Deadline,
        recorder: Recorder,
    ) -> None:
        self._options = options
        self._recorder = recorder
        self._spec = spec
        self._deadline = deadline
        self._timed_out = False
        self._booted = False
        self._vsock = folder / SOCKET
        self._uds_path = folder / "vsock"
        self._key_file = folder / "key"
        self._key = keys.make(self._key_file)
        self._begun_s = time.monotonic()
        self._main: asyncio.Task[object]
        self._guest: asyncio.Future[Guest]
        """For other processes' commands."""
        self._over: asyncio.Event
        """The program has ended, or the guest; the rest follows."""
        self._attached: Attached | None = None
        """The program: signals go there."""
        self._ended_by: signal.Signals | None = None

    async def main(self) -> int:
        """Do it all; cancelled by the signals that end a process."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._main = task
        self._guest = loop.create_future()
        self._over = asyncio.Event()
        for signo in FORWARDED:
            if signo != signal.SIGHUP or not hangup_is_ignored():
                loop.add_signal_handler(signo, self._on_signal, signo)
        self._deadline.hand_over(loop, self._expire)
        try:
            return await self._boot_and_run()
        except asyncio.CancelledError:
            if self._timed_out:
                raise TimedOut(self._late()) from None
            if self._ended_by is None:
                raise
            return 128 + self._ended_by

    def _expire(self) -> None:
        self._timed_out = True
        self._main.cancel()

    def _late(self) -> str:
        """What was not done in time."""
        within = f"within {self._deadline.seconds:g} s"
        if self._booted:
            return f"not done {within}"
        return f"the guest has not booted {within}{last_words(self._spec.console)}"

    async def _boot_and_run(self) -> int:
        async with (
            self._served(),
            Ztunnel(self._ztunnel_config()) as ztunnel,
            Guest(self._uds_path, console=self._spec.console, key=self._key) as guest,
            Machine(self._spec) as machine,
        ):
            self._guest.set_result(guest)
            info = await machine.watch(guest.ready(self._boot_timeout_s()))
            self._booted = True
            self._recorder.ready(info, self._spec.accel.kind)
            if self._options.verbose:
                complain(
                    "fastpath",
                    f"guest: Linux {info.kernel}, sockets by the {info.sockets}",
                )
            elif (
                self._options.sockets == "auto"
                and info.sockets != "module"
                and _log.isEnabledFor(logging.WARNING)
            ):
                complain("fastpath", f"sockets by the {info.sockets}")
            try:
                return await machine.watch(self._program(guest))
            finally:
                self._over.set()
                stats = ztunnel.sandboxes[SANDBOX].device.handle.stats()
                self._recorder.summary.connections = stats.opened

    def _boot_timeout_s(self) -> float:
        return self._options.boot_timeout_s or self._spec.accel.boot_timeout_s

    async def _program(self, guest: Guest) -> int:
        """Run the program with our stdio."""
        self._attached = Attached(guest, (0, 1, 2))
        return await self._attached.run(self._options.argv, self._options.env)

    def _served(self) -> contextlib.AbstractAsyncContextManager[object]:
        """Be there for other processes; without a name only if that is possible."""
        try:
            return control.Served(self._name, self._serve)
        except FastpathError as error:
            if self._options.name:
                raise
            _log.info("not in `fastpath ps`: %s", error)
            return contextlib.nullcontext()

    @property
    def _name(self) -> str:
        return self._options.name or f"{self._options.image}-{os.getpid()}"

    def _info(self) -> control.Message:
        """What `fastpath ps` shows."""
        return {
            "name": self._name,
            "image": self._options.image,
            "pid": os.getpid(),
            "ready": self._booted,
            "up_s": round(time.monotonic() - self._begun_s, 1),
            "publish": [str(each) for each in self._options.publish],
            "command": list(self._options.argv),
        }

    async def _stop(self, grace_s: float) -> None:
        """End the program, or all at once if it takes longer than `grace_s`."""
        if self._attached is not None and self._attached.runs:
            self._attached.signal(signal.SIGTERM)
            await asyncio.sleep(grace_s)
        self._ended_by = self._ended_by or signal.SIGTERM
        self._main.cancel()
        await asyncio.sleep(math.inf)  # the client waits until all has ended

    async def _serve(
        self, client: control.Client, asked: control.Message, fds: Sequence[int]
    ) -> control.Message | None:
        """Do what another process of this user asks for."""
        match asked:
            case {"do": "info"}:
                return self._info()
            case {"do": "exec", "argv": list(argv), "env": dict(env), "cwd": str(cwd)}:
                if len(fds) != control.MAX_FDS:
                    raise FastpathError("exec", "came without standard streams")
                attached = Attached(await asyncio.shield(self._guest), fds)
                client.on_signal = attached.signal
                return await self._execute(attached, argv, env, cwd)
            case {"do": "stop", "grace_s": float(grace_s) | int(grace_s)}:
                await self._stop(grace_s)
                return None
            case _:
                raise FastpathError("request", "is none that this version knows")

    async def _execute(
        self, attached: Attached, argv: list[str], env: dict[str, str], cwd: str
    ) -> control.Message | None:
        """Run another process's command; None: the microVM has ended before it."""
        try:
            return {"status": await attached.run(argv, env, cwd)}
        except OSError as error:
            raise FastpathError("output", error.strerror or "fails") from error
        except GuestGoneError:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_S):
                    await self._over.wait()
                return None
            raise

    def _ztunnel_config(self) -> Config:
        """One sandbox that reaches what we do, but what is denied by default."""
        options = self._options
        egress = Egress(allow=(*EVERYWHERE, *options.allow))
        return for_sandbox(
            name=SANDBOX,
            socket=self._vsock,
            cid=GUEST_CID,
            addresses=pod_ips(),
            uds_path=self._uds_path,
            key_file=self._key_file,
            publish=options.publish,
            egress=None if options.policy else egress,
            policy=options.policy,
            access_log=options.access_log or Path(os.devnull),
        )

    def _on_signal(self, signo: signal.Signals) -> None:
        if self._attached is not None and self._attached.runs:
            self._attached.signal(signo)
        elif self._ended_by is None and signo in ENDING:
            self._ended_by = signo
            self._main.cancel()
