"""Hand-off `pod`: sandboxes whose connections are made in their pods' namespaces.

    Pods          all namespaces of the process; several sandboxes may share one
      Pod         a sandbox in its namespace: dials, listeners, UDP and DNS

What the pod's IP is, the configuration says; who asks, its socket. So a sandbox is in
its namespace by what the host says, and sees of it what its policy allows.

A namespace whose path is gone, or names another one, is over (its pod is): that is
looked for every `LOOK_S`, since neither a bind mount nor a process under /proc tells.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath import resolvconf
from fastpath.handoff.namespace import NamespaceError, PodNamespace
from fastpath.ztunnel.inpod import Inpod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastpath.ztunnel.config import MakeError
    from fastpath.ztunnel.model import Config, Sandbox
    from vhost_user.decode import KeyPath
    from vhost_user.engine import Engine, Event, NetnsHandle
    from vhost_user.schema import IpAddress

LOOK_S: Final = 1.0
KEPT: Final = 32
"""Sockets of each IP version that a sandbox's engine has before they are needed."""
LEAST_KEPT: Final = 2
SHARE: Final = 16
"""Of a version at most one in so many of the descriptors that a sandbox may have."""
NAMED: Final = (Path("/run/netns"), Path("/var/run/netns"))
"""Where the namespaces are that have names."""
ETC: Final = Path("/etc/netns")
"""Where a named one's configuration is (ip-netns(8))."""

log = logging.getLogger(__name__)


class Pod:
    """A sandbox in its namespace.

    Args:
        name: the sandbox's.
        namespace: its pod's.
        ips: the pod's.
        etc: see `ETC`.
    """

    def __init__(
        self,
        name: str,
        namespace: PodNamespace,
        ips: Iterable[IpAddress],
        *,
        etc: Path = ETC,
    ) -> None:
        self.name = name
        self.namespace = namespace
        self._ips = tuple(ips)
        self._resolv_conf: Path | None = None
        if namespace.path.parent in NAMED:
            self._resolv_conf = etc / namespace.path.name / "resolv.conf"
        self._handle: NetnsHandle | None = None
        self._id = 0
        self.gone = False
        """Its namespace is."""

    @property
    def netns(self) -> int:
        """What `Dial.netns` is; one that is gone refuses."""
        return self._id

    def join(self, engine: Engine, keep: int = KEPT) -> None:
        """Have the sandbox's engine dial in the namespace.

        Args:
            engine: the sandbox's.
            keep: sockets of each IP version that it has before they are needed.

        Raises:
            OSError: it can't be.
        """
        channel = self.namespace.channel()
        try:
            self._handle = engine.add_netns(channel, self._ips, keep=keep)
        finally:
            channel.close()  # if it was not taken over
        self._id = self._handle.id
        self._handle.hear(self._suspect)
        self.namespace.on_restart(self._renew)

    def make(self, family: int, kind: int) -> socket.socket:
        """Make a socket there, as yet bound to nothing.

        Raises:
            OSError: there is none to be had.
        """
        if self.gone:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        return self.namespace.make(family, kind)

    def client(self, family: int, kind: int) -> socket.socket:
        """Make a socket there whose peers see the pod's IP.

        Raises:
            OSError: there is none to be had, or no such IP.
        """
        version = 6 if family == socket.AF_INET6 else 4
        ip = next((ip for ip in self._ips if ip.version == version), None)
        if ip is None:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        sock = self.make(family, kind)
        try:
            sock.bind((str(ip), 0))
        except OSError:
            sock.close()
            raise
        return sock

    def owns(self, address: IpAddress) -> bool:
        """Whether an address is the namespace's own; if nobody can tell, it is.

        As with ours, the kernel is asked: only to those can a socket be bound.
        """
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        try:
            probe = self.make(family, socket.SOCK_DGRAM)
        except OSError:
            return True
        with probe:
            try:
                probe.bind((str(address), 0))
            except OSError:
                return False
        return True

    def nameservers(self) -> tuple[str, ...]:
        """Those of the namespace's own resolv.conf, if it has one."""
        if self._resolv_conf is None:
            return ()
        return resolvconf.read(self._resolv_conf).nameservers

    def leave(self) -> None:
        """Dial there no more."""
        self.gone = True
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def _suspect(self, event: Event) -> None:
        """The engine got nothing good from the process."""
        gone = event.error == errno.ECONNRESET
        self.namespace.suspect("it has gone" if gone else "it says nonsense")

    def _renew(self) -> None:
        if self._handle is None:
            return
        try:
            with self.namespace.channel() as channel:
                self._handle.renew(channel)
        except OSError as error:  # it is lost again; the next one comes
            log.warning("%s: %s: %s", self.name, self.namespace, error)


class Pods:
    """All of them.

    Args:
        config: checked.
        error: makes the errors.
        etc: see `ETC`.
    """

    def __init__(self, config: Config, error: MakeError, *, etc: Path = ETC) -> None:
        self._config = config
        self._error = error
        self._etc = etc
        self._namespaces: dict[Path, PodNamespace] = {}
        self._pods: dict[str, Pod] = {}
        self._inpod = Inpod(config, error)
        self._timer: asyncio.TimerHandle | None = None
        self._on_change: Callable[[str], None]

    async def start(self) -> None:
        """Enter all namespaces, at once, and tell ztunnels of those that they serve.

        Raises:
            FastpathError: one can't be entered, or a ztunnel not be told; `close`
                leaves the others.
        """
        keys: dict[Path, KeyPath] = {}
        for index, sandbox in enumerate(self._config.fastpath.sandboxes):
            path = sandbox.netns
            if path is None:
                continue
            key = keys.setdefault(path, ("fastpath", "sandboxes", index, "netns"))
            try:
                self._open(sandbox, path)
            except NamespaceError as error:
                raise self._error(key, error.why, error.hint) from error
        starts = [namespace.start() for namespace in self._namespaces.values()]
        results = await asyncio.gather(*starts, return_exceptions=True)
        for path, result in zip(self._namespaces, results, strict=True):
            if isinstance(result, NamespaceError):
                raise self._error(keys[path], result.why, result.hint) from result
            if isinstance(result, BaseException):
                raise result
        await self._inpod.start(self._namespaces)

    def join(self, sandbox: Sandbox, engine: Engine) -> Pod | None:
        """Have a sandbox's engine dial in its namespace; None: that is our own.

        Raises:
            OSError: it can't be.
        """
        pod = self._pods.get(sandbox.name)
        if pod is not None:
            pod.join(engine, kept(len(self._config.fastpath.sandboxes)))
        return pod

    def watch(self, on_change: Callable[[str], None]) -> None:
        """Look for namespaces that go away, or have another process.

        Args:
            on_change: called with the name of each sandbox in one, in the event loop:
                what it listens on is to be looked at.
        """
        self._on_change = on_change
        for pod in self._pods.values():
            change = functools.partial(on_change, pod.name)
            pod.namespace.on_restart(change)
        self._look_later()

    def _look_later(self) -> None:
        if self._namespaces:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOOK_S, self._look)

    def close(self) -> None:
        """End all processes in namespaces; again: nothing."""
        if self._timer is not None:
            self._timer.cancel()
        self._inpod.close()
        for namespace in self._namespaces.values():
            namespace.close()
        self._namespaces.clear()

    def _open(self, sandbox: Sandbox, path: Path) -> None:
        if path not in self._namespaces:
            self._namespaces[path] = PodNamespace(path)
        ips = self._config.workload(sandbox.workload).workload_ips
        namespace = self._namespaces[path]
        self._pods[sandbox.name] = Pod(sandbox.name, namespace, ips, etc=self._etc)

    def _look(self) -> None:
        for path in [each.path for each in self._namespaces.values() if each.gone]:
            self._leave(path)
        self._timer = None
        self._look_later()

    def _leave(self, path: Path) -> None:
        namespace = self._namespaces.pop(path)
        pods = [pod for pod in self._pods.values() if pod.namespace is namespace]
        names = ", ".join(pod.name for pod in pods)
        log.warning(
            "%s is gone: connections of %s end, and no more are made", path, names
        )
        for pod in pods:
            pod.leave()
            self._inpod.leave(pod.name)
            self._on_change(pod.name)
        namespace.close()


def kept(sandboxes: int) -> int:
    """How many sockets of a version each of some sandboxes keeps: `KEPT`, or fewer."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return KEPT
    return max(LEAST_KEPT, min(KEPT, limit // (sandboxes + 1) // SHARE))
