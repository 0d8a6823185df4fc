"""Network namespaces without names: they live as long as their descriptor.

A `Namespace` is one file descriptor. Nothing is mounted under /run/netns, so
there is nothing to tear down: the kernel drops the namespace, and with it each
device, route, rule, ipset and iptables rule, when the last descriptor and the
last process in it are gone. That holds after Ctrl-C and after SIGKILL too.

A process cannot be in two namespaces at once, but its threads can. `run`
starts a thread, moves it, and runs a function there; the caller's own thread,
and with it an asyncio loop, never moves.

`own_user_namespace` gives a user who is not root the right to do all this, in
a user and network namespace of their own.

Spec: network_namespaces(7), user_namespaces(7), setns(2), unshare(2).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, Self, TypeVar

from fastpath.errors import FastpathError
from vhost_user.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

P = ParamSpec("P")
T = TypeVar("T")

_CLONE_NEWNET: Final = 0x4000_0000
_CAP_NET_ADMIN: Final = 12
_CAP_SYS_ADMIN: Final = 21

UNSHARE: Final = ("unshare", "--user", "--map-root-user", "--net")

USER_NAMESPACE_HINT: Final = (
    "sudo sysctl -w user.max_user_namespaces=10000"
    " kernel.apparmor_restrict_unprivileged_userns=0"
)
"""Two limits; the second exists on Ubuntu 23.10 and later only."""

_PROBE_TIMEOUT_S: Final = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace(Closing):
    """A new network namespace with nothing in it but `lo`, which is down.

    Closing it, or the end of the process, drops it, unless a process that
    `command` started still runs in it.

    Raises:
        FastpathError: this process may not make network namespaces.
    """

    def __init__(self) -> None:
        try:
            self._fd = _in_thread(_new_namespace)
        except PermissionError as exc:
            raise FastpathError(
                "cannot make a network namespace",
                f"{exc.strerror}: CAP_SYS_ADMIN is missing",
                "run as root, or allow user namespaces (see: fastpath doctor)",
            ) from exc

    @classmethod
    def at(cls, path: Path) -> Self:
        """Open one that is there, by its file."""
        self = cls.__new__(cls)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def fileno(self) -> int:
        """The descriptor, for setns(2); ours to close."""
        if self._fd < 0:
            raise ValueError("namespace is closed")
        return self._fd

    @property
    def path(self) -> str:
        """A name for it that other processes of this user can open too."""
        return f"/proc/{os.getpid()}/fd/{self.fileno()}"

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread inside the namespace and wait for it.

        Sockets that it opens belong to the namespace for good, /proc/sys/net
        shows the namespace's own values, and children that it starts are born
        there. A child that asks for PR_SET_PDEATHSIG gets its signal when the
        thread ends, which is at once: start such a child with `command`.
        """

        def enter_and_call() -> T:
            _setns(self.fileno())
            return function(*args, **kwargs)

        return _in_thread(enter_and_call)

    def socket(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
        protocol: int = 0,
    ) -> socket.socket:
        """Open a socket inside; it can be used from anywhere."""
        return self.run(socket.socket, family, kind, protocol)

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv` wrapped so that it starts inside, by any means of starting it.

        nsenter(1) moves and then becomes the program: no `preexec_fn`, the same
        process id, and a death signal stays with the thread that starts it.
        """
        return ["nsenter", f"--net={self.path}", "--", *argv]

    def close(self) -> None:
        """Let go of the namespace; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def sysctl(name: str, value: int) -> None:
    """Set a net sysctl of the namespace that the calling thread is in.

    Args:
        name: without "net.", and with slashes: "ipv4/ip_forward".
        value: what to write.
    """
    Path("/proc/sys/net", name).write_text(str(value))


def own_user_namespace(argv: Sequence[str]) -> None:
    """Make sure that this process may configure networks.

    Returns at once when it may already. Otherwise it starts `argv` in its own
    place, as root of a new user and network namespace, and does not return:
    call it before threads and temporary files. The program then calls this
    again, and it returns. Files that it makes belong to the user.

    Args:
        argv: this program's own command line, as it was started: say
            `[sys.executable, *sys.orig_argv[1:]]`.

    Raises:
        FastpathError: the host does not let users make such namespaces.
    """
    if may_configure():
        return
    if reason := user_namespace_problem():
        raise FastpathError(
            "cannot make a user and network namespace", reason, USER_NAMESPACE_HINT
        )
    os.execvp("unshare", [*UNSHARE, "--", *argv])  # noqa: S606, S607


def may_configure() -> bool:
    """Whether this process may make network namespaces and configure them."""
    return _has_capability(_CAP_SYS_ADMIN) and _has_capability(_CAP_NET_ADMIN)


def user_namespace_problem() -> str | None:
    """Why this user cannot make a user and network namespace; None: they can."""
    if shutil.which(UNSHARE[0]) is None:
        return "unshare is not installed (Debian package util-linux)"
    # Only the whole of it tells: AppArmor lets the namespace be made and takes
    # its capabilities away, so that the network or the uid map fails after it.
    probe = subprocess.run(
        [*UNSHARE, "--", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PROBE_TIMEOUT_S,
        check=False,
    )
    return probe.stderr.strip() or None if probe.returncode else None


def _has_capability(number: int) -> bool:
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _in_thread(function: Callable[[], T]) -> T:
    """Call `function` in a thread of its own; its result or exception is ours."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns") as pool:
        return pool.submit(function).result()


def _new_namespace() -> int:
    _check(_libc.unshare(_CLONE_NEWNET))
    # Not /proc/self: that is the main thread, which is still where it was.
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _setns(fd: int) -> None:
    _check(_libc.setns(fd, _CLONE_NEWNET))


def _check(result: int) -> None:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
