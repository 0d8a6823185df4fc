"""Authorization: whether the policies allow a connection to a workload.

Each table of the semantics is one function here: rules are OR, clauses AND, matches
OR, fields AND, values OR.

Spec: Istio, "AuthorizationPolicy": a policy to deny that matches denies; without
policies to allow it is allowed; one of them that matches allows; else it is denied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from fastpath.ztunnel.rbac import Action, MatchKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastpath.identity import Identity
    from fastpath.ztunnel.rbac import (
        Authorization,
        Match,
        ServiceAccountMatch,
        StringMatch,
    )
    from vhost_user.schema import IpAddress

T = TypeVar("T")

_SCHEME = "spiffe://"


@dataclass(frozen=True, slots=True)
class Connection:
    """What policies are asked about."""

    source: IpAddress
    destination: IpAddress
    port: int
    """Where it goes in the workload, not that of HBONE."""
    identity: Identity | None = None
    """Of the client, proved by mutual TLS; None: plain text."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the policies say."""

    allowed: bool
    policy: str = ""
    """`namespace/name` of the one that decided; empty: none did."""
    text: str = ""
    """Why it is denied, in Istio's words."""
    dry_run: tuple[str, ...] = ()
    """What policies with `dryRun` would have done, for the log."""


def judge(policies: Iterable[Authorization], connection: Connection) -> Verdict:
    """Decide on a connection to a workload.

    Args:
        policies: those that are for it (`MeshState.policies_of`).
        connection: to it.
    """
    kinds: dict[tuple[Action, bool], list[Authorization]] = {}
    for policy in policies:
        kinds.setdefault((policy.action, policy.dry_run), []).append(policy)
    allow = kinds.get((Action.ALLOW, False), [])
    notes = _dry_run(kinds, connection, enforced=bool(allow))
    for policy in kinds.get((Action.DENY, False), []):
        if matches(policy, connection):
            why = f"explicitly denied by: {policy.key}"
            return Verdict(allowed=False, policy=policy.key, text=why, dry_run=notes)
    if not allow:
        return Verdict(allowed=True, dry_run=notes)
    for policy in allow:
        if matches(policy, connection):
            return Verdict(allowed=True, policy=policy.key, dry_run=notes)
    why = "allow policies exist, but none allowed"
    return Verdict(allowed=False, text=why, dry_run=notes)


def matches(policy: Authorization, connection: Connection) -> bool:
    """Whether any rule matches: all of its clauses."""
    return any(
        all(_clause(clause, connection) for clause in rule) for rule in policy.rules
    )


def _dry_run(
    kinds: dict[tuple[Action, bool], list[Authorization]],
    connection: Connection,
    *,
    enforced: bool,
) -> tuple[str, ...]:
    notes = []
    for action, verb in ((Action.DENY, "deny"), (Action.ALLOW, "allow")):
        dry = kinds.get((action, True), [])
        found = [policy.key for policy in dry if matches(policy, connection)]
        notes += [f"dry-run: {verb} policy match: {key}" for key in found]
        if action is Action.ALLOW and dry and not found and not enforced:
            notes.append("dry-run: no allow policies match")
    return tuple(notes)


def _clause(clause: tuple[Match, ...], connection: Connection) -> bool:
    return not clause or any(_match(match, connection) for match in clause)


def _match(match: Match, connection: Connection) -> bool:
    """Whether all fields match; one without fields matches nothing."""
    identity = connection.identity
    namespace = identity.namespace if identity else ""
    principal = f"{identity}" if identity else ""
    source, destination = connection.source, connection.destination
    port = connection.port
    return not match.is_empty and (
        _field(
            match.destination_ports, match.not_destination_ports, lambda it: it == port
        )
        and _field(match.source_ips, match.not_source_ips, lambda it: source in it)
        and _field(
            match.destination_ips,
            match.not_destination_ips,
            lambda it: destination in it,
        )
        and _field(
            match.service_accounts,
            match.not_service_accounts,
            lambda it: _is_account(it, identity),
        )
        and _field(
            match.principals,
            match.not_principals,
            lambda it: _is_principal(it, principal),
        )
        and _field(
            match.namespaces,
            match.not_namespaces,
            lambda it: _is_string(it, namespace),
        )
    )


def _field(
    positive: tuple[T, ...], negative: tuple[T, ...], predicate: Callable[[T], bool]
) -> bool:
    return (not positive or any(map(predicate, positive))) and not any(
        map(predicate, negative)
    )


def _is_account(match: ServiceAccountMatch, identity: Identity | None) -> bool:
    """Whatever the trust domain."""
    return identity is not None and (
        (match.namespace, match.service_account)
        == (identity.namespace, identity.service_account)
    )


def _is_principal(match: StringMatch, principal: str) -> bool:
    """Principals are written without the scheme; who has none is none of them."""
    return principal.startswith(_SCHEME) and _is_string(
        match, principal.removeprefix(_SCHEME)
    )


def _is_string(match: StringMatch, text: str) -> bool:
    if match.kind is MatchKind.EXACT:
        return text == match.value
    if match.kind is MatchKind.PREFIX:
        return text.startswith(match.value)
    if match.kind is MatchKind.SUFFIX:
        return text.endswith(match.value)
    return bool(text)
