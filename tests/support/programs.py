"""Programs of other Debian suites that only tests run: `fastpath.image.programs`."""

from __future__ import annotations

import dataclasses
from typing import Final

from fastpath.image.programs import Program

QEMU_10: Final = Program(
    name="qemu-10",
    suite="bookworm-backports",
    package="qemu-system-x86",
    path="usr/bin/qemu-system-x86_64",
    arguments=("-L", "{root}/usr/share/qemu", "-L", "{root}/usr/share/seabios"),
)
"""QEMU 10.0, to which Debian 12 can be upgraded."""

QEMU_SID: Final = dataclasses.replace(QEMU_10, name="qemu-sid", suite="sid")
"""QEMU 11.1 or newer, with a device for any vhost-user back-end."""

UML: Final = Program(name="uml", suite="sid", package="libc6", path=None)
"""What the kernel of the image "uml" needs."""
