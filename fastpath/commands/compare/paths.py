"""The paths that can be compared, by name.

    tsi                  the fast path: ztunnel is its end
    tsi+HANDOFF          the same, and then another proxy (docs/handoffs.md)
    vsock                AF_VSOCK as it is, for programs that know it
    inpod-l3forwarding   the standard path of today, and each other one that
                         `fastpath.datapath.catalogue` has

A name says what is built (`site`, `handoffs`) and what the report says of it without
measuring (`facts`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.commands.compare import facts
from fastpath.datapath import catalogue
from fastpath.errors import FastpathError
from fastpath.report.figures import FAST_PATH, HEADLINE
from fastpath.report.model import HANDED_ON

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastpath.report.model import PathFacts


class Handoff(enum.Enum):
    """Who takes a sandbox's connections; the value is the other end's word for it."""

    POD = "plain"
    INPOD = "redirect"
    SOCKS5 = "socks5"
    UNIX = "unix"
    RING = "ring"
    EMBEDDED = "hbone"
    """Nobody: ztunnel is the mesh's endpoint, and another node's takes its tunnels."""

    @property
    def in_pod(self) -> bool:
        """Whether it takes a network namespace of the pod's."""
        return self in {Handoff.POD, Handoff.INPOD, Handoff.SOCKS5}


class Vsock(enum.Enum):
    """Whose device a program's own AF_VSOCK sockets go by."""

    OURS = "vhost-user-vsock"
    """That of the fast path, beside it."""
    RUST_VMM = "vhost-device-vsock"
    """rust-vmm's back-end."""


@dataclass(frozen=True, slots=True)
class Path:
    """A path that can be asked for."""

    name: str
    facts: PathFacts
    handoff: Handoff | None = None
    vsock: Vsock | None = None

    @property
    def standard(self) -> bool:
        """Whether it is one of those that the fast path is compared with."""
        return not self.by_tsi and self.vsock is None

    @property
    def image(self) -> str:
        """The guest's, if it takes one of its own; empty: any."""
        return catalogue.declare(self.name).image if self.standard else ""

    @property
    def by_tsi(self) -> bool:
        """Whether the program's TCP goes by TSI."""
        return self.handoff is not None or self.name == FAST_PATH

    @property
    def own_vm(self) -> bool:
        """Whether it takes a microVM of its own; the others share one."""
        return self.handoff is not None or self.vsock is Vsock.RUST_VMM

    @property
    def namespaces(self) -> bool:
        """Whether it takes network namespaces, and so the right to make them."""
        return self.standard or (self.handoff is not None and self.handoff.in_pod)


RAW: Final = "vsock"
"""The path of programs that know AF_VSOCK: it goes by any back-end."""

PATHS: Final = {
    path.name: path
    for path in (
        Path(FAST_PATH, facts.TSI),
        *(Path(name, facts.STANDARD[name]) for name in catalogue.NAMES),
        Path(RAW, facts.VSOCK, vsock=Vsock.OURS),
        Path("vsock-rust-vmm", facts.VSOCK_RUST_VMM, vsock=Vsock.RUST_VMM),
        Path(f"{HANDED_ON}pod", facts.POD, Handoff.POD),
        Path(f"{HANDED_ON}inpod", facts.INPOD, Handoff.INPOD),
        Path(f"{HANDED_ON}socks5", facts.SOCKS5, Handoff.SOCKS5),
        Path(f"{HANDED_ON}unix", facts.UNIX, Handoff.UNIX),
        Path(f"{HANDED_ON}ring", facts.RING, Handoff.RING),
        Path(f"{HANDED_ON}embedded", facts.EMBEDDED, Handoff.EMBEDDED),
    )
}
ALL: Final = "all"
DEFAULT: Final = (FAST_PATH, HEADLINE)


def parse(value: str) -> tuple[str, ...]:
    """Read names with commas between them; `ALL` is all there are.

    Raises:
        FastpathError: a name is unknown or given twice.
    """
    if value == ALL:
        return tuple(PATHS)
    names = tuple(name.strip() for name in value.split(","))
    for name in names:
        if name not in PATHS:
            raise FastpathError(
                f"--paths {value}", f"no path {name!r}; there are {', '.join(PATHS)}"
            )
    if len(set(names)) < len(names):
        raise FastpathError(f"--paths {value}", "a path is named twice")
    return names


def chosen(names: Sequence[str]) -> tuple[Path, ...]:
    """The paths of some names, in their order."""
    return tuple(PATHS[name] for name in names)
