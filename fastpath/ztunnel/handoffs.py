"""Hand-offs to other proxies: what the configuration says of them, and their dials.

    unix      a stream unix socket, a PROXY protocol v2 header first
    socks5    SOCKS5, in the pod's network namespace if the sandbox has one
    inpod     connections in the pod's namespace, where a ztunnel takes them: `inpod.py`

What a sandbox may reach its policy has decided before; the other proxy is told of the
destination that the program asked for, and decides the rest. The engine says and hears
it all (vhost_user/native/side/handoff.c).

Spec: docs/handoffs.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhost_user.engine import Dial, Socks5Proxy, UnixProxy
from vhost_user.sockets import MAX_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastpath.ztunnel.model import Sandbox, Workload
    from vhost_user.decode import KeyPath
    from vhost_user.engine import Engine, SocketAddress


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a sandbox's connections go in place of their destinations."""

    name: str
    """For the log."""
    handoff: int
    """`Dial.handoff` on the sandbox's engine; 0: it is not told of destinations."""
    in_netns: bool
    """Whether it is in the pod's network namespace, if there is one."""

    def dial(self, address: SocketAddress, netns: int) -> Dial:
        """How the engine hands a connection over."""
        return Dial(address, netns if self.in_netns else 0, self.handoff)


def problems(sandbox: Sandbox, here: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with a sandbox's hand-off.

    Args:
        sandbox: one of the configuration.
        here: the sandbox's key.
    """
    handoff, where = sandbox.handoff, (*here, "handoff")
    if handoff is None:
        return
    if handoff.unix and (handoff.socks5 or handoff.inpod):
        yield where, "names two proxies, by unix and another; leave one of them out"
    elif not (handoff.unix or handoff.socks5 or handoff.inpod):
        yield where, "names no proxy: unix, socks5 or inpod"
    for key, path in (("unix", handoff.unix), ("inpod", handoff.inpod)):
        if path and len(os.fsencode(path)) > MAX_PATH:
            why = f"is longer than the {MAX_PATH} bytes that a unix socket takes"
            yield (*where, key), why
    if handoff.inpod and not sandbox.netns:
        yield (*where, "inpod"), "is for a pod's network namespace: add netns"
    if handoff.socks5 and handoff.socks5.port == 0:
        yield (*where, "socks5"), f"{handoff.socks5}: port 0 is none"


def join(sandbox: Sandbox, workload: Workload, engine: Engine) -> Proxy | None:
    """Have a sandbox's engine hand its connections over; None: it does not.

    Args:
        sandbox: checked.
        workload: the same one; who it is.
        engine: its engine.
    """
    handoff = sandbox.handoff
    if handoff and handoff.unix:
        proxy = UnixProxy(
            str(handoff.unix), workload.workload_ips, str(workload.identity)
        )
        return Proxy(f"{handoff.unix}", engine.add_handoff(proxy).id, in_netns=False)
    if handoff and handoff.socks5:
        at = handoff.socks5
        there = Socks5Proxy((str(at.host), at.port))
        return Proxy(f"socks5 {at}", engine.add_handoff(there).id, in_netns=True)
    if handoff:  # its rules are there already
        return Proxy(f"the ztunnel in {sandbox.netns}", 0, in_netns=True)
    return None
