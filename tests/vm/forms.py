"""Who has programs' sockets: the guest's kernel, or agents."""

from __future__ import annotations

import pytest

FORMS = ("module", "agent")
by_module = pytest.mark.parametrize("form", ["module"], indirect=True, scope="module")
"""For what agents can't do (docs/tsi-compat.md), in a file whose tests are for both."""
by_agents = pytest.mark.parametrize("form", ["agent"], indirect=True, scope="module")
"""For a test of agents, in a file whose tests are for both."""
