"""The configuration as data: our own settings, and Istio's file that they name.

These classes are the whole description of our file: `config.load` fills them, and they
can be built in code. Field `uds_path` is the key `udsPath`. What each key means stands
in docs/ztunnel-config.md. Istio's file is `istio.model`.
"""

# ruff: noqa: TC001, TC003 - `decode` reads the annotations when it runs
from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Self

from fastpath.identity import Identity
from fastpath.tsi.policyfile import Egress
from fastpath.ztunnel.istio.model import (
    ApplicationTunnel,
    GatewayAddress,
    GatewayDestination,
    HealthStatus,
    LocalFile,
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    Protocol,
    Service,
    TunnelProtocol,
    Workload,
)
from vhost_user.engine import DEFAULT_RING_BYTES
from vhost_user.schema import (
    Between,
    IpAddress,
    Matches,
    Parsed,
    PowerOfTwo,
    parse_ip,
)
from vhost_user.sockets import DEFAULT_SOCKET_MODE, Access, parse_group, parse_mode
from vhost_user.vsock.config import MAX_THREADS

__all__ = [
    "ApplicationTunnel",
    "CertificateFiles",
    "CertificateService",
    "Certificates",
    "Config",
    "Fastpath",
    "GatewayAddress",
    "GatewayDestination",
    "Handoff",
    "HealthStatus",
    "ListenAddress",
    "LogFormat",
    "NamespacedHostname",
    "NetworkAddress",
    "NetworkMode",
    "OutboundListener",
    "Protocol",
    "Publication",
    "Sandbox",
    "Service",
    "TunnelProtocol",
    "Workload",
]


class LogFormat(enum.Enum):
    """How a line of the access log is written."""

    PLAIN = "plain"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """`IP:PORT`, `[IPv6]:PORT` or `localhost:PORT`; port 0 takes a free one."""

    host: IpAddress
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it, or raise `ValueError`."""
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or (":" in host) is not bracketed:
            raise ValueError(f"must be IP:PORT or [IPv6]:PORT, not {text!r}")
        if host == "localhost":
            host = "127.0.0.1"
        address = parse_ip(host[1:-1] if bracketed else host)
        return cls(address, Between(0, 65535).parse(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.host.version == 6 else f"{self.host}"
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Publication:
    """A sandbox's port on an address of the host: `[IP:]HOST_PORT:PORT`.

    Or each of its ports, at the same port there: `IP:*`.
    """

    at: ListenAddress
    """Its port is 0 for all of the sandbox's."""
    port: int
    """In the sandbox; 0: all."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it, or raise `ValueError`; without IP it is 127.0.0.1."""
        host, colon, port = text.rpartition(":")
        if not colon:
            raise ValueError(f"must be [IP:]HOST_PORT:PORT or IP:*, not {text!r}")
        if port == "*":
            return cls(ListenAddress.parse(f"{host}:0"), 0)
        if host.isdecimal():
            host = f"127.0.0.1:{host}"
        at = ListenAddress.parse(host)
        if at.port == 0:
            raise ValueError(f"{text!r}: port 0 is none")
        return cls(at, Between(1, 65535).parse(port))

    def __str__(self) -> str:
        if self.port:
            return f"{self.at}:{self.port}"
        return f"{self.at}".removesuffix("0") + "*"

    def of(self, port: int) -> ListenAddress | None:
        """Where a port of the sandbox is; None: not by this."""
        if self.port == 0:
            return ListenAddress(self.at.host, port)
        return self.at if self.port == port else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Handoff:
    """Another proxy that a sandbox's connections go to (docs/handoffs.md)."""

    unix: Path | None = None
    """Its stream unix socket; connections begin with a PROXY protocol v2 header."""
    socks5: ListenAddress | None = None
    """Where it speaks SOCKS5, in the sandbox's `netns` if it has one."""
    inpod: Path | None = None
    """The unix socket by which we tell an Istio ztunnel of `netns`: its `INPOD_UDS`."""
    ring: Path | None = None
    """The unix socket of a process that takes them by rings of shared memory."""
    ring_bytes: Annotated[int, PowerOfTwo(4096, 1 << 30)] = DEFAULT_RING_BYTES
    """Of each of a connection's two rings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateService:
    """Istio's CreateCertificate: istiod, or `fastpath ca` (docs/certificates.md)."""

    address: str
    """`https://HOST:PORT`."""
    roots: Path
    """Whom to believe that it is the service."""
    token: Path | None = None
    """A bearer token's file."""
    impersonate: bool = True
    """The token is this node's, and asks for the workloads' identities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """One identity's PEM files: in a directory, or each by its name."""

    identity: Identity
    directory: Path | None = None
    """With `key.pem`, `cert-chain.pem` and `root-cert.pem`."""
    key: Path | None = None
    chain: Path | None = None
    """Leaf first, then intermediates."""
    roots: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Where the certificates of sandboxes come from: `files`, else one of the others.

    None of `embedded` and `ca`: `files` has each identity.
    """

    embedded: Path | None = None
    """A directory as `fastpath ca --dir` has it: the CA is in this process."""
    ca: CertificateService | None = None
    files: tuple[CertificateFiles, ...] = ()
    life_s: Annotated[int, Between(2, 10 * 365 * 86400)] = 86400
    """How long a certificate of `embedded` or `ca` is to be valid."""
    crls: Path | None = None
    """Revocation lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One VM: its vhost-user socket, and whose pod it is."""

    name: Annotated[str, Matches(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a sandbox name")]
    workload: str
    """A workload's uid or `namespace/name`."""
    socket: Path
    cid: Annotated[int, Between(3, 2**32 - 2)]
    uds_path: Path | None = None
    socket_mode: Annotated[int, Parsed(parse_mode)] = DEFAULT_SOCKET_MODE
    """Who may be its VM, and its host side: permission bits of the sockets."""
    socket_group: Annotated[int, Parsed(parse_group)] | None = None
    key_file: Path | None = None
    """What its agents have to show. None: a port that only root has is enough."""
    publish: tuple[Publication, ...] = ()
    """Ports that are reachable at addresses of the host. With `policy`, it has to
    publish them; without, this does."""
    pod_listeners: bool = True
    """Whether what the policy publishes is reachable at the pod's IPs."""
    policy: Path | None = None
    """A policy file, followed while the process runs (docs/tsi-policy.md)."""
    netns: Path | None = None
    """Its pod's network namespace: its connections are made there, and its listeners.
    None: in this process's own."""
    handoff: Handoff | None = None
    """None: its connections go where they are asked to."""
    hbone: bool | None = None
    """Whether this process is its mesh endpoint. None: with `certificates`, unless
    `netns` or `handoff` say who is."""
    egress: Egress | None = None
    """In its place, the `egress` part of one; neither: the default policy."""

    @property
    def access(self) -> Access:
        """Who may connect to its sockets."""
        return Access(self.socket_mode, self.socket_group)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundListener:
    """Where captured connections arrive: one of the two."""

    tproxy: ListenAddress | None = None
    """As they are."""
    redirect: ListenAddress | None = None
    """By NAT (REDIRECT, DNAT), whose table has their destination."""

    @property
    def address(self) -> ListenAddress:
        """Either; `config.check` has seen to it that there is one."""
        found = self.tproxy or self.redirect
        assert found is not None
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fastpath:
    """Our own file. Addresses that are None: that part is not there."""

    mesh: Path | None = None
    """Istio's local file; None: there are no workloads, services and policies."""
    certificates: Certificates | None = None
    """None: there are none, and this process speaks no HBONE."""
    sandboxes: tuple[Sandbox, ...] = ()
    outbound: OutboundListener | None = None
    metrics: ListenAddress | None = None
    readiness: ListenAddress | None = None
    echo: IpAddress | None = None
    network: str = ""
    resolvers: tuple[ListenAddress, ...] = ()
    """Where names go that are no service's; empty: to those of /etc/resolv.conf."""
    admin: ListenAddress | None = None
    """For who runs the process: what it has, and its log's level."""
    access_log: Path | None = None
    """None: stderr."""
    access_log_format: LogFormat = LogFormat.PLAIN
    drain_s: Annotated[int, Between(0, 3600)] = 5
    """How long connections that are open may go on when the process is to end."""
    threads: Annotated[int, Between(1, MAX_THREADS)] = 1
    """Engines; sandboxes are spread over them."""
    poll_us: Annotated[int, Between(0, 1_000_000)] = 200
    cpu: Annotated[int, Between(0, 4095)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(LocalFile):
    """All of it; `config.check` says whether it makes sense."""

    fastpath: Fastpath = field(default_factory=Fastpath)

    def find_workload(self, name: str) -> list[Workload]:
        """The workloads that `name`, a uid or `namespace/name`, refers to."""
        by_uid = [item for item in self.workloads if item.uid and item.uid == name]
        return by_uid or [item for item in self.workloads if item.key == name]

    def workload(self, name: str) -> Workload:
        """The one workload of that name, in a configuration that is checked."""
        (workload,) = self.find_workload(name)
        return workload

    def meshed(self, sandbox: Sandbox) -> bool:
        """Whether this process speaks HBONE for a sandbox."""
        if self.fastpath.certificates is None:
            return False
        others = sandbox.netns or sandbox.handoff
        return not others if sandbox.hbone is None else sandbox.hbone

    def addresses_here(self, workload: Workload) -> tuple[IpAddress, ...]:
        """The IPs by which a workload is known on our own network."""
        own = workload.network == self.fastpath.network
        standard = workload.network_mode is NetworkMode.STANDARD
        return workload.workload_ips if own and standard else ()
