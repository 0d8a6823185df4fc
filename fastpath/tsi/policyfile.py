"""A sandbox's policy as a file: read, checked, and read again when it changes.

The classes here are the whole description of the format, as in `ztunnel/model.py`:
field `max_conns` is the key `maxConns`. What each key means stands in
docs/tsi-policy.md.

How a change is seen: `fastpath/watch.py`. A file with an error, or none at all, leaves
the last good policy in force. That is said once for each new content.
"""

from __future__ import annotations

import enum
import errno
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.tsi.policy import (
    EgressPolicy,
    Limits,
    Ports,
    Rule,
    SandboxPolicy,
    without_effect,
)
from fastpath.watch import FilesWatch
from vhost_user import decode
from vhost_user.engine import MIN_WINDOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vhost_user.decode import KeyPath

log = logging.getLogger(__name__)

HINTS: Final = {
    "allow": "write PREFIX or PREFIX:PORTS, for example 10.0.0.0/8:80,8000-8099 or"
    ' "[2001:db8::]/32:443"',
    "deny": "write PREFIX or PREFIX:PORTS, for example 192.0.2.1:22",
    "errno": "write ECONNREFUSED or EACCES",
    "published": 'write a list of ports and ranges, for example [80, "8000-8099"]',
    "udp": "write true or false",
    "limits": "docs/tsi-policy.md has the ranges",
}
"""By key."""


class DenialErrno(enum.Enum):
    """What the program's connect() fails with when policy denies it."""

    ECONNREFUSED = "ECONNREFUSED"
    EACCES = "EACCES"

    @property
    def errno(self) -> int:
        """The number."""
        return int(getattr(errno, self.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """Where a sandbox may connect to; see `fastpath.tsi.policy`."""

    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()
    errno: DenialErrno = DenialErrno.ECONNREFUSED

    def policy(self) -> EgressPolicy:
        """What decides."""
        return EgressPolicy(allow=self.allow, deny=self.deny, error=self.errno.errno)

    def problems(self) -> Iterator[tuple[KeyPath, str]]:
        """Rules that can never match: their key in `egress`, and why."""
        for index, by in without_effect(self.allow, self.deny):
            which = self.deny.index(by)
            why = f"can never match: deny[{which}], {by}, denies what it allows"
            yield ("allow", index), why


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """The whole file."""

    egress: Egress = field(default_factory=Egress)
    published: tuple[Ports, ...] = ()
    udp: bool = False
    limits: Limits = field(default_factory=Limits)

    def policy(self) -> SandboxPolicy:
        """What it says."""
        return SandboxPolicy(
            egress=self.egress.policy(),
            published=Ports.join(self.published),
            udp=self.udp,
            limits=self.limits,
        )


def parse(data: bytes, name: str) -> SandboxPolicy:
    """Read a policy.

    Args:
        data: the file's content.
        name: what to call the file in messages.

    Raises:
        FastpathError: `NAME:LINE: key.path: what is wrong; hint: what to do`.
    """
    return read(data, decode.Document(name, FastpathError, hints=HINTS)).policy()


def read(data: bytes, document: decode.Document) -> PolicyFile:
    """Read and check the bytes of `document`.

    Raises:
        FastpathError: as `parse` does.
    """
    file = decode.loads(data, PolicyFile, document)
    for path, why in file.egress.problems():
        hint = "take one of the two rules out, or make the one to deny narrower"
        raise document.error(("egress", *path), why, hint)
    limits = file.limits
    if limits.max_queued_bytes < limits.max_conns * MIN_WINDOW:
        raise document.error(
            ("limits", "maxQueuedBytes"),
            f"is less than {MIN_WINDOW} for each of {limits.max_conns} connections",
            f"raise it to {limits.max_conns * MIN_WINDOW}, or lower maxConns",
        )
    return file


class PolicyWatch:
    """The policy in a file, and what to do when it changes.

    Args:
        path: the file.
        name: the sandbox's, for the log.

    Raises:
        FastpathError: there is no such file, or it has an error.
    """

    def __init__(self, path: Path, *, name: str) -> None:
        self._path = path
        self._name = name
        self._apply: Callable[[SandboxPolicy], None]
        self._report: Callable[[bool], None]
        try:
            self._watch = FilesWatch((path,))
        except OSError as exc:
            raise _unreadable(path, exc) from exc
        try:
            self._data: bytes | None = path.read_bytes()
            self._policy = parse(self._data, str(path))
        except OSError as exc:
            self._watch.close()
            raise _unreadable(path, exc) from exc
        except FastpathError:
            self._watch.close()
            raise

    @property
    def policy(self) -> SandboxPolicy:
        """The last good one."""
        return self._policy

    def start(
        self,
        apply: Callable[[SandboxPolicy], None],
        report: Callable[[bool], None],
    ) -> None:
        """Follow the file from now on; what changed since it was read counts.

        Args:
            apply: gets each new policy, in the event loop.
            report: is told of each new content of the file, whether it is good.
        """
        self._apply = apply
        self._report = report
        self._watch.start(self._read)

    def reload(self) -> None:
        """Read the file now, and say how it went even if nothing changed."""
        self._watch.renew()
        self._read(again=True)

    def close(self) -> None:
        """Follow the file no more."""
        self._watch.close()

    def _read(self, *, again: bool = False) -> None:
        """Take what the file has now, if that is another content, or `again`."""
        missing = ""
        try:
            data = self._path.read_bytes()
        except OSError as exc:
            data, missing = None, exc.strerror or str(exc)
        if data == self._data and not again:
            return
        self._data = data
        wrong = self._parse(data, missing)
        if wrong:
            log.error("%s: the policy stays as it was: %s", self._name, wrong)
        else:
            log.warning("%s: new policy from %s", self._name, self._path)
            self._apply(self._policy)
        self._report(not wrong)

    def _parse(self, data: bytes | None, missing: str) -> FastpathError | None:
        """Take a policy from `data`, or return what is wrong with it."""
        if data is None:
            return FastpathError(f"{self._path}", missing, "put it back")
        try:
            self._policy = parse(data, str(self._path))
        except FastpathError as exc:
            return exc
        return None


def _unreadable(path: Path, exc: OSError) -> FastpathError:
    return FastpathError(
        f"{path}",
        exc.strerror or str(exc),
        "name a policy file that exists, see docs/tsi-policy.md",
    )
