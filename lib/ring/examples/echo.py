"""An echo server for hand-off `ring`: python echo.py PATH (docs/ring.md)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from fastpath.handoff.ring import Hello, Ring, listen, serve


async def echo(ring: Ring, hello: Hello) -> None:
    """Give back what comes, until it ends."""
    host, port = hello.destination or ("?", 0)
    print(f"{host}:{port} for {hello.identity}", flush=True)  # noqa: T201
    while data := await ring.read():
        await ring.write(data)


async def main(path: Path) -> None:
    """Serve until interrupted."""
    with listen(path) as listener:
        await serve(listener, echo)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
