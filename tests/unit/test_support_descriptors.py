"""Descriptors that only garbage holds are not counted."""

from __future__ import annotations

import os

from tests.support.descriptors import descriptors


class Owner:
    """Has a descriptor for as long as it is there; itself a cycle."""

    def __init__(self) -> None:
        self.me = self
        self.fd = os.eventfd(0)

    def __del__(self) -> None:
        os.close(self.fd)


def test_what_only_garbage_holds_is_not_counted():
    before = descriptors()
    owner = Owner()
    assert descriptors() == before + 1
    del owner
    assert descriptors() == before
