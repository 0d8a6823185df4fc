"""What all tests share: in CI a skip is a failure.

A test that cannot run because a right or a feature is missing skips loudly on a
developer's machine; CI has them all, so there the same skip hides a fault.
"""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
