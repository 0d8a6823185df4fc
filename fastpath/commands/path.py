"""`fastpath path`: the standard paths to read, to look around in, to try.

docs/paths.md has them with what each is.
"""

# ruff: noqa: T201 - it prints

from __future__ import annotations

import json
import sys
from typing import Final

from fastpath.datapath import build, catalogue, geneve, netns, probe, show
from fastpath.errors import FastpathError

EXIT_NOT_SEEN: Final = 1


def show_all(*, as_json: bool) -> int:
    """Print the paths' names and titles; return the exit status."""
    if as_json:
        titles = {name: catalogue.declare(name).title for name in catalogue.NAMES}
        print(json.dumps(titles, indent=2))
        return 0
    width = max(map(len, catalogue.NAMES))
    for name in catalogue.NAMES:
        print(f"{name:{width}}  {catalogue.declare(name).title}")
    return 0


def show_one(name: str) -> int:
    """Print a path's picture and the commands that build it.

    Raises:
        FastpathError: there is no such path.
    """
    _check_name(name)
    print(*show.text(catalogue.declare(name)), sep="\n")
    return 0


def up(name: str, kind: geneve.Want) -> int:
    """Build a path in namespaces with names, and leave it.

    Raises:
        FastpathError: it can't be; nothing of it is left.
    """
    _check_name(name)
    _check_root(f"path up {name}")
    catalogue.fetch(name)
    path = catalogue.possible(name, kind)
    build.up(path)
    own = build.names(path)
    for role in path.roles:
        print(f"{own[role]}")
    there = own[path.sandbox.at]
    print(f"look around: ip netns exec {there} ip address")
    if path.inside:
        print("not done: what is to be done in the guest itself, as `show` has it")
    print(f"take it down: fastpath path down {name}")
    return 0


def down(name: str) -> int:
    """Take down what `up` left; again: nothing.

    Raises:
        FastpathError: there is no such path, or the right is missing.
    """
    _check_name(name)
    _check_root(f"path down {name}")
    for each in build.down(catalogue.declare(name)):
        print(f"{each} is gone")
    return 0


def check(name: str, kind: geneve.Want) -> int:
    """Send one connection over a path; say at which hop it was seen.

    Returns:
        0: it took each hop and arrived; 1: it did not.

    Raises:
        FastpathError: it can't be built here.
    """
    _check_name(name)
    catalogue.fetch(name)
    netns.own_user_namespace([sys.executable, *sys.orig_argv[1:]])
    path = catalogue.possible(name, kind)
    good = _tell(probe.check(path))
    if path.inbound:
        print("inbound, from the node to the sandbox:")
        good = _tell(probe.check_inbound(path)) and good
    return 0 if good else EXIT_NOT_SEEN


def _tell(outcome: probe.Outcome) -> bool:
    """Print what became of a connection; return whether that is as it should be."""
    for number, seen in enumerate(outcome.hops, start=1):
        hop = seen.hop
        packets = f"{seen.there} there, {seen.back} back"
        word = packets if seen.good else f"NOT as it should be: {packets}"
        print(f"{number}. {hop.at:9}  {hop.device:10}  {word:20}  {hop.what}")
    if outcome.problem:
        print(f"the connection: {outcome.problem} {outcome.arrived}".rstrip())
    else:
        print(f"the connection arrived {outcome.arrived}")
    return outcome.good


def _check_name(name: str) -> None:
    if name not in catalogue.NAMES:
        raise FastpathError(
            f"path {name}", f"unknown; there are {', '.join(catalogue.NAMES)}"
        )


def _check_root(what: str) -> None:
    if not netns.may_configure():
        raise FastpathError(
            what,
            "namespaces with names take root",
            f"sudo fastpath {what}, or, without root: fastpath path check NAME",
        )
