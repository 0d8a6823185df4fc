"""Before anything long: does each path really go where its name says?

A comparison of the wrong things looks just like one of the right things. So a
connection to who answers and one through it go over each path first. Then ztunnel's
access log must show both with the sandbox's identity, and the tunnel's packet
counter must have moved for the path that has a tunnel, and not for the others. Where
connections are handed on, nobody but the other proxy has the first one's address.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from fastpath.commands.compare import sidecar
from fastpath.commands.compare.measure import ECHO_PORT
from fastpath.commands.compare.paths import PATHS
from fastpath.commands.compare.scenario import IDENTITY
from fastpath.commands.compare.site import SERVER_PORT
from fastpath.datapath import catalogue
from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fastpath.commands.compare.measure import Bench
    from fastpath.commands.compare.site import Site

ROUND_TRIPS: Final = 50
"""On each connection; the probe's warm-up comes on top."""
CONNECTIONS: Final = 2
LOG_TIMEOUT_S: Final = 5.0


async def verify(bench: Bench, path: str, site: Site, access_log: Path) -> str:
    """Send two connections over `path` and look where they went.

    Returns:
        One sentence for the report.

    Raises:
        FastpathError: they went elsewhere, or as somebody else.
    """
    guest = bench.ways[path].guest if PATHS[path].image else None
    before = await sidecar.caught(guest) if guest else 0
    known = len(_connections(access_log))
    packets = site.tunnel_packets()
    logged = bench.ways[path].logged
    wanted: tuple[str, ...] = ()
    if logged:
        wanted = (f"{logged[0]}:{ECHO_PORT}", f"{logged[1]}:{SERVER_PORT}")
    await bench.near(path, ECHO_PORT, "rtt", str(ROUND_TRIPS), "1")
    await bench.through(path, "rtt", str(ROUND_TRIPS), "1")
    lines = await _new_connections(access_log, known, len(wanted))
    packets = site.tunnel_packets() - packets
    judge(path, lines, wanted, packets)
    if guest:
        caught = await sidecar.caught(guest) - before
        if caught != CONNECTIONS:
            why = f"{CONNECTIONS} connections, but the guest's rules caught {caught}"
            raise FastpathError(f"self check of path {path}", why)
        return f"{path}: {caught} connections, both led to the sidecar in the guest"
    if not logged:
        return f"{path}: two connections, neither in ztunnel's access log"
    return (
        f"{path}: {len(lines)} connections, both in ztunnel's access log as "
        f"{IDENTITY}; {packets} packets took the tunnel"
    )


def judge(path: str, lines: Sequence[str], wanted: Sequence[str], packets: int) -> None:
    """Decide whether `path` is what it is called.

    Args:
        path: its name.
        lines: the access log's, for the connections that were made.
        wanted: their destinations.
        packets: sent into the tunnel meanwhile.

    Raises:
        FastpathError: it is not, and why.
    """
    what = f"self check of path {path}"
    for address in wanted:
        # In a tunnel dst.addr is where that goes.
        forms = (f"dst.addr={address} ", f"dst.hbone_addr={address} ")
        seen = sum(any(form in line for form in forms) for line in lines)
        if seen != 1:
            raise FastpathError(
                what, f"one connection to {address}, but ztunnel saw {seen}"
            )
    if not wanted and lines:
        raise FastpathError(what, "ztunnel saw a connection, and there is no mesh")
    for line in lines:
        if f'src.identity="{IDENTITY}"' not in line:
            found = re.search(r'src\.identity="([^"]*)"', line)
            raise FastpathError(
                what,
                f"ztunnel took the sandbox for {found[1] if found else 'nobody'}",
            )
    least = _least_packets(path, len(wanted))
    if not least and packets:
        raise FastpathError(what, f"{packets} packets took the tunnel")
    if packets < least:
        raise FastpathError(
            what,
            f"{ROUND_TRIPS * len(wanted)} round trips, but {packets} packets took "
            "the tunnel",
        )


def _least_packets(path: str, connections: int) -> int:
    """How many take the tunnel at least, if the path has one."""
    declared = PATHS[path].standard and catalogue.declare(path)
    if not declared or not declared.tunnel:
        return 0
    return connections * (ROUND_TRIPS if declared.every_packet else 1)


async def _new_connections(log: Path, known: int, count: int) -> list[str]:
    """Wait until the log, which is written in batches, has `count` new lines."""
    deadline = asyncio.get_running_loop().time() + LOG_TIMEOUT_S
    while asyncio.get_running_loop().time() < deadline:
        lines = _connections(log)[known:]
        if len(lines) >= count:
            return lines
        await asyncio.sleep(0.1)
    return _connections(log)[known:]


def _connections(log: Path) -> list[str]:
    if not log.exists():
        return []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if "\taccess\t" in line]
