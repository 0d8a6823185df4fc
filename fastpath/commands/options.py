"""Options that several commands have.

Annotations for typer, which reads them when it runs.
"""

from __future__ import annotations

import math
from typing import Annotated

import typer


def seconds(value: float | None) -> float | None:
    """Refuse what no clock shows; `float` reads "nan", too."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value:g} is not a number of seconds above 0")
    return value


Accel = Annotated[str, typer.Option(help="auto, kvm or tcg.")]
Qemu = Annotated[str, typer.Option(help="The QEMU program.")]
BootTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        callback=seconds,
        help="Seconds for the guest's boot (30 under kvm, 180 under tcg).",
    ),
]
