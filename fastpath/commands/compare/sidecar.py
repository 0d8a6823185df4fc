"""The proxy in the guest, of the path `sidecar`: brings it there, and starts it.

It is the one of hand-offs (`proxy/`), compiled to run in any guest. It does the least
that a proxy does, so what it costs is less than what Envoy does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastpath.commands.compare.sandboxes import proxy_program
from fastpath.datapath.declared import GUEST
from fastpath.datapath.sidecar import CAUGHT, USER
from fastpath.errors import FastpathError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastpath.datapath.steps import Step
    from fastpath.vm.guest import Guest

_PROGRAM: Final = "/run/sidecar"
_NOBODY: Final = "0.0.0.0"  # noqa: S104 - it answers nobody itself, and has no service
_START: Final = f"""
cat >{_PROGRAM}
chmod 755 {_PROGRAM}
mkfifo {_PROGRAM}.ready
{_PROGRAM} 3 {_NOBODY} {_NOBODY} {_NOBODY} sidecar \
    3>{_PROGRAM}.ready </dev/null >/dev/null 2>{_PROGRAM}.log &
read -r _ <{_PROGRAM}.ready || {{ cat {_PROGRAM}.log >&2; exit 1; }}
"""
"""Its program is the input; done when it listens."""
_COUNT: Final = f"iptables -w -t nat -nvxL {CAUGHT}"


async def start(guest: Guest, inside: Sequence[Step]) -> None:
    """Do what a path does in its guest, and start the proxy there.

    Raises:
        FastpathError: the guest has no iptables, say.
    """
    words = [word for step in inside for word in step.commands(lambda role: role)]
    await _run(guest, "\n".join(words), "the sidecar's rules")
    program = proxy_program(static=True).read_bytes()
    await _run(guest, _START, "the sidecar", program)


async def caught(guest: Guest) -> int:
    """How many connections the rules have led to it so far."""
    said = await _run(guest, _COUNT, "the sidecar's rules")
    found = re.search(r"^ *([0-9]+) .* REDIRECT ", said, re.MULTILINE)
    if not found:
        raise FastpathError("the sidecar's rules", f"there is no count in {said!r}")
    return int(found[1])


async def _run(guest: Guest, script: str, what: str, stdin: bytes = b"") -> str:
    out, err = bytearray(), bytearray()
    status = await guest.run(
        ["sh", "-ec", script],
        tsi=False,
        stdin=stdin,
        stdout=out.extend,
        stderr=err.extend,
    )
    if status:
        said = err.decode(errors="replace").strip()
        raise FastpathError(
            f"{what}, in the {GUEST}",
            said or f"exit status {status}",
            f"its image has to have iptables with the match owner (user {USER}), as "
            "the image sidecar has",
        )
    return out.decode(errors="replace")
