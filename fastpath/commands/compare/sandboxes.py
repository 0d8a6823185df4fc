"""The sandboxes of a comparison: one for most paths, one a hand-off and a device.

A hand-off is a sandbox's, so a path with one has a sandbox, and so a microVM, of its
own. All are sandboxes of one ztunnel process. The proxy at the other end of a hand-off
is `proxy/`, compiled here; it runs where such a proxy does: in the pod's namespace, or
beside ztunnel.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastpath.commands.compare.paths import Handoff, Vsock, chosen
from fastpath.commands.compare.site import HTTP_PORT, SERVER_PORT
from fastpath.data import RINGS
from fastpath.datapath import pods
from fastpath.errors import FastpathError
from fastpath.image import programs
from fastpath.image.compiling import compiled
from fastpath.report.model import HANDED_ON
from fastpath.scratch import CONSOLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack

    from fastpath.commands.compare.paths import Path as Way
    from fastpath.commands.compare.site import Site
    from fastpath.datapath.netns import Namespace
    from fastpath.vm.spec import Nic

ECHO: Final = "198.18.0.1"
"""The address that ztunnel answers itself; RFC 2544's range for benchmarks."""
NEAR: Final = "198.18.0.3"
"""The address that the other proxy answers itself."""
SERVICE: Final = "198.18.0.4"
"""The service that another node's ztunnel has, by HBONE."""
SERVICE_PORTS: Final = (7, 9, 19, SERVER_PORT, HTTP_PORT)
FIRST_CID: Final = 3
SOCKS5: Final = "127.0.0.1:15080"
"""Where Istio's ztunnel speaks it, and the proxy of ours."""
SHARED: Final = "sandbox"
"""The one without a hand-off; also the service account of all."""

MEMORY_MIB: Final = 512
"""Of each microVM."""

_MEMINFO: Final = Path("/proc/meminfo")
_PROXY: Final = Path(__file__).parent / "proxy"
_HTTP: Final = Path(__file__).parent / "http" / "http.c"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A microVM's sandbox, and the paths that begin in it."""

    name: str
    paths: tuple[str, ...]
    cid: int
    ip: str
    """The pod's."""
    folder: Path
    nic: Nic | None = None
    network: tuple[str, str, int] | None = None
    """As `Site.network`."""
    handoff: Handoff | None = None
    netns: Namespace | None = None
    """The pod's; None: it has none."""
    peer: str = ""
    """The address of another node's ztunnel, if that takes its connections."""
    backend: str = ""
    """Its vsock device's, if that isn't ztunnel, which then doesn't know of it."""

    @property
    def echo(self) -> str:
        """The address of who answers: ztunnel, or the proxy that is handed to."""
        if self.peer:
            return SERVICE
        return NEAR if self.handoff else ECHO

    def server(self, site: Site) -> str:
        """The address of the server behind that."""
        return SERVICE if self.peer else site.server

    def logged(self, site: Site) -> tuple[str, str]:
        """Both addresses, as ztunnel's access log has them."""
        if self.peer:
            return self.peer, self.peer
        # Who hands connections on resolves no service.
        return self.echo, site.server if self.handoff else site.listen

    @property
    def socket(self) -> Path:
        """The device's vhost-user socket."""
        return self._file("vhost.sock")

    @property
    def vsock(self) -> Path:
        """Prefix of the device's host side."""
        return self._file("vsock")

    @property
    def key_file(self) -> Path:
        """What agents in the VM have to show."""
        return self._file("key")

    @property
    def qmp(self) -> Path:
        """QEMU's monitor."""
        return self._file("qmp.sock")

    @property
    def console(self) -> Path:
        """The guest's console log."""
        return self._file(CONSOLE)

    def _file(self, name: str) -> Path:
        return self.folder / (name if self.name == SHARED else f"{self.name}-{name}")

    def config(self, allow: Sequence[str]) -> dict[str, Any]:
        """What ztunnel's settings say of it."""
        own: dict[str, Any] = {
            "name": self.name,
            "workload": f"compare/{self.name}",
            "socket": str(self.socket),
            "cid": self.cid,
            "udsPath": str(self.vsock),
            "keyFile": str(self.key_file),
            "egress": {"allow": [*allow, *self._peers()]},
            "hbone": bool(self.peer),
        }
        if self.netns:
            own["netns"] = self.netns.path
        if self.handoff:
            own |= self._handoff()
        return own

    @property
    def backend_name(self) -> str:
        """As tables call it."""
        return Path(self.backend).name

    @property
    def device(self) -> list[str]:
        """The command line of a device's back-end that isn't ztunnel.

        Raises:
            FastpathError: rust-vmm's can't be had.
        """
        own = f"guest-cid={self.cid},socket={self.socket},uds-path={self.vsock}"
        more = "tx-buffer-size=65536,queue-size=1024"  # else a guest's writes stall
        program = self.backend
        if program == programs.VHOST_DEVICE_VSOCK.name:
            program = str(programs.unpack(programs.VHOST_DEVICE_VSOCK).start)
        return [program, f"--vm={own},{more}"]

    def _peers(self) -> list[str]:
        return [f"{self.peer}/32:{port}" for port in SERVICE_PORTS if self.peer]

    def _handoff(self) -> dict[str, Any]:
        match self.handoff:
            case Handoff.INPOD:
                return {"handoff": {"inpod": str(self.folder / "zds.sock")}}
            case Handoff.SOCKS5:
                return {"handoff": {"socks5": SOCKS5}}
            case Handoff.UNIX | Handoff.RING:
                return {"handoff": {self.name: str(self._file("proxy.sock"))}}
            case _:
                return {}

    def workloads(self) -> list[dict[str, Any]]:
        """What Istio's local file says of it, and of who takes its tunnels."""
        own = _workload(self.name, SHARED, self.ip)
        if not self.peer:
            return [own]
        ports = {port: port for port in SERVICE_PORTS}
        peer = _workload("peer", "peer", self.peer)
        peer |= {"protocol": "HBONE", "services": {"compare/peer.compare": ports}}
        return [own, peer]

    def services(self) -> list[dict[str, Any]]:
        """The services of that file."""
        service = {
            "name": "peer",
            "namespace": "compare",
            "hostname": "peer.compare",
            "vips": [f"/{SERVICE}"],
            "ports": {port: port for port in SERVICE_PORTS},
        }
        return [service] if self.peer else []

    def proxy(self, ready_fd: str, site: Site) -> list[str]:
        """The command line of who takes its connections.

        Args:
            ready_fd: descriptor that takes the ready line.
            site: where.

        Raises:
            FastpathError: it cannot be compiled.
        """
        assert self.handoff is not None
        if self.peer:
            argv = [sys.executable, "-m", "fastpath.commands.compare.peer"]
            argv += [self.peer, site.listen, str(self.certificates), ready_fd]
            return site.behind(argv)
        argv = [str(proxy_program()), ready_fd, NEAR, site.server, site.listen]
        argv.append(self.handoff.value)
        if self.netns:
            return self.netns.command(argv)
        return site.ztunnel([*argv, str(self._file("proxy.sock"))])

    def raw(self, ready_fd: str, site: Site) -> list[str]:
        """The command line of who takes its own AF_VSOCK connections.

        Raises:
            FastpathError: it cannot be compiled.
        """
        argv = [str(proxy_program()), ready_fd, NEAR, site.server, site.listen]
        return site.ztunnel([*argv, "vsock", str(self.vsock)])

    @property
    def certificates(self) -> Path:
        """The directory of the CA that both ztunnels have."""
        return self.folder / "ca"


def _workload(name: str, account: str, ip: str) -> dict[str, Any]:
    return {
        "uid": name,
        "name": name,
        "namespace": "compare",
        "serviceAccount": account,
        "trustDomain": "cluster.local",
        "workloadIps": [ip],
        "services": {},
    }


def check_memory(
    names: Sequence[str], meminfo: Path = _MEMINFO, *, worlds: int = 1
) -> None:
    """Check that the microVMs of some paths fit into memory, all at once.

    Args:
        names: the paths.
        meminfo: where the kernel says what there is.
        worlds: how many times all of them are up.

    Raises:
        FastpathError: they don't.
    """
    paths = chosen(names)
    shared = any(not path.own_vm for path in paths)
    count = worlds * (shared + sum(path.own_vm for path in paths))
    found = re.search(r"^MemAvailable: +(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    if count > 1 and found and int(found[1]) >> 10 < count * MEMORY_MIB:
        raise FastpathError(
            f"--paths {','.join(names)}",
            f"{count} microVMs of {MEMORY_MIB} MiB are up at once, and "
            f"{int(found[1]) >> 10} MiB are available",
            "name fewer hand-offs or variants"
            if worlds > 1
            else "name fewer hand-offs",
        )


def check_extra(names: Sequence[str], backends: Sequence[str] = ()) -> None:
    """Check that what makes certificates is installed, if a path takes them.

    rust-vmm's back-end is downloaded, for a path or among `backends`.

    Raises:
        FastpathError: they can't be had.
    """
    rust_vmm = programs.VHOST_DEVICE_VSOCK
    if rust_vmm.name in backends:
        programs.unpack(rust_vmm)
    for path in chosen(names):
        if path.vsock is Vsock.RUST_VMM:
            programs.unpack(rust_vmm)
        if path.handoff is Handoff.EMBEDDED and not find_spec("cryptography"):
            why = "the module cryptography is not installed"
            hint = "pip install 'vsock-fastpath[mesh]'"
            raise FastpathError(f"path {path.name}", why, hint)


def plan(
    names: Sequence[str],
    site: Site,
    folder: Path,
    stack: ExitStack,
    *,
    backend: str = "",
) -> tuple[Sandbox, ...]:
    """Make the sandboxes of some paths, and the namespaces of their pods.

    Args:
        names: the paths.
        site: where; it has a node if a path takes a pod's namespace.
        folder: for their files.
        stack: closes the namespaces.
        backend: of the shared sandbox's device, in ztunnel's place.
    """
    paths = chosen(names)
    found = []
    if shared := tuple(path.name for path in paths if not path.own_vm):
        found.append(
            Sandbox(
                name=SHARED,
                paths=shared,
                cid=FIRST_CID,
                ip=site.pod_ip,
                folder=folder,
                nic=site.nic,
                network=site.network,
                backend=backend,
            )
        )
    found += _handed_on(paths, site, folder, stack)
    return tuple(found)


def _handed_on(
    paths: Sequence[Way], site: Site, folder: Path, stack: ExitStack
) -> Iterator[Sandbox]:
    ways = [path for path in paths if path.own_vm]
    for number, path in enumerate(ways, start=1):
        ip, netns = f"10.200.200.{number}", None
        if path.handoff and path.handoff.in_pod:
            assert site.node is not None
            own = NEAR if path.handoff is Handoff.POD else None
            pod = pods.add(site.node, number, stack, own=own)
            ip, netns = pod.ip, pod.netns
        yield Sandbox(
            name=path.name.removeprefix(HANDED_ON),
            paths=(path.name,),
            cid=FIRST_CID + number,
            ip=ip,
            folder=folder,
            handoff=path.handoff,
            netns=netns,
            peer=site.add_peer() if path.handoff is Handoff.EMBEDDED else "",
            backend=programs.VHOST_DEVICE_VSOCK.name
            if path.vsock is Vsock.RUST_VMM
            else "",
        )


def http_program() -> Path:
    """Compile the HTTP server, the first time; return it.

    Raises:
        FastpathError: there is no C compiler.
    """
    argv = ["cc", "-std=gnu11", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra"]
    argv += ["-Wconversion", "-Werror"]
    hint = "sudo apt-get install gcc libc6-dev"
    return compiled("host/http", argv, [_HTTP], headers=(), hint=hint)


def proxy_program(*, static: bool = False) -> Path:
    """Compile the proxy, the first time; return it.

    Args:
        static: it is to run in a guest, which may lack libraries.

    Raises:
        FastpathError: there is no C compiler.
    """
    sources = [*sorted(_PROXY.glob("*.c")), RINGS / "fastpath_ring.c"]
    headers = [*sorted(_PROXY.glob("*.h")), RINGS / "fastpath_ring.h"]
    argv = ["cc", "-std=gnu11", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra"]
    argv += ["-Wconversion", "-Werror", f"-I{RINGS}"]
    argv += ["-static"] if static else []
    name = "host/proxy-static" if static else "host/proxy"
    hint = "sudo apt-get install gcc libc6-dev"
    return compiled(name, argv, sources, headers=headers, hint=hint)
