"""What vhost_user.hbone says in Python's words of what C says in numbers."""

from __future__ import annotations

from vhost_user._native import lib
from vhost_user.hbone import Reason

STATUSES = {"400": "BAD_REQUEST", "401": "UNAUTHORIZED", "503": "UNAVAILABLE"}


def test_each_reason_of_c_has_its_name():
    prefix = "VU_REASON_"
    names = [name.removeprefix(prefix) for name in dir(lib) if name.startswith(prefix)]
    native = {
        STATUSES.get(name, name): getattr(lib, f"{prefix}{name}") for name in names
    }
    assert native == {reason.name: reason.value for reason in Reason}


def test_each_reason_but_none_has_a_text_of_its_own():
    texts = [reason.text for reason in Reason if reason is not Reason.NONE]
    assert all(texts)
    assert len(set(texts)) == len(texts)
