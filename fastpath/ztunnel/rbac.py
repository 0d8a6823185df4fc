"""Authorization policies: Istio's format, read and checked in full.

A policy binds at the destination's proxy, where the client's identity is proved by
mutual TLS. `istio.authorize` evaluates those that are for our sandboxes; which are for
nobody here, `authorization` says once, by name.

Spec: istio/ztunnel, local configuration, `policies`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Annotated, Self

from vhost_user.decode import REQUIRED
from vhost_user.schema import Between, IpPrefix, Parsed, parse_prefix

Port = Annotated[int, Between(1, 65535)]


def parse_net(text: str) -> IpPrefix:
    """Read `IP/LENGTH`, or raise `ValueError`; Istio's ztunnel takes no bare IP."""
    net = parse_prefix(text)
    if "/" not in text:
        raise ValueError(f"must be IP/LENGTH, not {text!r}; write {net}")
    return net


Net = Annotated[IpPrefix, Parsed(parse_net)]


class Scope(enum.Enum):
    """Which workloads a policy is for."""

    GLOBAL = "Global"
    NAMESPACE = "Namespace"
    WORKLOAD_SELECTOR = "WorkloadSelector"
    """Those that name it in `authorizationPolicies`."""


class Action(enum.Enum):
    """What a matching policy does."""

    ALLOW = "Allow"
    DENY = "Deny"


class MatchKind(enum.Enum):
    """How a string is compared; the value is the YAML tag."""

    EXACT = "!Exact"
    PREFIX = "!Prefix"
    SUFFIX = "!Suffix"
    PRESENCE = "!Presence"


@dataclass(frozen=True, slots=True)
class StringMatch:
    """`!Exact a`, `!Prefix a`, `!Suffix a` or `!Presence []` (any but empty)."""

    kind: MatchKind
    value: str = ""

    @classmethod
    def from_tag(cls, tag: str, value: str | None) -> Self:
        """Build it from a YAML tag and the scalar behind it; None: an empty list.

        Raises:
            ValueError: another tag or none, or a value that does not go with it.
        """
        try:
            kind = MatchKind(tag)
        except ValueError:
            tags = " ".join(kind.value for kind in MatchKind)
            raise ValueError(f"must have one of the tags {tags}") from None
        if kind is MatchKind.PRESENCE and value is not None:
            raise ValueError(f"{tag} takes no value; write {tag} []")
        if kind is not MatchKind.PRESENCE and not value:
            raise ValueError(f"{tag} takes a value")
        return cls(kind, value or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccountMatch:
    """One service account of one namespace."""

    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """All of the fields that are given must hold; of each field, any value."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    source_ips: tuple[Net, ...] = ()
    not_source_ips: tuple[Net, ...] = ()
    destination_ips: tuple[Net, ...] = ()
    not_destination_ips: tuple[Net, ...] = ()
    destination_ports: tuple[Port, ...] = ()
    not_destination_ports: tuple[Port, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it has no field; such a one matches nothing."""
        return self == _EMPTY


_EMPTY = Match()


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """One policy; `rules` is any of rules of all of clauses of any of matches."""

    name: str
    namespace: str
    scope: Scope
    action: Action
    rules: tuple[tuple[tuple[Match, ...], ...], ...] = field(
        default=(), metadata=REQUIRED
    )
    dry_run: bool = field(default=False, metadata=REQUIRED)

    @property
    def key(self) -> str:
        """`namespace/name`, as `authorizationPolicies` refers to it."""
        return f"{self.namespace}/{self.name}"
