"""What a guest's eth0 can be attached to, as steps: a tap, a macvtap, passt.

Spec: ip-tuntap(8), ip-link(8), passt(1); QEMU, qemu-system-x86_64(1), "-netdev
vhost-user"; Linux, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.datapath import links
from fastpath.errors import FastpathError
from fastpath.image import programs
from fastpath.scratch import scratch
from fastpath.vm.spec import Tap, VhostUserNet
from vhost_user.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastpath.datapath.steps import World

_AVX2: Final = " avx2 "
_RUN: Final = Path("/run")
_START_S: Final = 30.0
_END_S: Final = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TapDevice:
    """A tap device for QEMU, with virtio-net headers."""

    at: str
    device: str

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ip-tuntap(8)."""
        del name
        return [f"ip tuntap add dev {self.device} mode tap vnet_hdr"]

    def apply(self, world: World) -> None:
        """Make it; it lives as long as its descriptor, unless it is to stay."""
        fd = links.tap(self.device)
        world.closing.callback(os.close, fd)
        world.keep(self.device, Tap(fd, ""))
        if world.stays:
            links.persist(fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Macvtap:
    """A macvtap device on top of another one, for QEMU."""

    at: str
    device: str
    lower: str
    mac: str

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One ip-link(8)."""
        del name
        head = f"ip link add link {self.lower} name {self.device} address {self.mac}"
        return [f"{head} type macvtap mode bridge"]

    def apply(self, world: World) -> None:
        """Make it, and open its file."""
        index = world.ip.macvtap(self.device, lower=self.lower, mac=self.mac)
        fd = links.open_macvtap(index)
        world.closing.callback(os.close, fd)
        world.keep(self.device, Tap(fd, ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Passt:
    """passt(1): the sandbox's TCP connections become sockets of this namespace.

    One is started for each VMM that connects, and ends with it. Where it is to stay,
    it listens in /run itself, until `end`.
    """

    at: str
    device: str

    def commands(self, name: Callable[[str], str]) -> list[str]:
        """One passt(1)."""
        del name
        return [" ".join(["passt", *self._listening()])]

    def apply(self, world: World) -> None:
        """Start it, or listen for who wants it started."""
        if world.stays:
            _run(self._listening())
            return
        options = _OPTIONS if world.as_frames else ("--vhost-user", *_OPTIONS)
        folder = world.closing.enter_context(scratch())
        starter = world.closing.enter_context(_Starter(folder, options, world.pids))
        world.keep(self.device, VhostUserNet(starter.path, ""))

    def end(self) -> None:
        """End the one that stayed; nothing if there is none."""
        with suppress(OSError, ValueError):
            pid = int(self._file("pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if str(self._file("sock")).encode() in words:  # and not another's by now
                os.kill(pid, signal.SIGTERM)
        for kind in ("pid", "sock", "sock.repair"):
            self._file(kind).unlink(missing_ok=True)

    def _listening(self) -> list[str]:
        paths = ["--socket-path", self._file("sock"), "--pid", self._file("pid")]
        return ["--vhost-user", *_OPTIONS, *map(str, paths)]

    def _file(self, kind: str) -> Path:
        return _RUN / f"fastpath-{self.device}.{kind}"


class _Starter(Closing):
    """Listens at a unix socket, and starts a passt for each client, here.

    It is the client that a passt lives with: so nothing is left of one, however we
    end. Its namespace is that of the thread that makes this.

    Args:
        folder: for the socket.
        options: of passt.
        pids: gets the process id of the last one.
    """

    def __init__(
        self, folder: Path, options: Sequence[str], pids: dict[str, int]
    ) -> None:
        self.path = folder / "passt.sock"
        self._options = options
        self._pids = pids
        self._ends: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more; wait for those whose clients are gone."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for pidfd in self._ends:
            if not select.select([pidfd], [], [], _END_S)[0]:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self._ends.clear()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                try:
                    self._start(client.fileno())
                except (FastpathError, OSError, subprocess.SubprocessError) as exc:
                    log.error("%s", exc)  # noqa: TRY400 - it says all

    def _start(self, fd: int) -> None:
        pid_file = self.path.with_suffix(".pid")
        own = ["--fd", str(fd), "--pid", str(pid_file)]
        _run([*self._options, *own], pass_fds=[fd])
        pid = int(pid_file.read_text())
        self._ends.append(os.pidfd_open(pid))
        self._pids["passt"] = pid


_OPTIONS: Final = ("--quiet", "--ipv4-only", "--no-map-gw", "--dns", "none")
"""All of TCP goes where the guest says, that to the gateway, too."""


def passt_program() -> Path:
    """What starts passt: from Debian sid, downloaded the first time.

    Raises:
        FastpathError: it can't be had.
    """
    avx2 = _AVX2 in Path("/proc/cpuinfo").read_text()
    return programs.unpack(programs.PASST if avx2 else programs.PASST_PLAIN).start


def _run(options: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
    """Start passt, which goes into the background once it works.

    Raises:
        FastpathError: it doesn't.
    """
    done = subprocess.run(
        [str(passt_program()), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_START_S,
        pass_fds=pass_fds,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise FastpathError(
            "passt does not start",
            said[-1] if said else f"exit status {done.returncode}",
            "fastpath doctor says whether users may make user namespaces",
        )
