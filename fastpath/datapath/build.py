"""Builds a path that is declared as data: one small engine for all of them.

    with Built(declaration) as path:
        path.netns["ztunnel"].run(...)

A namespace a role, then the steps in their order, each in its own namespace. What
fails half-way takes down what was there. Namespaces without names go with the process;
those with names (`up`) stay until `down`.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from fastpath import tools
from fastpath.datapath.attach import Passt
from fastpath.datapath.links import Links
from fastpath.datapath.netns import Namespace
from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from fastpath.datapath.declared import Datapath
    from fastpath.datapath.steps import Step
    from fastpath.vm.spec import Nic

NAMED: Final = Path("/run/netns")
"""Where ip-netns(8) keeps those with names."""
PREFIX: Final = "fastpath-"
_TIMEOUT_S: Final = 30.0
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Built:
    """A path, as a context manager; its namespaces have no names.

    Leaving it, or the end of the process by any means, leaves nothing behind.

    Args:
        path: what to build.
        stand_in: what is attached isn't a VM (`standin.Guest`).

    Raises:
        FastpathError: a right, a program or a kernel feature is missing.
    """

    nic: Nic
    """Where the sandbox is attached."""
    pids: Mapping[str, int]
    """Processes that carry its packets, by name: as they are now."""
    netns: Mapping[str, Namespace]
    """By role."""

    def __init__(self, path: Datapath, *, stand_in: bool = False) -> None:
        self.path = path
        self._stand_in = stand_in
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.netns = {
                role: stack.enter_context(Namespace()) for role in self.path.roles
            }
            kept = apply(
                self.path.steps,
                self.netns,
                stack,
                what=self.path.name,
                as_frames=self._stand_in,
            )
            sandbox = self.path.sandbox
            self.nic = replace(kept.nics[sandbox.device], mac=sandbox.mac)
            self.pids = kept.pids
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stack.close()

    def tunnel_packets(self) -> int:
        """Packets that the node sent into the tunnel so far, ARP's among them."""
        if not self.path.tunnel:
            return 0
        return self.netns["node"].run(_sent, self.path.tunnel)


@dataclass(slots=True)
class _Kept:
    """What steps leave."""

    nics: dict[str, Nic] = field(default_factory=dict)
    """What sandboxes can be attached to, by name; without an address."""
    pids: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _World:
    """What steps ask for."""

    ip: Links
    namespaces: Mapping[str, Namespace]
    closing: ExitStack
    stays: bool
    as_frames: bool
    kept: _Kept

    def netns(self, role: str) -> int:
        """As `steps.World`."""
        return self.namespaces[role].fileno()

    @property
    def pids(self) -> dict[str, int]:
        """As `steps.World`."""
        return self.kept.pids

    def keep(self, device: str, nic: Nic) -> None:
        """As `steps.World`."""
        self.kept.nics[device] = nic


def apply(
    steps: Iterable[Step],
    namespaces: Mapping[str, Namespace],
    stack: ExitStack,
    *,
    what: str,
    stays: bool = False,
    as_frames: bool = False,
) -> _Kept:
    """Do steps in their order, each in its namespace.

    Args:
        steps: them.
        namespaces: by role.
        stack: lets go of what sandboxes are attached to.
        what: whose steps these are, for errors.
        stays: what is made outlives this process.
        as_frames: sandboxes are stand-ins, which take Ethernet frames.

    Returns:
        What sandboxes can be attached to, and what carries packets.

    Raises:
        FastpathError: a step cannot be done, and which.
    """
    kept = _Kept()

    def do(there: Iterable[Step]) -> None:
        with Links() as ip:
            world = _World(ip, namespaces, stack, stays, as_frames, kept)
            for step in there:
                try:
                    step.apply(world)
                except OSError as exc:
                    command = step.commands(lambda role: role)[0]
                    raise FastpathError(
                        f"path {what}, in {step.at}: {command}", f"{exc.strerror}"
                    ) from exc

    for role, there in itertools.groupby(steps, key=lambda step: step.at):
        namespaces[role].run(do, list(there))
    return kept


def names(path: Datapath) -> dict[str, str]:
    """The names of a path's namespaces while it is `up`, by role."""
    return {role: f"{PREFIX}{path.name}-{role}" for role in path.roles}


def up(path: Datapath) -> None:
    """Build a path in namespaces with names; it stays when this process ends.

    Raises:
        FastpathError: it is there already, or can't be built; nothing of it is left.
    """
    own = names(path)
    if there := _there(own.values()):
        raise FastpathError(
            f"path {path.name}",
            f"{', '.join(there)} is there already",
            f"fastpath path down {path.name}",
        )
    with ExitStack() as undo, ExitStack() as stack:
        namespaces = {}
        undo.callback(_end_programs, path)
        for role, name in own.items():
            undo.callback(_forget, name)
            _ip_netns("add", name)
            namespaces[role] = stack.enter_context(Namespace.at(NAMED / name))
        apply(path.steps, namespaces, stack, what=path.name, stays=True)
        undo.pop_all()


def down(path: Datapath) -> list[str]:
    """Take down what `up` made; return the names of its namespaces.

    Raises:
        FastpathError: the right is missing.
    """
    there = _there(names(path).values())
    if there:
        _end_programs(path)
    for name in there:
        _ip_netns("delete", name)
    return there


def _there(wanted: Iterable[str]) -> list[str]:
    return [name for name in wanted if (NAMED / name).exists()]


def _end_programs(path: Datapath) -> None:
    for step in path.steps:
        if isinstance(step, Passt):
            step.end()


def _forget(name: str) -> None:
    if (NAMED / name).exists():
        _ip_netns("delete", name)


def _ip_netns(verb: str, name: str) -> None:
    """Have ip-netns(8) do it, to its end, however we are told to end meanwhile.

    Else it could make its file behind the back of who takes the others down.
    """
    argv = [tools.path_of("ip"), "netns", verb, name]
    with _told_later():
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    if done.returncode:
        raise FastpathError(
            f"ip netns {verb} {name}",
            " ".join(done.stderr.split()) or f"exit status {done.returncode}",
            "run as root: named network namespaces are mounts of the host's",
        )


@contextmanager
def _told_later() -> Iterator[None]:
    """Keep signals that end us until the end; in the main thread."""
    told: list[int] = []
    before = {
        each: signal.signal(each, lambda signo, _: told.append(signo))
        for each in _ENDING
    }
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if told:
            signal.raise_signal(told[0])


def _sent(device: str) -> int:
    with Links() as ip:
        return ip.sent(device)
