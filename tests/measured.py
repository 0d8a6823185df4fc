"""Parts of pages that a run measured: where they stand, and what they say of the run.

<!-- compare: written by `make compare-doc`, do not edit -->
<!-- end of compare -->
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT: Final = Path(__file__).parents[1]
WIDTH: Final = 100


def write(page: Path, part: str, body: str) -> None:
    """Put `body` into a part of a page.

    Raises:
        ValueError: the page has no such part.
    """
    text = page.read_text(encoding="utf-8")
    marks = rf"(<!-- {part}: written by [^>]*-->\n).*?(<!-- end of {part} -->\n)"
    new, found = re.subn(
        marks, lambda m: f"{m[1]}\n{body}\n{m[2]}", text, flags=re.DOTALL
    )
    if not found:
        raise ValueError(f"{page} has no part {part!r}")
    page.write_text(new, encoding="utf-8")


def wrapped(sentences: Iterable[str]) -> str:
    """Return a paragraph."""
    return "\n".join(textwrap.wrap(" ".join(sentences), WIDTH))


def setting(report: Mapping[str, Any]) -> list[str]:
    """What a comparison's figures hold for; a run on a loaded machine says so."""
    where = report["setting"]
    day = where["started"].partition("T")[0]
    warnings = (
        each for each in report["warnings"] if "too few for an interval" not in each
    )
    return [
        (
            f"{report['rounds']} rounds in turns, {day}, accelerator {report['accel']},"
            f" {where['qemu'].partition(' (')[0]}, guest Linux"
            f" {report['guest_kernel']}; {where['cpus']} CPUs of an"
            f" {where['cpu_model']} machine, Linux {where['host_kernel']}."
        ),
        *(f"Warning of that run: {each}." for each in warnings),
    ]
