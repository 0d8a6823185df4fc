"""What a process has opened is told from what others close in the meantime."""

from __future__ import annotations

import os
import threading

import pytest

from tests.support import descriptors as module
from tests.support.descriptors import check_closed, descriptors


class Owner:
    """Has a descriptor for as long as it is there; itself a cycle."""

    def __init__(self) -> None:
        self.me = self
        self.fd = os.eventfd(0)

    def __del__(self) -> None:
        os.close(self.fd)


def test_what_only_garbage_holds_is_not_there():
    before = descriptors()
    owner = Owner()
    assert descriptors() - before == {(owner.fd, "anon_inode:[eventfd]")}
    del owner
    assert descriptors() == before


def test_what_is_left_open_is_found_although_another_one_is_closed(monkeypatch):
    monkeypatch.setattr(
        module, "wait_until", lambda condition, what: condition() or pytest.fail(what)
    )
    others = os.memfd_create("of another")
    before = descriptors()
    fd = os.memfd_create("mine")
    os.close(others)
    with pytest.raises(pytest.fail.Exception):
        check_closed(before)
    os.close(fd)
    check_closed(before)


def test_what_a_thread_is_about_to_close_is_waited_for():
    before = descriptors()
    fd, begun = os.memfd_create("a thread's"), threading.Event()

    def close():
        begun.wait()
        os.close(fd)

    thread = threading.Thread(target=close)
    thread.start()
    begun.set()
    check_closed(before)
    thread.join()
