"""What microVMs have left behind of a test that failed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastpath.pytest_plugin import settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from fastpath.pytest_plugin.microvm import MicroVm

LINES: Final = 30
"""Of each log, in pytest's report."""


def add(report: pytest.TestReport, vms: Sequence[MicroVm], folder: str | None) -> None:
    """Add the ends of logs to a test's report, and keep all of them in a folder.

    Args:
        report: the test's.
        vms: that there are.
        folder: where they are kept; None: nowhere.
    """
    for vm in vms:
        logs = {
            "console": vm.machine.spec.console,
            "access log": vm.folder / settings.ACCESS_LOG,
        }
        for what, log in logs.items():
            if not log.exists():
                continue
            lines = log.read_text(errors="replace").splitlines()[-LINES:]
            report.sections.append((f"{vm.name}: {what}", "\n".join(lines)))
            if folder:
                name = re.sub(r"[^\w.\[\]-]+", "_", report.nodeid)
                there = Path(folder) / name
                there.mkdir(parents=True, exist_ok=True)
                shutil.copy(log, there / f"{vm.name}-{log.name}")
