"""What a guest's kernel finds wrong, from its console: every VM test asks at its end.

A report that isn't an error for its kernel, as most of lockdep's, would not be on a
console that is quiet. So guests of tests show warnings, too. FASTPATH_TEST_KERNEL has
more parameters for them: "preempt=full slub_debug=FZP kfence.sample_interval=10" has
Debian's kernels look closer.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastpath.vm.spec import VmSpec

PATIENCE_S: Final = 240
"""A guest stands still for as long on a machine that is busy, and nothing is wrong."""
PARAMETERS: Final = (
    "loglevel=5",  # pr_warn(), and what has no level
    f"rcupdate.rcu_cpu_stall_timeout={PATIENCE_S}",
    "nosoftlockup",
    *os.environ.get("FASTPATH_TEST_KERNEL", "").split(),
)
REPORT: Final = re.compile(
    r"WARNING: |\bBUG\b|INFO: |UBSAN: |ODEBUG: |Oops|Call Trace:|kernel BUG at"
    r"|general protection|refcount_t: |list_(?:add|del) corruption"
    r"|unregister_netdevice: waiting|kmemleak: \d"
)
NO_REPORT: Final = re.compile(
    r"(?:RETBleed|Spectre V2) ?: WARNING: |INFO: task .* blocked for more than"
)
"""Of the host's CPU, or how busy the machine is. A parameter for more patience with
tasks, sysctl.kernel.hung_task_timeout_secs, waits for RCU before there is an init: a
guest without a timer would stand still there instead of being booted again."""


def reports(log: str) -> list[str]:
    """Return the lines of a kernel's log that say that something is wrong."""
    return [
        line
        for line in log.splitlines()
        if REPORT.search(line) and not NO_REPORT.search(line)
    ]


@contextlib.contextmanager
def watched(spec: VmSpec) -> Iterator[VmSpec]:
    """Have a machine's kernel say what it finds wrong; it may not have, at the end.

    Args:
        spec: of a machine that starts, and is closed, inside.

    Raises:
        AssertionError: it has found something.
    """
    append = " ".join([*PARAMETERS, spec.append])
    yield replace(spec, append=append)
    text = _read(spec.console)
    found = reports(text)
    assert found == [], text[text.index(found[0]) :]


def _read(console: Path) -> str:
    """All that was said; nothing if the machine didn't come so far."""
    with contextlib.suppress(FileNotFoundError):
        return console.read_text(encoding="utf-8", errors="replace")
    return ""
