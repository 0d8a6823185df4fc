"""What all tests share: in CI a skip is a failure.

A test that cannot run because a right or a feature is missing skips loudly on a
developer's machine; CI has them all, so there the same skip hides a fault.

`VU_PACKAGE` names the folder whose `vhost_user` is meant to be tested: a copy with
sanitizers (`make sanitize tsan`) must not silently be another one.
"""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import hypothesis
import pytest

import vhost_user


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


def pytest_addoption(parser):
    parser.addoption(
        "--ztunnel",
        metavar="BIN",
        type=Path,
        help="Istio's ztunnel, for the tests marked `ztunnel`, which are left out else",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--ztunnel") is None:
        gone = [item for item in items if item.get_closest_marker("ztunnel")]
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=gone)


def pytest_collection_finish():
    # what is there now stays: tests that collect garbage first look at little then
    gc.collect()
    gc.freeze()


def pytest_configure():
    # a shell's `&` has children ignore SIGINT, and theirs: some tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # hypothesis would time each example, and how they are made: no test asserts a time
    slow = (hypothesis.HealthCheck.too_slow,)
    hypothesis.settings.register_profile(
        "untimed", deadline=None, suppress_health_check=slow
    )
    hypothesis.settings.load_profile("untimed")
    meant = os.environ.get("VU_PACKAGE")
    if meant and not vhost_user.__file__.startswith(f"{meant}/"):
        raise pytest.UsageError(f"tests run {vhost_user.__file__}, not {meant}")
