"""The standard paths, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastpath.datapath import (
    ambient_ebpf,
    ambient_geneve,
    geneve,
    inpod_l3forwarding,
    macvtap,
    passt,
    plain,
    sidecar,
    tunnels,
)
from fastpath.datapath.ambient_geneve import Mode
from fastpath.datapath.attach import Passt, passt_program
from fastpath.datapath.build import Built
from fastpath.datapath.steps import GeneveEnd
from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastpath.datapath.declared import Datapath

ALPHA: Final = f"{ambient_geneve.NAME}-alpha"


def _inpod(_: geneve.Kind) -> Datapath:
    return inpod_l3forwarding.declare()


def _plain(_: geneve.Kind) -> Datapath:
    return plain.declare()


def _ebpf(_: geneve.Kind) -> Datapath:
    return ambient_ebpf.declare()


def _sidecar(_: geneve.Kind) -> Datapath:
    return sidecar.declare()


def _macvtap(_: geneve.Kind) -> Datapath:
    return macvtap.declare()


def _passt(_: geneve.Kind) -> Datapath:
    return passt.declare()


def _alpha(kind: geneve.Kind) -> Datapath:
    return ambient_geneve.declare(kind, Mode.ISTIO_ALPHA, ALPHA)


def _tunnelled(kind: tunnels.Kind) -> Callable[[geneve.Kind], Datapath]:
    name = f"ambient-{kind.name}"
    return lambda _: ambient_geneve.declare(kind, name=name)


_PATHS: Final[Mapping[str, Callable[[geneve.Kind], Datapath]]] = {
    inpod_l3forwarding.NAME: _inpod,
    ambient_geneve.NAME: ambient_geneve.declare,
    ALPHA: _alpha,
    **{f"ambient-{kind.name}": _tunnelled(kind) for kind in tunnels.KINDS},
    ambient_ebpf.NAME: _ebpf,
    sidecar.NAME: _sidecar,
    plain.NAME: _plain,
    macvtap.NAME: _macvtap,
    passt.NAME: _passt,
}
NAMES: Final = tuple(_PATHS)


def declare(name: str, kind: geneve.Kind = "kernel") -> Datapath:
    """Declare a path.

    Args:
        name: one of `NAMES`.
        kind: of its Geneve tunnel, if it has one.
    """
    return _PATHS[name](kind)


def fetch(name: str) -> None:
    """Download the programs that a path is made of, if they aren't here yet.

    There may be no network any more in a namespace of a user's.

    Raises:
        FastpathError: they can't be had.
    """
    if any(isinstance(step, Passt) for step in declare(name).steps):
        passt_program()


def problem(name: str, want: geneve.Want = "auto") -> FastpathError | None:
    """Why a path can't be built here; None: it can, and was, and is gone again.

    `fetch` comes before.
    """
    try:
        with Built(possible(name, want)):
            return None
    except FastpathError as exc:
        return exc


def possible(name: str, want: geneve.Want = "auto") -> Datapath:
    """The same, with a tunnel that this kernel has.

    Raises:
        FastpathError: the kernel's is wanted and the kernel has none.
    """
    path = declare(name)
    if any(isinstance(step, GeneveEnd) for step in path.steps):
        return declare(name, geneve.choose(want))
    return path
