"""Which tests a run leaves out; those are not skipped, so CI doesn't mind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def leave_out(mark: str, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the tests with `mark` out of `items`."""
    gone = [item for item in items if item.get_closest_marker(mark)]
    items[:] = [item for item in items if item not in gone]
    config.hook.pytest_deselected(items=gone)
