"""`vhost-user-rng`: the whole of a vhost-user device, the virtio entropy source.

    vhost-user-rng --socket PATH [--memory-files ram|any]
    qemu ... -chardev socket,id=c,path=PATH -device vhost-user-rng,chardev=c

Each chain of its one queue is room that the guest wants filled with random bytes.

Spec: VIRTIO 1.2 section 5.4 "Entropy Device".
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vhost_user.backend import serve
from vhost_user.descriptors import MemoryFiles
from vhost_user.errors import GuestError
from vhost_user.queue import QueueDevice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vhost_user.queue import Chain

PROG: Final = "vhost-user-rng"

MAX_BYTES: Final = 64 * 1024
"""Most bytes that one chain gets, however long it is: a device may give fewer than it
has room for, and nobody else waits long for its turn."""


class RngDevice(QueueDevice):
    """Fills buffers from the kernel's generator."""

    def process(self, queue: int, chain: Chain) -> int:  # noqa: ARG002  # the only one
        """Fill `chain` (section 5.4.6.2: at least one byte)."""
        if chain.readable or not chain.writable:
            raise GuestError("a buffer that is not for writing (section 5.4.6.1)")
        return chain.write(os.urandom(min(chain.writable, MAX_BYTES)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the device until SIGTERM or SIGINT; return the exit status."""
    parser = argparse.ArgumentParser(prog=PROG, description=RngDevice.__doc__)
    parser.add_argument(
        "--socket", type=Path, required=True, help="the VMM connects here"
    )
    parser.add_argument(
        "--memory-files",
        type=MemoryFiles,
        default=MemoryFiles.RAM,
        metavar="ram|any",
        help="guest memory may be in tmpfs, memfds and hugetlbfs, or any file (ram)",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format=f"{PROG}: %(message)s")
    try:
        asyncio.run(
            serve(
                options.socket,
                RngDevice(),
                name=PROG,
                memory_files=options.memory_files,
            )
        )
    except OSError as error:
        sys.stderr.write(f"{PROG}: error: {options.socket}: {error.strerror}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
