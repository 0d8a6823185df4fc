"""The exceptions of this package, sorted by whose fault it is.

    VhostUserError
     +-- FrontendError     the VMM broke the vhost-user protocol: end the session
     |    +-- RefusedError the same, and it asked to be told (`requests.py`)
     +-- GuestError        the guest broke a virtio rule: mark the queue broken
     +-- ClientError       a client of a host unix socket broke its protocol:
     |                     close that client
     +-- StateError        our caller used an object at the wrong time: a bug here

`OSError` passes through untouched: a failing system call keeps its errno.
"""

from __future__ import annotations


class VhostUserError(Exception):
    """Base of all errors of this package."""


class FrontendError(VhostUserError):
    """The VMM sent something that the vhost-user protocol forbids."""


class GuestError(VhostUserError):
    """The guest wrote something that the virtio specification forbids."""


class ClientError(VhostUserError):
    """A host program that connected to a unix socket of ours broke its rules."""


class StateError(VhostUserError):
    """An object was used in a state that does not allow it."""


class NativeError(ImportError):
    """The C part isn't there: never built, or a library that it needs is missing."""

    def __str__(self) -> str:
        hint = "install libssl3 and libnghttp2-14, or build it again: make setup"
        return f"{super().__str__()}; hint: {hint}"
