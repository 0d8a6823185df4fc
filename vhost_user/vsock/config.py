"""What to serve: VMs from `--vm KEY=VALUE,...` or from a YAML file.

The keys of a VM are vhost-device-vsock's, with `-` or `_` between words:

    threads: 2
    vms:
      - guest_cid: 3
        socket: /run/vm3.vhost
        uds_path: /run/vm3.vsock
        tx_buffer_size: 1048576
        queue_size: 32768
        groups: web+db
        max_conns: 65536
        max_queued_bytes: 268435456
        accept_rate: 0
        memory_files: ram
        socket_mode: 0660
        socket_group: kvm
      - guest_cid: 4
        socket: /run/vm4.vhost
        forward_cid: 1
        forward_listen: 9001+9002
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

from vhost_user.descriptors import MemoryFiles
from vhost_user.engine import (
    DEFAULT_BUF_ALLOC,
    DEFAULT_MAX_CONNS,
    DEFAULT_MAX_QUEUED_BYTES,
    MAX_QUEUE_SIZE,
    MIN_WINDOW,
)
from vhost_user.schema import Parsed, parsers
from vhost_user.sockets import (
    DEFAULT_SOCKET_MODE,
    MAX_PATH,
    Access,
    parse_group,
    parse_mode,
)
from vhost_user.vsock.device import (
    DEFAULT_QUEUE_SIZE,
    MAX_GUEST_CID,
    MIN_GUEST_CID,
)
from vhost_user.vsock.hybrid import MAX_UDS_PATH, MAX_WAITING, seqpacket_path
from vhost_user.vsock.packet import CID_ANY, PORT_ANY

DEFAULT_GROUPS: Final = frozenset({"default"})

MIN_TX_BUFFER: Final = 4096
MAX_TX_BUFFER: Final = 1 << 30

# More than the descriptors that a Linux process may have by default.
MAX_MAX_CONNS: Final = 1 << 20
MAX_QUEUED_BYTES: Final = 1 << 40
# Descriptors for other things than connections: what the process has, and what a VM's
# front-end (memory, rings) and host clients that sent no CONNECT line may have.
PROCESS_FDS: Final = 64
VM_FDS: Final = MAX_WAITING + 64
LEAST_SHARE: Final = 16
MAX_THREADS: Final = 64
MAX_ACCEPT_RATE: Final = 10_000_000
MAX_CONFIG: Final = 1 << 20
"""Bytes of a configuration file."""

Pairs: TypeAlias = Iterable[tuple[str, str, str]]
"""Key, value, and where it was written, for a message about it."""


class ConfigError(ValueError):
    """An option or configuration that can't be used; the text is one line."""


def integer(text: str, low: int, high: int) -> int:
    """Return `text` as a number of the range; ConfigError if it isn't one."""
    if not re.fullmatch("-?[0-9]{1,20}", text):
        raise ConfigError(f"{text!r} is not a number")
    number = int(text)
    if not low <= number <= high:
        raise ConfigError(f"{number} is not in {low}..{high}")
    return number


@dataclass(frozen=True, slots=True)
class _Range:
    """Bounds of a number, both included."""

    low: int
    high: int

    def parse(self, text: str) -> int:
        return integer(text, self.low, self.high)


def threads(text: str) -> int:
    """Return `text` as a number of engines; ConfigError if it can't be one."""
    return integer(text, 1, MAX_THREADS)


def socket_path(text: str) -> Path:
    """Return `text` as a path that a socket can have; ConfigError if it can't."""
    if not text or len(text.encode()) > MAX_PATH:
        raise ConfigError(f"a socket's path has 1..{MAX_PATH} bytes: {text!r}")
    return Path(text)


def tcp_address(text: str) -> tuple[str, int]:
    """Return `ADDR:PORT`, ADDR an IP address; ConfigError if it isn't that."""
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        return str(address), integer(port, 0, 65535)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{text!r} is not IP:PORT: {error}") from None


def _uds_path(text: str) -> Path:
    if len(text.encode()) > MAX_UDS_PATH:
        raise ConfigError(
            f"at most {MAX_UDS_PATH} bytes, a port is added to it: {text!r}"
        )
    return socket_path(text)


def _queue_size(text: str) -> int:
    size = integer(text, 2, MAX_QUEUE_SIZE)
    if size & (size - 1):
        raise ConfigError(f"{size} is not a power of two")
    return size


def _forward_listen(text: str) -> tuple[int, ...]:
    ports = tuple(integer(port, 0, PORT_ANY - 1) for port in text.split("+"))
    if len(set(ports)) < len(ports):
        raise ConfigError(f"a port is given twice: {text!r}")
    return ports


def memory_files(text: str) -> MemoryFiles:
    """Return `ram` or `any` as what it means; ConfigError if it is neither."""
    try:
        return MemoryFiles(text)
    except ValueError:
        words = " or ".join(each.value for each in MemoryFiles)
        raise ConfigError(f"{text!r} is not {words}") from None


def _groups(text: str) -> frozenset[str]:
    names = text.split("+")
    if not all(names):
        raise ConfigError(f"a group without a name: {text!r}")
    return frozenset(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    """One VM to serve."""

    socket: Annotated[Path, Parsed(socket_path)]
    """The vhost-user socket that its VMM connects to."""
    uds_path: Annotated[Path | None, Parsed(_uds_path)] = None
    """Host side of its vsock, as unix sockets."""
    forward_cid: Annotated[int | None, _Range(0, CID_ANY - 1)] = None
    """Host side of its vsock, as vsock: connections to CID 2 go there. With neither,
    it can reach nothing but siblings and the echo port."""
    forward_listen: Annotated[tuple[int, ...], Parsed(_forward_listen)] = ()
    """Vsock ports of this host whose connections go to the same port of the guest."""
    guest_cid: Annotated[int, _Range(MIN_GUEST_CID, MAX_GUEST_CID)] = MIN_GUEST_CID
    tx_buffer_size: Annotated[int, _Range(MIN_TX_BUFFER, MAX_TX_BUFFER)] = (
        DEFAULT_BUF_ALLOC
    )
    """Bytes of a connection on their way to the host."""
    queue_size: Annotated[int, Parsed(_queue_size)] = DEFAULT_QUEUE_SIZE
    groups: Annotated[frozenset[str], Parsed(_groups)] = DEFAULT_GROUPS
    """VMs that share a group reach each other by CID."""
    max_conns: Annotated[int, _Range(1, MAX_MAX_CONNS)] = DEFAULT_MAX_CONNS
    max_queued_bytes: Annotated[int, _Range(MIN_WINDOW, MAX_QUEUED_BYTES)] = (
        DEFAULT_MAX_QUEUED_BYTES
    )
    """Bytes from the guest, of all its connections, that may wait for the host."""
    accept_rate: Annotated[int, _Range(0, MAX_ACCEPT_RATE)] = 0
    """Requests a second from the guest, and from the host; 0: any number."""
    memory_files: Annotated[MemoryFiles, Parsed(memory_files)] = MemoryFiles.RAM
    """Which files the VMM may share as the guest's memory."""
    socket_mode: Annotated[int, Parsed(parse_mode)] = DEFAULT_SOCKET_MODE
    """Permission bits of `socket` and of the sockets at `uds_path`."""
    socket_group: Annotated[int | None, Parsed(parse_group)] = None
    """Group id of these; None: as the system has it."""

    @property
    def access(self) -> Access:
        """Who may connect to its sockets."""
        return Access(self.socket_mode, self.socket_group)

    def __post_init__(self) -> None:
        if self.forward_cid is not None and self.uds_path is not None:
            raise ConfigError("give one of uds_path and forward_cid")
        if self.forward_listen and self.forward_cid is None:
            raise ConfigError("forward_listen needs forward_cid")
        if self.max_queued_bytes < self.max_conns * MIN_WINDOW:
            raise ConfigError(
                f"max_queued_bytes {self.max_queued_bytes} is less than {MIN_WINDOW} "
                f"for each of {self.max_conns} connections (max_conns)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileConfig:
    """What a configuration file says."""

    vms: tuple[VmConfig, ...]
    threads: Annotated[int | None, Parsed(threads)] = None
    """Engines; None: it doesn't say."""


def parse_vm(text: str) -> VmConfig:
    """Parse the argument of `--vm`.

    Raises:
        ConfigError: a bad key or value, or one twice.
    """
    pairs = []
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"--vm {text}: {part!r} is not KEY=VALUE")
        pairs.append((key, value, f"--vm {text}"))
    return _build(pairs, f"--vm {text}")


def load(path: Path) -> FileConfig:
    """Read a YAML file.

    Raises:
        ConfigError: it can't be read or isn't right; says file, line and key.
    """
    from vhost_user import decode  # here: a process without --config stays light

    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_CONFIG:
        raise ConfigError(f"{path}: more than {MAX_CONFIG} bytes")
    document = decode.Document(str(path), _error, spelling=decode.SNAKE_OR_KEBAB_CASE)
    return decode.loads(data, FileConfig, document)


def _error(what: str, why: str, hint: str | None) -> ConfigError:
    return ConfigError(f"{what}: {why}" + (f"; hint: {hint}" if hint else ""))


def check(vms: list[VmConfig], stats_socket: Path | None = None) -> None:
    """Check VMs, and the path of the counters' socket, against each other.

    Raises:
        ConfigError: there is no VM, two want the same CID, path or port, or one path
            is where a guest's connections go.
    """
    if not vms:
        raise ConfigError("no VM: give --socket, --vm or --config")
    paths = [] if stats_socket is None else [stats_socket]
    claims: list[tuple[str, object]] = []
    for vm in vms:
        claims.append(("guest CID", vm.guest_cid))
        claims += [("forward_listen port", port) for port in vm.forward_listen]
        paths.append(vm.socket)
        if vm.uds_path is not None:
            paths += [vm.uds_path, seqpacket_path(vm.uds_path)]
    claims += [("path", path) for path in paths]
    seen = set()
    for claim in claims:
        if claim in seen:
            raise ConfigError(f"{claim[0]} {claim[1]} is used twice")
        seen.add(claim)
    stems = {str(vm.uds_path) for vm in vms}
    for path in paths:
        stem, _, port = str(path).rpartition("_")
        if port.isdecimal() and stem in stems:
            raise ConfigError(f"path {path} is port {port} of uds_path {stem}")


def share_descriptors(vms: list[VmConfig], limit: int) -> list[VmConfig]:
    """Lower each `max_conns` to its share if not all could be had at once.

    A connection takes a file descriptor: without this, one VM could take those of all
    others. Where there is one VM, it may have more connections than descriptors:
    those to the engine's own echo take none.

    Args:
        vms: what was asked for.
        limit: descriptors that the process may have.

    Raises:
        ConfigError: there are not enough to listen for all VMs.
    """
    least = PROCESS_FDS + sum(3 if vm.uds_path else 1 for vm in vms)
    if least > limit:
        raise ConfigError(
            f"{len(vms)} VMs take {least} open files before the first VMM comes, at "
            f"most {limit} are allowed: raise the hard limit (ulimit -Hn)"
        )
    room = limit - PROCESS_FDS - len(vms) * VM_FDS
    if len(vms) == 1 or sum(vm.max_conns for vm in vms) <= room:
        return vms
    share = max(LEAST_SHARE, room // len(vms))
    return [replace(vm, max_conns=min(vm.max_conns, share)) for vm in vms]


def from_options(options: Mapping[str, str]) -> VmConfig:
    """Build the one VM of `--guest-cid`, `--socket` and their like.

    Raises:
        ConfigError: a bad value.
    """
    flags = (
        (key, value, "--" + key.replace("_", "-")) for key, value in options.items()
    )
    return _build(flags, "command line")


def _build(pairs: Pairs, where: str) -> VmConfig:
    parse = parsers(VmConfig)
    values: dict[str, Any] = {}
    for raw, text, place in pairs:
        key = raw.strip().replace("-", "_")
        if key not in parse:
            raise ConfigError(f"{place}: unknown key {raw!r}")
        if key in values:
            raise ConfigError(f"{place}: {key} is given twice")
        try:
            values[key] = parse[key](text.strip())
        except ValueError as error:
            raise ConfigError(f"{place}: {key}: {error}") from None
    if "socket" not in values:
        raise ConfigError(f"{where}: socket is missing")
    try:
        return VmConfig(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
