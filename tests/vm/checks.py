"""Checks of what Python programs can do: run in a guest, printed as checks.h does."""

from __future__ import annotations

import sys


def run(module):
    """Run what a module calls check_*, given its globals; return its exit status."""
    checks = {
        name.removeprefix("check_"): value
        for name, value in module.items()
        if name.startswith("check_")
    }
    passed = 0
    for name, check in checks.items():
        try:
            check()
        except Exception as error:
            say(f"FAIL {name}: {error!r}")
        else:
            say(f"ok {name}")
            passed += 1
    say(f"{passed}/{len(checks)}")
    return int(passed != len(checks))


def say(line):
    sys.stdout.write(line + "\n")
