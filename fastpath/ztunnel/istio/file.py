"""Istio's local file: read, and what must hold between its parts.

Istio's ztunnel takes names that refer to nothing, and of two things of one name the
last. Here they are errors: in a file that somebody wrote they are mistakes. Services
of several namespaces may share a VIP, as there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastpath import files
from fastpath.errors import FastpathError
from fastpath.ztunnel.istio.model import LocalFile, NetworkMode
from fastpath.ztunnel.rbac import Scope
from vhost_user import decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from vhost_user.decode import KeyPath

Problem = tuple["KeyPath", str]

MAX_BYTES: Final = 256 << 20
"""Of the file."""
HINTS: Final = {
    "fastpath": "our own settings are a file of their own, which names this one by"
    " `mesh`; Istio's ztunnel refuses them here, too",
    "vips": "write a list of network/IP, [] for none",
    "ports": "write {PORT: TARGET_PORT}, {} for none",
    "cidrVips": 'write [{network: "", cidr: 10.0.0.0/8}]',
}
"""By key."""


def read(path: Path) -> bytes:
    """Read the file's bytes.

    Raises:
        OSError: it can't be read, or is too large.
    """
    return files.read(path, MAX_BYTES)


def parse(data: bytes, name: str) -> tuple[LocalFile, decode.Document]:
    """Read the file's content, each value by itself; `problems` has the rest.

    Raises:
        FastpathError: `NAME:LINE:COLUMN: key.path: what is wrong; hint: what to do`.
    """
    document = decode.Document(name, FastpathError, hints=HINTS, columns=True)
    return decode.loads(data, LocalFile, document), document


def problems(file: LocalFile) -> Iterator[Problem]:
    """What does not fit together."""
    yield from _workload_problems(file)
    yield from _service_problems(file)
    yield from _policy_problems(file)


def _workload_problems(file: LocalFile) -> Iterator[Problem]:
    services = {service.key for service in file.services}
    policies = {policy.key: policy for policy in file.policies}
    uids: list[tuple[KeyPath, object]] = []
    addresses: list[tuple[KeyPath, object]] = []
    for index, workload in enumerate(file.workloads):
        here: KeyPath = ("workloads", index)
        if workload.uid:
            uids.append(((*here, "uid"), workload.uid))
        if workload.network_mode is NetworkMode.STANDARD:
            addresses += [
                ((*here, "workloadIps", i), f"{workload.network}/{address}")
                for i, address in enumerate(workload.workload_ips)
            ]
        for service in workload.services:
            if service not in services:
                yield (*here, "services", str(service)), "names no service of this file"
        for i, name in enumerate(workload.authorization_policies):
            where = (*here, "authorizationPolicies", i)
            if name not in policies:
                yield where, f"names no policy of this file: {name}"
            elif policies[name].scope is not Scope.WORKLOAD_SELECTOR:
                yield where, f"names a policy of another scope: {name}"
    yield from repeated(uids)
    yield from repeated(addresses)


def _service_problems(file: LocalFile) -> Iterator[Problem]:
    keys: list[tuple[KeyPath, object]] = []
    vips: list[tuple[KeyPath, object]] = []
    for index, service in enumerate(file.services):
        here: KeyPath = ("services", index)
        keys.append(((*here, "hostname"), str(service.key)))
        vips += [
            ((*here, "vips", i), f"{vip} of namespace {service.namespace}")
            for i, vip in enumerate(service.vips)
        ]
    yield from repeated(keys)
    yield from repeated(vips)


def _policy_problems(file: LocalFile) -> Iterator[Problem]:
    keys: list[tuple[KeyPath, object]] = []
    for index, policy in enumerate(file.policies):
        here: KeyPath = ("policies", index)
        keys.append(((*here, "name"), policy.key))
        if not policy.name:
            yield (*here, "name"), "must not be empty"
        if not policy.namespace and policy.scope is not Scope.GLOBAL:
            yield (*here, "namespace"), f"scope {policy.scope.value} needs one"
    yield from repeated(keys)


def repeated(values: Iterable[tuple[KeyPath, object]]) -> Iterator[Problem]:
    """What is there twice, and where first."""
    first: dict[object, KeyPath] = {}
    for where, value in values:
        if value in first:
            yield where, f"{value} is also at {decode.format_path(first[value])}"
        first.setdefault(value, where)
