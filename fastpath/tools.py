"""Programs of the host, found where a user's PATH does not lead.

Debian keeps iptables and its like in /usr/sbin, which is not in the PATH of
ordinary users, who may run them all the same in a namespace of their own.
"""

from __future__ import annotations

import os
import shutil
from typing import Final

SYSTEM: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find(name: str) -> str | None:
    """Return the path of program `name`, as which(1) with root's PATH; None: none."""
    places = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(name, path=os.pathsep.join([*places, *SYSTEM]))


def path_of(name: str) -> str:
    """The same, but `name` itself where there is none: starting it says so."""
    return find(name) or name
