"""Hand-offs to other proxies: what the configuration says of them, and their dials.

    unix      a stream unix socket, a PROXY protocol v2 header first
    socks5    SOCKS5, in the pod's network namespace if the sandbox has one
    inpod     connections in the pod's namespace, where a ztunnel takes them: `inpod.py`
    ring      rings of shared memory to another process (docs/ring.md)

What a sandbox may reach its policy has decided before; the other proxy is told of the
destination that the program asked for, and decides the rest. The engine says and hears
it all (vhost_user/native/side/handoff.c). A process that isn't there yet, or comes
back, takes the connections from then on: they are refused meanwhile.

Spec: docs/handoffs.md.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vhost_user.engine import Dial, Ring, Socks5Proxy, UnixProxy
from vhost_user.sockets import MAX_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastpath.ztunnel.model import Sandbox, Workload
    from vhost_user.decode import KeyPath
    from vhost_user.engine import Engine, SocketAddress


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a sandbox's connections go in place of their destinations."""

    name: str
    """For the log."""
    handoff: int = 0
    """`Dial.handoff` on the sandbox's engine; 0: it is not told of destinations."""
    in_netns: bool = False
    """Whether it is in the pod's network namespace, if there is one."""
    peer: int = 0
    """`Ring.peer` on the sandbox's engine; 0: no rings lead to it."""

    def dial(self, address: SocketAddress, netns: int) -> Dial | Ring:
        """How the engine hands a connection over."""
        if self.peer:
            return Ring(self.peer, address)
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
    ways = (handoff.unix, handoff.ring, handoff.socks5 or handoff.inpod)
    if sum(way is not None for way in ways) > 1:
        yield where, "names two proxies; leave one of them out"
    elif not any(ways):
        yield where, "names no proxy: unix, socks5, inpod or ring"
    paths = {"unix": handoff.unix, "inpod": handoff.inpod, "ring": handoff.ring}
    for key, path in paths.items():
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
    handoff, who = sandbox.handoff, str(workload.identity)
    if handoff is None:
        return None
    if handoff.unix:
        proxy = UnixProxy(str(handoff.unix), workload.workload_ips, who)
        return Proxy(f"{handoff.unix}", engine.add_handoff(proxy).id)
    if handoff.ring:
        peer = engine.add_peer(
            handoff.ring,
            identity=who,
            addresses=workload.workload_ips,
            ring_bytes=handoff.ring_bytes,
        )
        _say_if_absent(sandbox.name, handoff.ring)
        return Proxy(f"{handoff.ring}", peer=peer.id)
    if handoff.socks5:
        at = handoff.socks5
        there = Socks5Proxy((str(at.host), at.port))
        return Proxy(f"socks5 {at}", engine.add_handoff(there).id, in_netns=True)
    return Proxy(f"the ztunnel in {sandbox.netns}", in_netns=True)  # by its rules


def _say_if_absent(name: str, path: Path) -> None:
    """Say that nobody can be reached at a path, and why.

    Nobody is connected to: that would be taken for a connection of the sandbox.
    """
    if path.is_socket():
        return
    log.warning(
        "%s: nobody takes its connections at %s yet (%s); they are refused until a"
        " process listens there",
        name,
        path,
        "it is no socket" if path.exists() else "there is no such file",
    )
