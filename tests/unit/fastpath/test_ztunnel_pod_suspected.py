"""A pod's process that the engine has no use for."""

from __future__ import annotations

import errno
from typing import Any, cast

import pytest

from tests.unit.fastpath.pod_fakes import FakeEngine, pod
from vhost_user.engine import Event, EventKind


@pytest.mark.parametrize(
    ("error", "why"),
    [(errno.EPROTO, "it says nonsense"), (errno.ECONNRESET, "it has gone")],
    ids=["nonsense", "gone"],
)
def test_a_process_that_the_engine_has_no_use_for_is_suspected(error, why):
    there, namespace = pod("10.0.0.5")
    engine = FakeEngine()
    there.join(cast("Any", engine))
    engine.tell(Event(EventKind.MAKER, error=error))
    assert namespace.suspected == why
