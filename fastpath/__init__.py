"""A shared-memory fast path between Kata-like microVMs and a service mesh."""

from __future__ import annotations
