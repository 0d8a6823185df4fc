"""Another node's ztunnel, as far as a comparison needs one: a gate for HBONE tunnels.

By the port of a CONNECT it answers itself (7 echo, 9 discard, 19 chargen), or dials the
server. Python is asked about each CONNECT. Serves until SIGTERM.

    python -m fastpath.commands.compare.peer ADDRESS SERVER CA READY_FD

CA is the directory of the embedded CA (docs/certificates.md), made here if it is not
there. Needs the extra `mesh`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.commands.compare.site import HTTP_PORT, SERVER_PORT
from fastpath.identity import Identity
from fastpath.mesh.authority import Authority
from vhost_user.engine import Chargen, Dial, Discard, Echo, Engine, EventKind, Reset
from vhost_user.hbone import Gate, Tls

if TYPE_CHECKING:
    from vhost_user.engine import Event, Target

IDENTITY: Final = Identity("cluster.local", "compare", "peer")
PORT: Final = 15008
LIFE: Final = timedelta(days=1)


def certificates(engine: Engine, directory: Path) -> Tls:
    """Have the CA make ours."""
    now = datetime.now(UTC)
    authority = Authority.open(directory, IDENTITY.trust_domain, now)
    ours = authority.workload(IDENTITY, LIFE, now)
    return Tls(engine, chain=ours.chain_pem, key=ours.key_pem, roots=ours.roots_pem)


def open_gate(engine: Engine, listener: socket.socket, server: str, tls: Tls) -> Gate:
    """Take tunnels, and answer each CONNECT by its port."""
    does: dict[int, Target] = {
        7: Echo(),
        9: Discard(),
        19: Chargen(),
        SERVER_PORT: Dial((server, SERVER_PORT)),
        HTTP_PORT: Dial((server, HTTP_PORT)),
    }

    def on_event(event: Event) -> None:
        if event.kind is EventKind.REQUEST and (said := gate.request(event.conn)):
            port = int(said.authority.rpartition(":")[2])
            engine.answer(event.conn, does.get(port, Reset()))

    gate = Gate(engine, listener, tls, IDENTITY.trust_domain, on_event=on_event)
    return gate


async def serve(address: str, server: str, directory: Path, ready_fd: int) -> None:
    """Listen, say so with a line on `ready_fd`, and serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    listener = socket.create_server((address, PORT), backlog=1024)
    async with Engine() as engine:
        tls = certificates(engine, directory)
        open_gate(engine, listener, server, tls)
        os.write(ready_fd, b"\n")
        os.close(ready_fd)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
