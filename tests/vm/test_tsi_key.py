"""A guest whose key isn't the sandbox's: it is said, and nothing runs."""

from __future__ import annotations

import pytest

from fastpath.errors import FastpathError
from tests.vm.world import ServiceWorld, open_world

pytestmark = pytest.mark.vm


class World(ServiceWorld):
    """Of another sandbox's key."""

    key = bytes(16)


@pytest.fixture(scope="module")
def world(base_image, accelerator, namespace, form):
    append = f"tsi={form}"
    with open_world(
        base_image, accelerator, {}, namespace, World, append=append
    ) as there:
        yield there


def test_a_wrong_key_is_said_in_a_line_and_nothing_runs(world):
    with pytest.raises(FastpathError) as refused:
        world.run("true")
    assert "the host refuses: " in str(refused.value)
    assert "not this sandbox's key" in str(refused.value)
    assert world.console().count("not this sandbox's key") == 1
    assert world.run("true", tsi=False) == (0, "")
