"""The virtio-vsock device: control side, hybrid unix socket, console script."""

from __future__ import annotations
