"""`vhost-user-rng`: the whole of a vhost-user device, the virtio entropy source.

    vhost-user-rng --socket PATH [--memory-files ram|any]
    qemu ... -chardev socket,id=c,path=PATH -device vhost-user-rng,chardev=c

Each chain of its one queue is room that the guest wants filled with random bytes.

Spec: VIRTIO 1.2 section 5.4 "Entropy Device".
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vhost_user import entry, logs
from vhost_user.backend import serve
from vhost_user.descriptors import MemoryFiles
from vhost_user.errors import GuestError
from vhost_user.options import MisuseError, Parser, checked, level
from vhost_user.queue import QueueDevice
from vhost_user.sockets import DEFAULT_SOCKET_MODE, Access, parse_group, parse_mode

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
    """Run the device until a signal ends it; return the exit status."""
    entry.set_up_streams()
    logs.set_up()
    return entry.guarded(PROG, lambda: _run(argv))


def parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog=PROG,
        description="vhost-user back-end for virtio-rng.",
        status="0 after SIGTERM; 2 if it could not serve",
        examples=(("one VM", f"{PROG} --socket /tmp/r.sock"),),
    )
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
    parser.add_argument(
        "--socket-mode",
        type=checked(parse_mode),
        default=DEFAULT_SOCKET_MODE,
        metavar="OCTAL",
        help="permission bits of it (0600)",
    )
    parser.add_argument(
        "--socket-group", type=checked(parse_group), metavar="GROUP", help="its group"
    )
    return parser


def _run(argv: Sequence[str] | None) -> int:
    try:
        options = parser().parse_args(argv)
    except MisuseError as error:
        return entry.complain(PROG, str(error))
    logs.show(level(options, logging.INFO))
    try:
        asyncio.run(
            serve(
                options.socket,
                RngDevice(),
                name=PROG,
                memory_files=options.memory_files,
                access=Access(options.socket_mode, options.socket_group),
            )
        )
    except OSError as error:
        return entry.complain(PROG, f"{options.socket}: {error.strerror}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
