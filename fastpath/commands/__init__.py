"""What `fastpath` does: one module or package a command, and cli with their options."""

from __future__ import annotations
