"""A path in words: a picture of its hops, and the commands that build it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from fastpath.datapath.build import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastpath.datapath.declared import Datapath


def script(path: Datapath) -> list[str]:
    """The commands that a person would type, as root, to have what `up` makes."""
    own = names(path)
    lines = [f"ip netns add {own[role]}" for role in path.roles]
    for role, there in itertools.groupby(path.steps, key=lambda step: step.at):
        lines += ["", f"# {role}"]
        for step in there:
            lines += [_inside(own[role], it) for it in step.commands(own.__getitem__)]
    if path.inside:
        lines += ["", "# in the guest"]
        lines += [it for step in path.inside for it in step.commands(own.__getitem__)]
    return lines


def text(path: Datapath) -> Iterator[str]:
    """All lines: what it is, the picture, the hops, the commands."""
    yield f"{path.name}: {path.title}"
    yield f"built as: {path.spec}"
    yield ""
    yield from path.picture.rstrip().splitlines()
    yield ""
    yield "hops:"
    for number, hop in enumerate(path.hops, start=1):
        yield f"  {number}. {hop.at:9}  {hop.device:10}  {hop.what}"
    if path.inbound:
        yield "inbound hops:"
    for number, hop in enumerate(path.inbound, start=1):
        yield f"  {number}. {hop.at:9}  {hop.device:10}  {hop.what}"
    yield ""
    yield from script(path)


def _inside(netns: str, command: str) -> str:
    program, _, rest = command.partition(" ")
    if program in {"ip", "tc"}:
        return f"{program} -n {netns} {rest}"
    return f"ip netns exec {netns} {command}"
