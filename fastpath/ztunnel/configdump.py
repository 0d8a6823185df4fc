"""`/config_dump`: what this process has, in the form that istioctl reads of a ztunnel.

Keys and values are those of Istio's ztunnel; `config` is our own file, and holds no
secrets. Keys that have their default value are left out where Istio's leaves them out.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastpath.identity import Identity
from fastpath.ztunnel.istio.model import (
    GatewayDestination,
    Locality,
    NamespacedHostname,
    NetworkAddress,
    Service,
    Workload,
)
from fastpath.ztunnel.istio.outbound import Transport
from fastpath.ztunnel.model import ListenAddress, Publication
from fastpath.ztunnel.rbac import MatchKind, StringMatch
from vhost_user.decode import camel_case

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastpath.ztunnel.istio.state import MeshState
    from fastpath.ztunnel.model import Config
    from vhost_user.engine import SocketAddress

_TEXT: Final = (
    GatewayDestination,
    Identity,
    ListenAddress,
    NamespacedHostname,
    NetworkAddress,
    Path,
    Publication,
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)
_ALWAYS: Final = frozenset(
    {"name", "cluster_id", "endpoints", "subject_alt_names", "canonical"}
    | {"rules", "dry_run"}
)
"""Fields that are there even if they are empty and need not be given."""
_NOWHERE: Final = Locality(region="", zone="", subzone="")


@dataclasses.dataclass(frozen=True, slots=True)
class LiveConnection:
    """An open connection of a program."""

    source: str
    """The sandbox."""
    client: SocketAddress
    """The program's end."""
    original: SocketAddress
    actual: SocketAddress | None
    protocol: Transport = Transport.TCP


@dataclasses.dataclass(frozen=True, slots=True)
class LiveClient:
    """An open connection to a program."""

    server: str
    """The sandbox."""
    client: SocketAddress
    """Where it comes from: by HBONE, the tunnel."""
    service: str
    """The host name that the peer was asked for; empty: it did not say."""
    actual: SocketAddress
    """Where the program listens."""
    protocol: Transport = Transport.TCP


Live = LiveConnection | LiveClient


def dump(
    state: MeshState,
    config: Config,
    live: Iterable[Live],
    certificates: Sequence[Mapping[str, Any]] = (),
) -> bytes:
    """Return the page; callable on any thread.

    Args:
        state: the mesh.
        config: the same one, and our own settings.
        live: connections of sandboxes; others' are left out.
        certificates: of each identity.
    """
    from importlib.metadata import version  # takes a MB, and few ask

    page = {
        "certificates": list(certificates),
        "config": encode(config.fastpath, everything=True),
        "policies": [encode(policy) for policy in config.policies],
        "services": [_service(state, service) for service in config.services],
        "stagedServices": {},
        "staticConfig": {
            "policies": [encode(policy) for policy in config.policies],
            "services": [encode(service) for service in config.services],
            "workloads": [encode(workload) for workload in config.workloads],
        },
        "version": {"version": f"fastpath-{version('vsock-fastpath')}"},
        "workloadState": _workload_state(config, live),
        "workloads": [_workload(workload) for workload in config.workloads],
    }
    return f"{json.dumps(page, indent=2, sort_keys=True)}\n".encode()


def encode(value: object, *, everything: bool = False) -> Any:  # noqa: ANN401 - JSON
    """A value of the configuration as its file has it.

    Args:
        value: a dataclass, or what may be in one.
        everything: also what has its default value.
    """
    if isinstance(value, StringMatch):
        presence = value.kind is MatchKind.PRESENCE
        return {value.kind.value[1:]: [] if presence else value.value}
    if isinstance(value, _TEXT):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return {
            camel_case(field.name): encode(
                getattr(value, field.name), everything=everything
            )
            for field in dataclasses.fields(value)
            if everything or _shown(field, getattr(value, field.name))
        }
    if isinstance(value, tuple | list):
        return [encode(item, everything=everything) for item in value]
    if hasattr(value, "items"):
        pairs = value.items()
        return {f"{key}": encode(item, everything=everything) for key, item in pairs}
    return value


def _shown(field: dataclasses.Field[Any], value: object) -> bool:
    missing = dataclasses.MISSING
    if field.name in _ALWAYS or field.default is field.default_factory is missing:
        return True
    empty = value is None or value in ("", (), {}, _NOWHERE)
    return not empty and value is not False


def _workload(workload: Workload) -> dict[str, Any]:
    """One, with the names only of its services, as Istio's keeps it."""
    found: dict[str, Any] = encode(workload)
    found.pop("services", None)
    if workload.services:
        found["services"] = [str(key) for key in workload.services]
    return found


def _service(state: MeshState, service: Service) -> dict[str, Any]:
    """One, with all endpoints that it has."""
    found: dict[str, Any] = encode(service)
    found["endpoints"] = {
        member.workload.uid or member.workload.key: {
            "workloadUid": member.workload.uid,
            "port": {f"{port}": to for port, to in member.ports.items()},
            "status": member.status.value,
        }
        for member in state.members_of(service)
    }
    return found


def _workload_state(config: Config, live: Iterable[Live]) -> dict[str, dict[str, Any]]:
    """What istioctl calls the connections of each pod."""
    found: dict[str, dict[str, Any]] = {}
    for sandbox in config.fastpath.sandboxes:
        workload = config.workload(sandbox.workload)
        found[sandbox.name] = {
            "connections": {"inbound": [], "outbound": []},
            "info": {
                "name": workload.name,
                "namespace": workload.namespace,
                "serviceAccount": workload.service_account,
            },
            "state": "Up",
        }
    for each in live:
        inbound = isinstance(each, LiveClient)
        whose = found.get(each.server if isinstance(each, LiveClient) else each.source)
        if whose:
            which = "inbound" if inbound else "outbound"
            whose["connections"][which].append(_connection(each))
    return found


def _connection(live: Live) -> dict[str, Any]:
    if isinstance(live, LiveClient):
        original, actual = live.service or None, live.actual
    else:
        original, actual = _address(live.original), live.actual or live.original
    return {
        "src": _address(live.client),
        "originalDst": original,
        "actualDst": _address(actual),
        "protocol": live.protocol.value,
    }


def _address(address: SocketAddress) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
