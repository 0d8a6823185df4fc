"""What all tests share: in CI a skip is a failure.

A test that cannot run because a right or a feature is missing skips loudly on a
developer's machine; CI has them all, so there the same skip hides a fault.

`VU_PACKAGE` names the folder whose `vhost_user` is meant to be tested: a copy with
sanitizers (`make sanitize tsan`) must not silently be another one.
"""

from __future__ import annotations

import os

import pytest

import vhost_user


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


def pytest_configure():
    meant = os.environ.get("VU_PACKAGE")
    if meant and not vhost_user.__file__.startswith(f"{meant}/"):
        raise pytest.UsageError(f"tests run {vhost_user.__file__}, not {meant}")
