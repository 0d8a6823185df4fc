"""Reading the configuration, and what must hold between its parts.

Our own file names Istio's local file, so that Istio's ztunnel can read the same one.
`decode` has checked each value by itself; here are names that refer to nothing
and things that must be unique. A configuration that was built in code goes
through the same checks; in its errors our own part is `fastpath`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastpath.errors import FastpathError
from fastpath.ztunnel import certificate_settings, handoffs
from fastpath.ztunnel.istio import file as istio
from fastpath.ztunnel.istio.file import repeated
from fastpath.ztunnel.model import (
    Config,
    Fastpath,
    Publication,
    Sandbox,
    TunnelProtocol,
    Workload,
)
from vhost_user import decode
from vhost_user.engine import MAX_DEVICES
from vhost_user.errors import StateError
from vhost_user.sockets import MAX_PATH
from vhost_user.vsock.hybrid import MAX_UDS_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastpath.tsi.policy import SandboxPolicy
    from fastpath.tsi.policyfile import Egress
    from fastpath.ztunnel.istio.file import Problem
    from vhost_user.decode import KeyPath
    from vhost_user.schema import IpAddress

MakeError = Callable[["KeyPath", str, str | None], Exception]
"""Makes an error of a key of the configuration, why it is wrong, and a hint."""
_ISTIOS: Final = "it belongs into Istio's file, which `mesh: FILE` here names"
HINTS: Final = {
    "fastpath": "what was below it is this file's top level now",
    "workloads": _ISTIOS,
    "services": _ISTIOS,
    "policies": _ISTIOS,
}
"""By key."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and where all of it stands, for what shows only when it runs."""

    config: Config
    own: decode.Document
    mesh: decode.Document | None = None
    """None: our file names none."""
    content: int = 0
    """Of Istio's file: another number says that it is another one."""

    def error(self, key_path: KeyPath, why: str, hint: str | None = None) -> Exception:
        """What is wrong, in whichever of the two files it stands."""
        if key_path[:1] == ("fastpath",) or self.mesh is None:
            return self.own.error(key_path[1:], why, hint)
        return self.mesh.error(key_path, why, hint)

    def with_mesh(self, data: bytes) -> Loaded:
        """The same, with another content of Istio's file.

        Raises:
            FastpathError: `FILE:LINE:COLUMN: key.path: what is wrong`.
        """
        own = self.config.fastpath
        if own.mesh is None:
            raise StateError("there is no file of Istio's")
        return _with_mesh(own, self.own, data)


def load(path: Path) -> Config:
    """Read and check our file, and Istio's that it names.

    Raises:
        FastpathError: `FILE:LINE:COLUMN: key.path: what is wrong`.
    """
    return load_with_lines(path).config


def load_with_lines(path: Path) -> Loaded:
    """The same, and where all of it stands.

    Raises:
        FastpathError: as `load` does.
    """
    document = decode.Document(str(path), FastpathError, hints=HINTS, columns=True)
    own = decode.load(path, Fastpath, document)
    if own.mesh is None:
        return _checked(Loaded(Config(fastpath=own), document))
    try:
        data = istio.read(own.mesh)
    except OSError as exc:
        why = f"{own.mesh}: {exc.strerror or exc}"
        hint = "name Istio's local file: workloads, services, policies"
        raise document.error(("mesh",), why, hint) from exc
    return _with_mesh(own, document, data)


def _with_mesh(own: Fastpath, document: decode.Document, data: bytes) -> Loaded:
    """Put both together, and check it."""
    file, mesh = istio.parse(data, f"{own.mesh}")
    config = Config(
        workloads=file.workloads,
        services=file.services,
        policies=file.policies,
        fastpath=own,
    )
    return _checked(Loaded(config, document, mesh, hash(data)))


def _checked(loaded: Loaded) -> Loaded:
    for key_path, why in _problems(loaded.config):
        raise loaded.error(key_path, why)
    return loaded


def error(key_path: KeyPath, why: str, hint: str | None) -> Exception:
    """What is wrong with a configuration that was built in code."""
    return FastpathError(f"configuration: {decode.format_path(key_path)}", why, hint)


def check(config: Config) -> None:
    """Check a configuration that was built in code.

    Raises:
        FastpathError: the first problem there is.
    """
    for key_path, why in _problems(config):
        raise error(key_path, why, None)


def check_publications(sandbox: Sandbox, policy: SandboxPolicy) -> None:
    """Check that a policy publishes what is to be reachable at the host's addresses.

    Raises:
        FastpathError: it doesn't.
    """
    for item in sandbox.publish:
        if item.port and not policy.published.covers(item.port):
            raise FastpathError(
                f"{sandbox.name}: publish {item}",
                f"{sandbox.policy} does not publish port {item.port}",
                "add it to `published` there",
            )


def ready_line(config: Config) -> str:
    """What is said when everything listens."""
    own = config.fastpath
    parts = [f"sandbox {item.name} on {item.socket}" for item in own.sandboxes]
    if own.outbound:
        way = "TPROXY" if own.outbound.tproxy else "REDIRECT"
        parts.append(f"{way} on {own.outbound.address}")
    if own.metrics:
        parts.append(f"metrics on {own.metrics}")
    if own.admin:
        parts.append(f"admin on {own.admin}")
    return f"fastpath ztunnel: ready: {', '.join(parts) or 'nothing configured'}"


def for_sandbox(
    *,
    socket: Path,
    cid: int,
    addresses: tuple[IpAddress, ...],
    name: str = "sandbox",
    uds_path: Path | None = None,
    egress: Egress | None = None,
    policy: Path | None = None,
    echo: IpAddress | None = None,
    access_log: Path | None = None,
    publish: tuple[Publication, ...] = (),
    key_file: Path | None = None,
) -> Config:
    """One sandbox that reaches whatever the process does; no listener, no metrics.

    Args:
        socket: vhost-user socket of the VM.
        cid: its vsock CID.
        addresses: its pod IPs, what the program sees as its own.
        name: of the sandbox, the workload and in log lines.
        uds_path: hybrid vsock socket, and the prefix of `UDS_PATH_PORT`.
        egress: None: the default policy, unless `policy` says otherwise.
        policy: a policy file, in place of `egress`.
        echo: the address that ztunnel answers itself.
        access_log: None: stderr.
        publish: its listeners that are reachable; not at its pod IPs, which are
            nobody's but the program's.
        key_file: what its agents have to show.
    """
    workload = Workload(workload_ips=addresses, namespace="default", name=name)
    sandbox = Sandbox(
        name=name,
        workload=workload.key,
        socket=socket,
        cid=cid,
        uds_path=uds_path,
        key_file=key_file,
        publish=publish,
        pod_listeners=False,
        egress=egress,
        policy=policy,
    )
    own = Fastpath(sandboxes=(sandbox,), echo=echo, access_log=access_log)
    return Config(workloads=(workload,), fastpath=own)


def _problems(config: Config) -> Iterator[Problem]:
    yield from istio.problems(config)
    yield from _sandbox_problems(config)
    yield from certificate_settings.problems(config)
    yield from _thread_problems(config.fastpath)
    yield from _echo_problems(config)
    yield from _outbound_problems(config.fastpath)


def _outbound_problems(own: Fastpath) -> Iterator[Problem]:
    out = own.outbound
    if out and (out.tproxy is None) is (out.redirect is None):
        yield ("fastpath", "outbound"), "must have either tproxy or redirect"


def _sandbox_problems(config: Config) -> Iterator[Problem]:
    names: list[tuple[KeyPath, object]] = []
    sockets: list[tuple[KeyPath, object]] = []
    cids: list[tuple[KeyPath, object]] = []
    workloads: list[tuple[KeyPath, object]] = []
    places: list[tuple[KeyPath, object]] = []
    namespaces: list[tuple[KeyPath, object]] = []
    for index, sandbox in enumerate(config.fastpath.sandboxes):
        here: KeyPath = ("fastpath", "sandboxes", index)
        names.append(((*here, "name"), sandbox.name))
        cids.append(((*here, "cid"), sandbox.cid))
        sockets.append(((*here, "socket"), sandbox.socket.absolute()))
        yield from _path_problems((*here, "socket"), sandbox.socket, MAX_PATH)
        if sandbox.policy and sandbox.egress:
            yield (*here, "egress"), "is said by the policy file; leave one of them out"
        if sandbox.egress:
            for path, why in sandbox.egress.problems():
                yield (*here, "egress", *path), why
        if sandbox.uds_path:
            sockets.append(((*here, "udsPath"), sandbox.uds_path.absolute()))
            yield from _path_problems(
                (*here, "udsPath"), sandbox.uds_path, MAX_UDS_PATH
            )
        found = config.find_workload(sandbox.workload)
        if len(found) != 1:
            what = "several workloads" if found else "no workload"
            yield (*here, "workload"), f"names {what} of `mesh`: {sandbox.workload}"
        elif not found[0].workload_ips:
            yield (*here, "workload"), "names a workload without workloadIps"
        else:
            workloads.append(((*here, "workload"), found[0].uid or found[0].key))
        places += [
            ((*here, "publish", i), _place(sandbox, item))
            for i, item in enumerate(sandbox.publish)
        ]
        if sandbox.netns and not sandbox.netns.is_absolute():
            why = f"must be a path as /run/netns/NAME, not {str(sandbox.netns)!r}"
            yield (*here, "netns"), why
        yield from handoffs.problems(sandbox, here)
        tunnel = found[0].application_tunnel if found else None
        proxied = tunnel and tunnel.protocol is TunnelProtocol.PROXY
        if sandbox.netns and tunnel and proxied and tunnel.port is None:
            why = "names a workload whose applicationTunnel has no port"
            yield (*here, "workload"), why
        if sandbox.netns and sandbox.handoff and sandbox.handoff.inpod:
            namespaces.append(((*here, "netns"), sandbox.netns))
    for group in (names, workloads, sockets, cids, places, namespaces):
        yield from repeated(group)


def _place(sandbox: Sandbox, item: Publication) -> str:
    """An address, and the network namespace that has it."""
    return f"{item.at} in {sandbox.netns}" if sandbox.netns else f"{item.at}"


def _thread_problems(own: Fastpath) -> Iterator[Problem]:
    room = own.threads * MAX_DEVICES
    if len(own.sandboxes) > room:
        why = f"{len(own.sandboxes)} sandboxes are more than {own.threads} engines take"
        yield ("fastpath", "threads"), f"{why}, {MAX_DEVICES} each"
    if own.cpu is not None and own.threads > 1:
        yield ("fastpath", "cpu"), f"is one CPU for {own.threads} threads; leave it out"


def _path_problems(where: KeyPath, path: Path, longest: int) -> Iterator[Problem]:
    if len(os.fsencode(path)) > longest:
        yield where, f"is longer than the {longest} bytes that a unix socket takes"


def _echo_problems(config: Config) -> Iterator[Problem]:
    echo = config.fastpath.echo
    vips = {vip.address for service in config.services for vip in service.vips}
    pods = {ip for workload in config.workloads for ip in workload.workload_ips}
    if echo in vips | pods:
        yield ("fastpath", "echo"), f"{echo} belongs to a service or a workload"
